"""LoRA of published models: which layers, and the files that this project, diffusers and peft read.

model.safetensors                  this project's: the weights, rank, alpha, layers, and the sha256 of the base
pytorch_lora_weights.safetensors   for `load_lora_weights` of diffusers' pipelines, and for tools that read its files
adapter_model.safetensors, adapter_config.json   for peft's `PeftModel.from_pretrained`
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion_core.lora import Adapted, Adapter, merge, targets
from tasks import paths
from tasks.common import checkpoint, files
from tasks.common.errors import DataError, UserError
from tasks.common.published import package
from tasks.foreign.model import ForeignModel

_UNET = ("to_q", "to_k", "to_v", "to_out.0")
_JOINT = (*_UNET, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
# Layers that get a change by default: those of attention, as in diffusers' training scripts.
TARGETS = {"sd": _UNET, "sdxl": _UNET, "sd3": _JOINT, "flux": _JOINT, "dit": _UNET}
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
PEFT_WEIGHTS = "adapter_model.safetensors"
KIND = "lora"


def adapted(
    model: ForeignModel,
    rank: int,
    alpha: float | None,
    names: Iterable[str] | None = None,
    seed: int = 0,
    recompute: bool = False,
) -> tuple[ForeignModel, Adapter]:
    """The model with an untrained adapter, which changes nothing yet. The given model's network is shared.

    `names`: of layers; None: TARGETS. `recompute`: activations, in the backward pass. Raises UserError if the
    network has no such layer.
    """
    inner = model.net.inner
    try:
        layers = targets(inner, names or TARGETS[model.folder.kind])
    except ValueError as error:
        raise UserError(f"adapt.lora.targets: {error}.") from error
    adapter = Adapter(layers, rank, rank if alpha is None else alpha, seed)
    net = Adapted(model.net, layers, adapter, recompute)
    if recompute:
        inner.enable_gradient_checkpointing()
    return replace(model, denoiser=model.recipe.denoiser(net)), adapter


def save(folder: Path, model: ForeignModel, adapter: Adapter, meta: dict[str, Any]) -> None:
    """Write the files of an adapter into a folder."""
    peft = package("peft")
    tensors = {name: value.cpu() for name, value in adapter.tensors().items()}
    names = sorted(adapter.named())
    config = peft.LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=names, init_lora_weights=False)
    about = {"kind": KIND, "rank": adapter.rank, "alpha": adapter.alpha, "layers": names, **meta}
    checkpoint.save(folder / paths.MODEL_FILE, tensors, about)
    part = model.folder.net_name
    described = {f"{part}.{key}": value for key, value in _plain(config.to_dict()).items()}
    checkpoint.save(folder / DIFFUSERS_WEIGHTS, _prefixed(part, tensors), described, key="lora_adapter_metadata")
    config.save_pretrained(folder)
    checkpoint.save(folder / PEFT_WEIGHTS, _prefixed("base_model.model", tensors), {})


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """What of peft's configuration is JSON."""
    return {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.items()
        if isinstance(value, str | int | float | bool | list | dict | set | None)
    }


def load(folder: Path, model: ForeignModel, scale: float = 1.0) -> ForeignModel:
    """The model with the adapter in a folder, whose change is multiplied by `scale`; 0 is the model bit for bit.

    Raises DataError if the file is no adapter, UserError if it was trained on another kind of network.
    """
    tensors, meta = _read(folder)
    changed, adapter = adapted(model, meta["rank"], meta["alpha"], meta["layers"])
    fill(adapter, tensors, folder)
    adapter.scaled(scale)
    changed.denoiser.to(model.device).eval().requires_grad_(False)
    return changed


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, meta = checkpoint.load(folder / paths.MODEL_FILE)
    if meta.get("kind") != KIND:
        raise DataError(f"{folder / paths.MODEL_FILE} is not a LoRA.")
    return tensors, meta


def fill(adapter: Adapter, tensors: dict[str, Tensor], folder: Path) -> None:
    """Give an adapter its weights. Raises UserError if they are of another network."""
    try:
        adapter.load(tensors)
    except ValueError as error:
        raise UserError(f"The LoRA in {folder} was trained on another network: {error}.") from error


def merged(folder: Path, model: ForeignModel, out: Path, scale: float = 1.0) -> Path:
    """Write the published model with the adapter added to its weights, as a folder that diffusers loads. Returns `out`.

    The model's own network is changed, too. The other components are copied.
    """
    tensors, meta = _read(folder)
    inner = model.net.inner
    layers = targets(inner, meta["layers"])
    adapter = Adapter(layers, meta["rank"], meta["alpha"]).to(model.device)
    fill(adapter, tensors, folder)
    adapter.scaled(scale)
    merge(layers, adapter)
    with files.new_folder(out) as temporary:
        ignored = shutil.ignore_patterns(model.folder.net_name, "*.bin", "*.ckpt", "*.pt", ".*")
        shutil.copytree(model.folder.path, temporary, ignore=ignored, dirs_exist_ok=True)
        inner.save_pretrained(temporary / model.folder.net_name, safe_serialization=True)
    return out
