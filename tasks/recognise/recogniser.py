"""A recogniser: small calibrated classifiers of persons, one for each view (landmarks, pixels).

A view is an ensemble of perceptrons on principal components of the features. A part of the training groups is withheld from
its training. On that part a temperature makes the confidence honest, and a radius is chosen: persons who are further than it
from the nearest training examples belong to no known category. Distances are Euclidean, between the last hidden activations
at unit length. For exchangeable data the chance that a known person is rejected is at most `false_rejection` (split conformal
prediction).

References:
    Guo et al. 2017, "On Calibration of Modern Neural Networks" (temperature scaling).
    Lakshminarayanan et al. 2017, "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles".
    Sun et al. 2022, "Out-of-Distribution Detection with Deep Nearest Neighbors".
    Vovk et al. 2005, "Algorithmic Learning in a Random World" (conformal prediction).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tasks.common import checkpoint
from tasks.common.errors import DataError
from tasks.config.recognition import Recognition
from tasks.metrics import calibration

FORMAT = 1
VIEWS = ("landmarks", "pixels")
COMPONENTS = 128
MEMBERS = 4  # perceptrons of an ensemble
WIDTH = 128
BATCH = 64  # examples a step and member
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.1
DROPOUT, NOISE = 0.3, 0.2  # NOISE: standard deviation on features whose average variance is 1
NEIGHBOUR = 3  # the distance is that to the third nearest training example: one mislabelled example proves nothing
LAYERS = 3


class State(StrEnum):
    """What a recogniser says of a person."""

    KNOWN = "known"  # the category is named
    UNSURE = "unsure"  # several categories are possible
    UNKNOWN = "unknown"  # unlike every training example


@dataclass(frozen=True)
class Answers:
    """What one view says of n persons."""

    logits: np.ndarray  # float64 [n, k], divided by the temperature
    distance: np.ndarray  # float64 [n], see View
    radius: float
    min_confidence: float

    @property
    def probabilities(self) -> np.ndarray:
        """Float64 `[n, k]`."""
        return calibration.softmax(self.logits)

    @property
    def confidence(self) -> np.ndarray:
        """The probability of the most likely category, `[n]`."""
        highest: np.ndarray = self.probabilities.max(axis=1)
        return highest

    @property
    def category(self) -> np.ndarray:
        """The number of the most likely category, `[n]`."""
        return np.asarray(self.logits.argmax(axis=1))

    @property
    def states(self) -> list[State]:
        """Whether each person's category is named."""
        unknown, unsure = self.distance > self.radius, self.confidence < self.min_confidence
        return [
            State.UNKNOWN if far else State.UNSURE if doubtful else State.KNOWN
            for far, doubtful in zip(unknown, unsure, strict=True)
        ]

    @property
    def known(self) -> np.ndarray:
        """Which persons' categories are named, bool `[n]`."""
        return np.array([state is State.KNOWN for state in self.states], bool)


@dataclass(frozen=True)
class View:
    """The classifier of one kind of features."""

    mean: Tensor  # [d]
    components: Tensor  # [d, p]; the projections have variance 1 on average
    layers: tuple[Tensor, ...]  # weights [members, in, out] and biases [members, 1, out] in turn
    reference: Tensor  # [n, members * WIDTH]: the hidden activations of the training examples
    temperature: float
    radius: float  # infinite if there are too few examples to tell

    def answers(self, features: np.ndarray, min_confidence: float) -> Answers:
        """What is said of features `[n, 2, d]`; see `tasks.recognise.features`."""
        logits, hidden = _read(_project(features, self.mean, self.components), self.layers)
        return Answers(logits / self.temperature, _distances(hidden, self.reference), self.radius, min_confidence)


def _project(features: np.ndarray, mean: Tensor, components: Tensor) -> Tensor:
    return (torch.from_numpy(features).float() - mean) @ components


@torch.no_grad()
def _read(points: Tensor, layers: tuple[Tensor, ...]) -> tuple[np.ndarray, Tensor]:
    """Logits float64 `[n, k]`, averaged over members and mirror images, and hidden activations `[n, 2, h]` of unit length.

    `points`: `[n, 2, p]`.
    """
    n = len(points)
    logits, hidden = _forward(points.reshape(1, 2 * n, -1).expand(MEMBERS, -1, -1), layers)
    unit = functional.normalize(hidden.transpose(0, 1).flatten(1), dim=1)
    return logits.mean(dim=0).reshape(n, 2, -1).mean(dim=1).double().numpy(), unit.reshape(n, 2, -1)


