"""`contrapposto draw` and `contrapposto base`: pictures by a published model, and what such a model is.

Picture i shows prompt i (prompts are taken in turn) and is a function of (model, prompt, sampling, seed, i): a run that is
stopped and started again draws the missing pictures, and any batch gives the same ones up to rounding.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from diffusion_core.conditioning import Cond, rows
from diffusion_core.training.compute import computes_bf16
from tasks import paths
from tasks.common import checkpoint, files
from tasks.common.errors import UserError
from tasks.common.images import encode_png
from tasks.config.params import Params
from tasks.config.sampling import SamplingChoices
from tasks.extract.decode import open_picture
from tasks.extract.source_files import Refusal
from tasks.foreign import adapter as adapters
from tasks.foreign import control, folder, inversion, levels, model, offload
from tasks.foreign.folder import PipelineFolder
from tasks.models.inputs import as_pictures

ABOUT = "draw.json"  # beside the pictures: what they were drawn with
Precision = Literal["auto", "fp32", "fp16", "bf16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What to draw."""

    prompts: Sequence[str]
    count: int
    how: SamplingChoices
    negative: str | None = None
    size: int | None = None  # pixels; None: as in the model's training
    seed: int = 0
    batch: int = 4
    precision: Precision = "auto"
    poses: Tensor | None = None  # for a ControlNet: pictures of poses in turn, `[n, 3, size, size]` in 0 ... 1


def located(params: Params | None, root: Path, source: Path | None, sha256: str | None) -> tuple[Path, str | None]:
    """The folder and sha256 of the published model: those that are given, or `base` of the parameters."""
    if source is not None:
        return source, sha256
    if params is None or params.base is None:
        raise UserError(
            "There is no published model: give --base DIR, or set base in params.yaml (contrapposto base DIR)."
        )
    return root / params.base.source, params.base.sha256


