"""Looking at a training: losses per noise level, their gap, the gradient's noise scale, samples, distance, speed.

Everything but the speed is a function of the weights. It is computed with the averaged weights, the same examples and the
same noise each time.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_core.conditioning import Cond, rows
from diffusion_core.denoiser import Preconditioned
from diffusion_core.sampling.loop import generate
from diffusion_core.training import compute, monitoring
from diffusion_core.training.trainer import Trainer
from tasks.metrics import membership_inference
from tasks.metrics.features import joints, pixels
from tasks.metrics.kid import KID_NEEDS, kid
from tasks.models import modality
from tasks.models.modality import Examples, Model
from tasks.plots import drawing

SIGMAS = membership_inference.SIGMAS[1:]  # noise levels watched while training: all but the smallest
WATCHED = 128  # examples of each split
SHOWN = 16  # samples in the picture
STEPS = 12  # of sampling, while watching
Points = list[tuple[str, float, int]]  # (metric, value, images seen)


@dataclass(frozen=True)
class Watch:
    """What is watched: `parts` are examples of `train` and, where there are any, `val`, in the network's units."""

    model: Model
    parts: dict[str, Examples]
    seed: int
    samples: int  # for the distance to held-out data

    def row(self, denoiser: Preconditioned, nimg: int) -> dict[str, Any]:
        """Losses at SIGMAS, gaps and distance, as JSON."""
        row: dict[str, Any] = {"images": nimg}
        losses = {}
        for split, part in self.parts.items():
            x0, cond = _to(part, denoiser)
            losses[split] = membership_inference.losses(denoiser, x0, cond, SIGMAS, self.seed, draws=1)
            row[split] = (losses[split].mean(1) * np.square(SIGMAS)).tolist()
        if "val" in losses and min(loss.shape[1] for loss in losses.values()) >= 2:
            row["gaps"] = [asdict(gap) for gap in membership_inference.gaps(SIGMAS, losses["train"], losses["val"])]
        held_out = len(self.parts.get("val", ()))
        if self.samples and min(self.samples, held_out) >= KID_NEEDS:
            drawn, real = self.draw(denoiser, self.samples), self.model.codec.decode(self.parts["val"].x0)
            row["distance"] = kid(self._features(drawn), self._features(real)).as_dict()
        return row

    def draw(self, denoiser: Preconditioned, count: int) -> Tensor:
        """Samples in data units, `[count, *shape]` on the CPU, always from the same noise and conditions."""
        source = self.parts.get("val", self.parts["train"])
        _, cond = _to(source, denoiser)
        ids = torch.arange(count, device=next(denoiser.parameters()).device)
        z = generate(
            denoiser, self.model.recipe.timesteps(STEPS), self.model.recipe.step, self.model.shape, self.seed, ids,
            rows(cond, ids % len(source)),
        )  # fmt: skip
        return self.model.codec.decode(z).cpu()

    def picture(self, denoiser: Preconditioned, path: Path) -> None:
        """A sheet of SHOWN samples as a PNG."""
        values = self.draw(denoiser, SHOWN)
        if values.ndim == 4:
            tiles = [drawing.enlarge(picture, 96) for picture in modality.as_pictures(values)]
        else:
            tiles = [drawing.draw_pose(pose) for pose in values.numpy()]
        drawing.save_png(path, drawing.sheet(tiles, 8))

    def _features(self, values: Tensor) -> np.ndarray:
        return (
            pixels(modality.as_pictures(values).astype(np.float32) / 255)
            if values.ndim == 4
            else joints(values.numpy())
        )


def _to(part: Examples, denoiser: Preconditioned) -> tuple[Tensor, Cond]:
    device = next(denoiser.parameters()).device
    return part.x0.to(device), {key: value.to(device) for key, value in part.cond.items()}


def points(row: dict[str, Any]) -> Points:
    """A watch's row as metrics. The gap is how much higher the held-out loss is, as a share of the training loss."""
    nimg, found = row["images"], []
    for split in ("train", "val"):
        for sigma, value in zip(SIGMAS, row.get(split, []), strict=False):
            found.append((f"denoising_loss.{split}.sigma_{sigma}", value, nimg))
    for gap in row.get("gaps", []):
        found.append((f"loss_gap.sigma_{gap['sigma']}", gap["heldout"] / gap["train"] - 1, nimg))
        found.append((f"loss_gap_auc.sigma_{gap['sigma']}", gap["auc"], nimg))
    for end in ("value", "low", "high") if "distance" in row else ():
        found.append((f"kernel_distance.{end}", row["distance"][end], nimg))
    if "noise_scale" in row:
        found.append(("gradient.signal", row["noise_scale"]["signal"], nimg))
        found.append(("gradient.noise", row["noise_scale"]["noise"], nimg))
    return found


class Speed:
    """Images a second, share of the device's matrix-product peak, and share of the time that examples were waited for."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.flops = monitoring.flops_per_image(trainer)
        self.peak = compute.peak_flops(trainer.device, trainer.compute) * trainer.world
        self.begin()

    def begin(self) -> None:
        """From now on."""
        self.images, self.waited, self.since = self.trainer.nimg, self.trainer.data_wait_seconds, time.perf_counter()

    def since_then(self) -> dict[str, float]:
        """The figures since `begin`, as JSON."""
        seconds = time.perf_counter() - self.since
        rate = (self.trainer.nimg - self.images) / seconds
        return {
            "images": self.trainer.nimg,
            "images_per_second": rate,
            "flops_utilisation": rate * self.flops / self.peak,
            "loader_wait": (self.trainer.data_wait_seconds - self.waited) / seconds,
        }


def speed_points(rows: list[dict[str, float]]) -> Points:
    """Rows of `Speed.since_then` as metrics."""
    names = ("images_per_second", "flops_utilisation", "loader_wait")
    return [(f"speed.{name}", row[name], int(row["images"])) for row in rows for name in names]
