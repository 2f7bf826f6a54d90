"""What is measured of a model while it is trained: losses at each noise level, samples, distance to held-out data, speed.

Everything but the speed is a function of the weights: it uses the averaged weights and the same examples and noise each time.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from diffusion_core import choices, training_choices
from diffusion_core.conditioning import Cond, rows, to_device
from diffusion_core.denoiser import Preconditioned
from diffusion_core.sampling.loop import generate
from diffusion_core.training import compute, monitoring
from diffusion_core.training.monitoring import NoiseScale
from diffusion_core.training.trainer import Trainer
from tasks.common import motion
from tasks.config.motion import MotionModel
from tasks.config.video import VideoModel
from tasks.metrics import membership_inference, trajectories
from tasks.metrics.estimate import Estimate
from tasks.metrics.features import joints, pixels
from tasks.metrics.kid import KID_NEEDS, kid
from tasks.metrics.membership_inference import LevelGap
from tasks.models import inputs
from tasks.models.guiding import limited
from tasks.models.inputs import Examples
from tasks.models.modality import Model
from tasks.plots import drawing, motion_plots

SIGMAS = membership_inference.SIGMAS[1:]  # noise levels evaluated while training: all but the smallest
EVALUATED = 128  # examples of each split
SHOWN = 16  # samples in the picture
STEPS = 12  # of the samples while training
Points = list[tuple[str, float, int]]  # (metric, value, images seen)


@dataclass(frozen=True)
class Evaluation:
    """What was measured after `images` images.

    `train`, `val`: mean squared error of x0 (of tokens: cross-entropy) at each of SIGMAS, in the network's units; of a codec
    one number, the error of its reconstructions. `val` is None if there are no held-out examples, `gaps` and `distance` if
    there are too few of them, `noise_scale` if a batch cannot be divided.
    """

    images: int
    train: list[float]
    val: list[float] | None = None
    gaps: list[LevelGap] | None = None
    distance: Estimate | None = None
    noise_scale: NoiseScale | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON types, without those that are missing."""
        row: dict[str, Any] = {"images": self.images, "train": self.train, "val": self.val}
        row["gaps"] = None if self.gaps is None else [asdict(gap) for gap in self.gaps]
        row["distance"] = None if self.distance is None else self.distance.as_dict()
        row["noise_scale"] = None if self.noise_scale is None else self.noise_scale._asdict()
        return {key: value for key, value in row.items() if value is not None}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Evaluation:
        """The inverse of `as_json`."""
        row = dict(row)
        if "gaps" in row:
            row["gaps"] = [LevelGap(**gap) for gap in row["gaps"]]
        if "distance" in row:
            row["distance"] = Estimate(**row["distance"])
        if "noise_scale" in row:
            row["noise_scale"] = NoiseScale(**row["noise_scale"])
        return cls(**row)

    def points(self) -> Points:
        """The numbers as metrics. `loss_gap` is how much higher the held-out loss is, as a share of the training loss."""
        points: Points = []
        if len(self.train) == 1:  # a codec
            both = {"train": self.train, "val": self.val or []}
            return [
                (f"reconstruction_error.{split}", losses[0], self.images) for split, losses in both.items() if losses
            ]
        for split, losses in (("train", self.train), ("val", self.val or [])):
            for sigma, value in zip(SIGMAS, losses, strict=False):
                points.append((f"denoising_loss.{split}.sigma_{sigma}", value, self.images))
        for gap in self.gaps or []:
            points.append((f"loss_gap.sigma_{gap.sigma}", gap.heldout / gap.train - 1, self.images))
            points.append((f"loss_gap_auc.sigma_{gap.sigma}", gap.auc, self.images))
        if self.distance is not None:
            for end in ("value", "low", "high"):
                points.append((f"kernel_distance.{end}", getattr(self.distance, end), self.images))
        if self.noise_scale is not None:
            points.append(("gradient.signal", self.noise_scale.signal, self.images))
            points.append(("gradient.noise", self.noise_scale.noise, self.images))
        return points


class Trainable(Protocol):
    """What the training loop knows of a model."""

    @property
    def name(self) -> str:
        """By which the model is known everywhere."""

    @property
    def config(self) -> Any:
        """Its section of the parameters."""

    @property
    def denoiser(self) -> Preconditioned:
        """Its network."""


