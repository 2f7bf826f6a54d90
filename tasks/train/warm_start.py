"""Beginning with another model's weights: the champion's, when new data have come."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from tasks import paths
from tasks.common import checkpoint
from tasks.common.errors import DataError, UserError
from tasks.models.modality import Model

# A condition with one column a category: categories may have come or gone, and those of the same name keep their column.
CATEGORY = "conds.category.weight"


def weights(root: Path, sha256: str, model: Model) -> dict[str, Tensor]:
    """The denoiser's weights of the model file with this digest, made to fit the categories that there are now.

    The file is looked for in `.contrapposto/models/<sha256>/` and `artifacts/`. Raises UserError, naming what differs, if
    it is another kind of network, DataError if there is no such file.
    """
    kept = root / paths.REGISTERED_MODELS / sha256 / paths.MODEL_FILE
    path = next((p for p in (kept, paths.model_folder(root, model.name) / paths.MODEL_FILE) if _is(p, sha256)), None)
    if path is None:
        raise DataError(f"There is no model {sha256} to begin with: {kept} does not exist or is another file.")
    tensors, meta = checkpoint.load(path)
    found = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    own = {name: p.detach().cpu() for name, p in model.denoiser.named_parameters()}
    for name, value in own.items():
        if name.endswith(CATEGORY) and name in found:
            found[name] = _columns(value, found[name], model.categories, meta["categories"])
    found = {
        name: value for name, value in found.items() if name in own or name not in dict(model.denoiser.named_buffers())
    }
    differing = [name for name in sorted(own.keys() | found.keys()) if _shape(own, name) != _shape(found, name)]
    if differing:
        told = ", ".join(
            f"{name} is {_shape(found, name)} there and {_shape(own, name)} here" for name in differing[:4]
        )
        raise UserError(f"{model.name}.start: {path} is another network and cannot be begun with: {told}.")
    return found


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _columns(own: Tensor, found: Tensor, here: list[str], there: list[str]) -> Tensor:
    """The weights `[width, len(here)]` with the columns of the categories that were there before."""
    merged = own.clone()
    for column, category in enumerate(here):
        if category in there and found.shape == (len(own), len(there)):
            merged[:, column] = found[:, there.index(category)]
    return merged


def _shape(tensors: dict[str, Tensor], name: str) -> str:
    return str(list(tensors[name].shape)) if name in tensors else "absent"