def read_prompts(texts: Sequence[str], file: Path | None) -> list[str]:
    """The prompts that are given, and those in the lines of a UTF-8 file. Raises UserError without any."""
    prompts = [*texts]
    if file is not None:
        try:
            prompts += [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8 text: {error}.") from error
    if not prompts:
        raise UserError("There is no prompt: give --prompt TEXT or --prompts FILE.")
    return prompts


def describe(path: Path) -> tuple[PipelineFolder, dict[str, Any]]:
    """The pipeline in a folder, and what to say about it: kind, prediction, sha256."""
    found = folder.opened(path)
    scheduler = levels.read(path / "scheduler")
    name = next(key for key, target in levels.TARGETS.items() if target is levels.target(scheduler))
    net = files.read_json(path / found.net_name / "config.json")["_class_name"]
    return found, {"pipeline": found.pipeline, "network": net, "prediction": name, "sha256": folder.digest(path)}


def draw(
    path: Path,
    sha256: str | None,
    request: Request,
    out: Path,
    adapter: Path | None = None,
    scale: float = 1.0,
    poses: Path | None = None,
    offloaded: bool = False,
) -> Path:
    """Draw `count` pictures into a folder: `000000.png` and its prompt `000000.txt` for each. Returns the folder.

    `adapter`: the folder of a word of textual inversion, of a LoRA, or of a ControlNet, whose change is multiplied by `scale`.
    `offloaded`: the weights of the network wait in the memory of the CPU, see `offload`. Raises
    UserError if the folder holds pictures of another request, or if the model cannot be used.
    """
    loaded = load(path, sha256, request.precision, offloaded)
    about: dict[str, Any] = {"sha256": sha256 or folder.digest(path)}
    if adapter is not None:
        loaded = adapted(adapter, loaded, scale)
        about |= {"adapter": paths.sha256(adapter), "scale": scale}
    if poses is not None:
        request = replace(request, poses=read_poses(poses, request.size or loaded.size))
    return into(loaded, request, out, about)


def adapted(adapter: Path, loaded: model.ForeignModel, scale: float = 1.0) -> model.ForeignModel:
    """The model with the adapter in a folder, of any kind."""
    kind = checkpoint.about(adapter / paths.MODEL_FILE).get("kind")
    if kind == inversion.KIND:
        return inversion.load(adapter, loaded)
    if kind == control.KIND:
        return control.load(adapter, loaded, scale)
    return adapters.load(adapter, loaded, scale)


def read_poses(folder: Path, size: int) -> Tensor:
    """The pictures of poses in a folder, in order of their names, `[n, 3, size, size]` in 0 ... 1.

    Raises UserError if there are none, or if one cannot be read.
    """
    found = sorted(folder.glob("*.png"))
    if not found:
        raise UserError(f"{folder} holds no PNG with the picture of a pose.")
    try:
        return torch.cat([as_condition(open_picture(path), size) for path in found])
    except Refusal as error:
        raise UserError(f"A picture of a pose cannot be read: {error.detail}") from error


def as_condition(picture: np.ndarray, size: int) -> Tensor:
    """A picture of a pose, uint8 `[height, width, 3]`, as a ControlNet is given it: `[1, 3, size, size]` in 0 ... 1."""
    pixels = np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def merge(path: Path, sha256: str | None, adapter: Path, out: Path, scale: float = 1.0) -> Path:
    """Write the published model with a LoRA added to its weights, as a folder that diffusers loads. Returns the folder.

    Raises UserError if `out` exists, or if the model cannot be used.
    """
    if out.exists():
        raise UserError(f"{out} exists: choose another folder.")
    loaded = model.load(path, sha256, torch.device("cpu"))
    return adapters.merged(adapter, loaded, out, scale)


def load(path: Path, sha256: str | None, precision: Precision = "auto", offloaded: bool = False) -> model.ForeignModel:
    """The published model in a folder on the best device, with its network in this precision."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and computes_bf16(device) else "fp32"
    loaded = model.load(path, sha256, device, DTYPES[precision], offloaded)
    if offloaded:
        offload.offload(loaded)
    return loaded


def into(loaded: model.ForeignModel, request: Request, out: Path, about: dict[str, Any]) -> Path:
    """As `draw`, by a model that is in memory. `about`: what names it."""
    size = request.size or loaded.size
    loaded.walk(request.how, loaded.shape(size))  # a mistake is told before the text encoders are loaded
    about = {
        **about, "prompts": list(request.prompts), "negative": request.negative, "seed": request.seed, "size": size,
        "precision": str(loaded.dtype).removeprefix("torch."), **request.how.sampling_json,
    }  # fmt: skip
    if request.poses is not None:
        about["poses"] = hashlib.sha256(request.poses.contiguous().numpy().tobytes()).hexdigest()
    if (out / ABOUT).is_file() and files.read_json(out / ABOUT) != about:
        raise UserError(f"{out} holds pictures that were drawn in another way (see {ABOUT}): choose another folder.")
    if not (out / ABOUT).is_file() and any(out.glob("*")):
        raise UserError(f"{out} is not empty: choose another folder.")
    files.write_json(out / ABOUT, about)
    missing = [i for i in range(request.count) if not (out / f"{i:06d}.png").is_file()]
    encoded = loaded.conditions([*request.prompts, request.negative or ""])
    unwanted = rows(encoded, slice(-1, None)) if request.negative else None
    with tqdm(total=len(missing), desc="draw", unit="picture", mininterval=1) as bar:
        for begin in range(0, len(missing), request.batch):
            ids = torch.tensor(missing[begin : begin + request.batch])
            _write(loaded, request, encoded, unwanted, ids, size, out)
            bar.update(len(ids))
    return out


def _write(
    loaded: model.ForeignModel,
    request: Request,
    encoded: Cond,
    unwanted: Cond | None,
    ids: torch.Tensor,
    size: int,
    out: Path,
) -> None:
    """Draw some pictures, and write each after its prompt."""
    numbers = ids % len(request.prompts)
    cond = rows(encoded, numbers)
    if request.poses is not None:
        cond[control.POSE] = request.poses[ids % len(request.poses)]
    values = loaded.draw(cond, request.how, request.seed, ids, size, unwanted, batch=len(ids))
    if not values.isfinite().all():
        raise UserError("The model gives pictures that are not finite; try --precision fp32.")
    for i, number, picture in zip(ids.tolist(), numbers.tolist(), as_pictures(values), strict=True):
        files.write_bytes(out / f"{i:06d}.txt", request.prompts[number].encode())
        files.write_bytes(out / f"{i:06d}.png", encode_png(picture))