class AnyEvaluator(Protocol):
    """What the training loop asks of an evaluator."""

    sigmas: ClassVar[tuple[float, ...]]  # noise levels of the losses; without any there is one loss
    noise_scale: ClassVar[bool]  # whether the gradient's noise scale is wanted

    def evaluate(self, denoiser: Preconditioned, nimg: int, noise_scale: NoiseScale | None) -> Evaluation:
        """Everything that is measured after nimg images."""

    def picture(self, denoiser: Preconditioned, path: Path) -> None:
        """Write a PNG that shows what the model can do."""


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a model on `examples` of `train` and, if there are any, `val`, in the network's units."""

    model: Model
    examples: dict[str, Examples]
    seed: int
    samples: int  # how many are drawn for the distance to held-out data; 0: no distance
    sigmas: ClassVar[tuple[float, ...]] = SIGMAS
    noise_scale: ClassVar[bool] = True

    def evaluate(self, denoiser: Preconditioned, nimg: int, noise_scale: NoiseScale | None) -> Evaluation:
        """Losses at SIGMAS, gaps and distance of the model with this denoiser."""
        losses = {}
        for split, examples in self.examples.items():
            x0, cond = _to_device(examples, denoiser)
            as_sampled = self.model.as_sampled(denoiser)
            with self.model.autocast():
                losses[split] = membership_inference.losses(
                    as_sampled, x0, cond, SIGMAS, self.seed, draws=1, recipe=self.model.recipe
                )
        variances = membership_inference.noise_variances(SIGMAS, self.model.recipe)
        means = {split: (loss.mean(1) * variances).tolist() for split, loss in losses.items()}
        gaps = distance = None
        if "val" in losses and min(loss.shape[1] for loss in losses.values()) >= 2:
            gaps = membership_inference.gaps(SIGMAS, losses["train"], losses["val"])
        held_out = len(self.examples.get("val", ()))
        if self.samples and min(self.samples, held_out) >= KID_NEEDS:
            real = self.model.codec.decode(self.examples["val"].x0, self.examples["val"].cond)
            distance = kid(self._features(self.draw(denoiser, self.samples)), self._features(real))
        return Evaluation(nimg, means["train"], means.get("val"), gaps, distance, noise_scale)

    def draw(self, denoiser: Preconditioned, count: int) -> Tensor:
        """Samples in data units, `[count, *shape]` on the CPU, always from the same noise and conditions."""
        source = self.examples.get("val", self.examples["train"])
        _, cond = _to_device(source, denoiser)
        ids = torch.arange(count, device=next(denoiser.parameters()).device)
        cond = rows(cond, ids % len(source))
        made = self.model.sampler(self._sampling())
        sampled = limited(self.model, self.model.as_sampled(denoiser))
        with self.model.autocast():
            z = generate(
                sampled, made.visited, made.step, self.model.shape, self.seed, ids, cond, **self.model.drawing(denoiser),
            )  # fmt: skip
        return self.model.codec.decode(z, cond).cpu()

    def _sampling(self) -> choices.Sampling:
        student = self.model.student
        if student is not None:
            return choices.Sampling(student.sampler, student.steps)
        return choices.Sampling(training_choices.default_sampler(self.model.config.recipe), STEPS)

    def _features(self, values: Tensor) -> np.ndarray:
        """Features of examples in data units, in which distances to held-out data are measured."""
        if isinstance(self.model.config, MotionModel):
            return trajectories.features(trajectories.fitted(motion.from_features(values.numpy())))
        if isinstance(self.model.config, VideoModel):
            clips = inputs.as_clips(values).astype(np.float32) / 255
            return pixels(clips.reshape(len(clips), -1, *clips.shape[-2:]))  # frames below each other
        if values.ndim == 4:
            return pixels(inputs.as_pictures(values).astype(np.float32) / 255)
        return joints(values.numpy())

    def picture(self, denoiser: Preconditioned, path: Path) -> None:
        """Write a sheet of SHOWN samples as a PNG."""
        values = self.draw(denoiser, SHOWN)
        if isinstance(self.model.config, MotionModel):
            clips = motion.from_features(values.numpy())
            drawing.save_png(path, motion_plots.strips(clips[: SHOWN // 2], frames=SHOWN))
            return
        columns = 8
        if isinstance(self.model.config, VideoModel):
            columns = values.shape[1]
            shown = inputs.as_pictures(values[: SHOWN // 2].flatten(0, 1))
            tiles = [drawing.enlarge(picture, 96) for picture in shown]
        elif values.ndim == 4:
            tiles = [drawing.enlarge(picture, 96) for picture in inputs.as_pictures(values)]
        else:
            tiles = [drawing.draw_pose(pose) for pose in values.numpy()]
        drawing.save_png(path, drawing.sheet(tiles, columns))


def _to_device(examples: Examples, denoiser: Preconditioned) -> tuple[Tensor, Cond]:
    device = next(denoiser.parameters()).device
    return examples.x0.to(device), to_device(examples.cond, device)


class Speed:
    """Measures images per second, the share of the device's peak FLOPS, and the share of time spent waiting for examples."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.flops = monitoring.flops_per_image(trainer)
        self.peak = compute.peak_flops(trainer.device, trainer.compute) * trainer.world
        self.begin()

    def begin(self) -> None:
        """Start a new interval."""
        self.images, self.waited, self.since = self.trainer.nimg, self.trainer.data_wait_seconds, time.perf_counter()

    def measure(self) -> dict[str, float]:
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
    """The results of `Speed.measure` as metrics."""
    names = ("images_per_second", "flops_utilisation", "loader_wait")
    return [(f"speed.{name}", row[name], int(row["images"])) for row in rows for name in names]
