"""Warm start: training begins with the weights of another model, such as the champion when new data have arrived."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor, nn

from diffusion_core.nets.edm2_unet import EDM2UNet
from diffusion_core.nets.video import VideoNet
from tasks import paths
from tasks.common import checkpoint
from tasks.common.errors import DataError, UserError
from tasks.config.video import VideoModel
from tasks.models.modality import Model

# The layer that has one column per category. Categories may have come or gone; the others keep their column.
CATEGORY = "conds.category.weight"
FIRST = ("patch_embed.weight", "conv_in.weight")  # the layers that take maps, last of all that of padding


def weights(root: Path, sha256: str, model: Model) -> dict[str, Tensor]:
    """The denoiser's weights of the model file with this digest, its category columns rearranged for the categories of `model`.

    The video model begins with a picture model's weights and, for attention over time, with its own, which change nothing.

    If only one of the two knows of padding, columns for it are added, as zeros, or removed.

    The file is looked for in `.contrapposto/models/<sha256>/` and `artifacts/`. Raises UserError, naming what differs, if
    it is another kind of network, and DataError if there is no such file.
    """
    inflated = isinstance(model.config, VideoModel)
    path = find(root, sha256, "pictures" if inflated else model.name)
    tensors, meta = checkpoint.load(path)
    loaded = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    own = {name: p.detach().cpu() for name, p in model.denoiser.named_parameters()}
    if inflated:
        loaded = _inflated(loaded, own, model.denoiser.net)
    for name, value in own.items():
        if name.endswith(CATEGORY) and name in loaded:
            loaded[name] = _columns(value, loaded[name], model.categories, meta["categories"])
    if model.padded != meta.get("padded", False):
        constant = (
            1 if any(isinstance(module, EDM2UNet) for module in model.denoiser.modules()) else 0
        )  # its last channel is a constant
        for name in own.keys() & loaded.keys():
            if name.endswith(FIRST):
                loaded[name] = _with_width(loaded[name], own[name].shape[1], constant)
    buffers = dict(model.denoiser.named_buffers())
    loaded = {name: value for name, value in loaded.items() if name in own or name not in buffers}
    differing = [name for name in sorted(own.keys() | loaded.keys()) if _shape(own, name) != _shape(loaded, name)]
    if differing:
        shapes = ", ".join(
            f"{name} is {_shape(loaded, name)} there and {_shape(own, name)} here" for name in differing[:4]
        )
        raise UserError(f"{model.name}.start: {path} is another kind of network: {shapes}.")
    return loaded


def _inflated(loaded: dict[str, Tensor], own: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """The weights of a picture model under the names that they have in the video model, and the latter's own further ones."""
    assert isinstance(net, VideoNet)
    names = {f"net.{old}": f"net.{new}" for new, old in net.picture_names().items()}
    temporal = {name: value for name, value in own.items() if name not in names.values()}
    return temporal | {names.get(name, name): value for name, value in loaded.items()}


def find(root: Path, sha256: str, name: str) -> Path:
    """The file of model `name` with this digest. Raises DataError if there is none."""
    cached = root / paths.REGISTERED_MODELS / sha256 / paths.MODEL_FILE
    candidates = (cached, paths.model_folder(root, name) / paths.MODEL_FILE)
    path = next((candidate for candidate in candidates if _has_digest(candidate, sha256)), None)
    if path is None:
        raise DataError(f"There is no model {sha256} to start with: {cached} does not exist or is another file.")
    return path


def _has_digest(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _columns(own: Tensor, loaded: Tensor, categories: list[str], loaded_categories: list[str]) -> Tensor:
    """The weights `[width, len(categories)]`, with the loaded columns of those categories that the other model knows."""
    merged = own.clone()
    for column, category in enumerate(categories):
        if category in loaded_categories and loaded.shape == (len(own), len(loaded_categories)):
            merged[:, column] = loaded[:, loaded_categories.index(category)]
    return merged


def _with_width(weight: Tensor, width: int, constant: int) -> Tensor:
    """The weight `[out, in, ...]` with columns of zeros added, or columns removed, before the last `constant` columns."""
    kept = min(width, weight.shape[1]) - constant
    merged = weight.new_zeros(weight.shape[0], width, *weight.shape[2:])
    merged[:, :kept] = weight[:, :kept]
    merged[:, width - constant :] = weight[:, weight.shape[1] - constant :]
    return merged


def _shape(tensors: dict[str, Tensor], name: str) -> str:
    return str(list(tensors[name].shape)) if name in tensors else "absent"