def _forward(x: Tensor, layers: tuple[Tensor, ...], drop: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Logits and last hidden activations of `[members, n, p]`."""
    for i in range(LAYERS - 1):
        x = functional.gelu(torch.baddbmm(layers[2 * i + 1], x, layers[2 * i]))
        if drop is not None:
            x = x * (torch.rand(x.shape, generator=drop) >= DROPOUT) / (1 - DROPOUT)
    return torch.baddbmm(layers[-1], x, layers[-2]), x


def _distances(hidden: Tensor, reference: Tensor) -> np.ndarray:
    """The distance of each person, or its mirror image if that is nearer, to the NEIGHBOUR-th nearest training example."""
    neighbour = min(NEIGHBOUR, len(reference))
    rows = [torch.cdist(side, reference).kthvalue(neighbour, dim=1).values for side in hidden.unbind(1)]
    return torch.minimum(*rows).numpy().astype(np.float64)


def fit(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: int, settings: Recognition) -> View:
    """Train a view on features `[n, 2, d]` with labels int `[n]`; examples of one group stay on one side of the division."""
    held_back = _calibration_part(groups, settings)
    x, y = features[~held_back], torch.from_numpy(labels[~held_back].astype(np.int64))
    mean, components = _principal_components(x)
    points = _project(x, mean, components)
    layers = _train(points, y, classes, settings)
    reference = _read(points, layers)[1].flatten(0, 1)
    logits, hidden = _read(_project(features[held_back], mean, components), layers)
    temperature = calibration.temperature(logits, labels[held_back])
    radius = conformal_limit(_distances(hidden, reference), settings.false_rejection)
    return View(mean, components, layers, reference, temperature, radius)


def _calibration_part(groups: np.ndarray, settings: Recognition) -> np.ndarray:
    """Which examples are withheld from the training, bool `[n]`: whole groups in random order."""
    names = np.unique(groups)
    chosen = np.random.default_rng(settings.seed).permutation(names)
    return np.isin(groups, chosen[: max(1, round(settings.calibration * len(names)))])


def conformal_limit(scores: np.ndarray, level: float) -> float:
    """The smallest limit that a new, exchangeable score exceeds with probability at most `level`.

    Infinite for too few scores.
    """
    rank = math.ceil((len(scores) + 1) * (1 - level))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def _principal_components(features: np.ndarray) -> tuple[Tensor, Tensor]:
    """The mean, and at most COMPONENTS directions, scaled so that the projections have variance 1 on average."""
    x = torch.from_numpy(features).double().reshape(-1, features.shape[-1])
    mean = x.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov((x - mean).T))
    vectors, values = vectors.flip(1)[:, :COMPONENTS], values.flip(0)[:COMPONENTS]
    # A direction's sign is arbitrary. Fixed, it does not depend on the library.
    signs = torch.sign(vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)))
    return mean.float(), (vectors * signs / values.mean().clamp(min=1e-12).sqrt()).float()


def _train(points: Tensor, labels: Tensor, classes: int, settings: Recognition) -> tuple[Tensor, ...]:
    """The layers of all members, trained side by side with AdamW on the person or the mirror image, with noise and dropout."""
    generator = torch.Generator().manual_seed(settings.seed)
    widths = [points.shape[-1], *[WIDTH] * (LAYERS - 1), classes]
    layers: list[Tensor] = []
    for before, after in pairwise(widths):
        weight = torch.randn(MEMBERS, before, after, generator=generator) / before**0.5
        layers += [weight.requires_grad_(), torch.zeros(MEMBERS, 1, after).requires_grad_()]
    optimiser = torch.optim.AdamW(layers, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    for _ in range(settings.steps):
        rows = torch.randint(len(points), (MEMBERS, BATCH), generator=generator)
        side = torch.randint(2, (MEMBERS, BATCH), generator=generator)
        x = points[rows, side]
        x = x + NOISE * torch.randn(x.shape, generator=generator)
        logits, _ = _forward(x, tuple(layers), generator)
        # The sum over the members: each learns as if it were alone.
        loss = MEMBERS * functional.cross_entropy(logits.flatten(0, 1), labels[rows].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return tuple(layer.detach() for layer in layers)


@dataclass(frozen=True)
class Recogniser:
    """The trained views of a dataset, by name (VIEWS)."""

    categories: list[str]
    margin: float  # of the crops whose pixels are looked at, see `tasks.dataset.crop`
    min_confidence: float
    views: dict[str, View]

    def answers(self, view: str, features: np.ndarray) -> Answers:
        """What a view says of features `[n, 2, d]`."""
        return self.views[view].answers(features, self.min_confidence)


def save(path: Path, recogniser: Recogniser, meta: dict[str, Any]) -> None:
    """Write a recogniser as safetensors with JSON, atomically."""
    tensors: dict[str, Tensor] = {}
    views = {}
    for name, view in recogniser.views.items():
        parts = {"mean": view.mean, "components": view.components, "reference": view.reference}
        parts |= {f"layer{i}": layer for i, layer in enumerate(view.layers)}
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        radius = view.radius if math.isfinite(view.radius) else None
        views[name] = {"temperature": view.temperature, "radius": radius}
    about = {
        "recogniser": FORMAT, "categories": recogniser.categories, "margin": recogniser.margin,
        "min_confidence": recogniser.min_confidence, "views": views,
    }  # fmt: skip
    checkpoint.save(path, tensors, {**about, **meta})


def load(path: Path) -> Recogniser:
    """The recogniser in a file. Raises DataError if it is missing, damaged, or not a recogniser of this version."""
    tensors, meta = checkpoint.load(path)
    if meta.get("recogniser") != FORMAT:
        raise DataError(f"{path} is not a recogniser of this version.")
    views = {}
    for name, about in meta["views"].items():
        parts = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        views[name] = View(
            parts["mean"],
            parts["components"],
            tuple(parts[f"layer{i}"] for i in range(2 * LAYERS)),
            parts["reference"],
            about["temperature"],
            math.inf if about["radius"] is None else about["radius"],
        )
    return Recogniser(meta["categories"], meta["margin"], meta["min_confidence"], views)
