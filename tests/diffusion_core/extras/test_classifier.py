"""Classifiers of noisy examples: what they learn, and that their guidance is Bayes' rule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from diffusion_core import presets, rng
from diffusion_core.conditioning import Cond
from diffusion_core.extras import closed_form
from diffusion_core.extras.classifier import NoisyClassifier, guided, recipe_of
from diffusion_core.nets.mlp import MLP
from diffusion_core.recipe import Recipe
from diffusion_core.schedules import Level, trig
from diffusion_core.training.trainer import TrainConfig, Trainer

MEANS = torch.tensor([[1.0, 0.0], [-0.5, 0.5], [0.0, -1.0]], dtype=torch.float64)
SHARES, SD = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 0.3
LABELS = "vec:category"


def log_p(x: Tensor, level: Level) -> Tensor:
    """log p(class | x) of the mixture, `[B, 3]`, by Bayes' rule."""
    a, s = level
    variance = (a * SD) ** 2 + s**2
    return torch.log_softmax(SHARES.log() - ((x[:, None] - a * MEANS) ** 2).sum(2) / (2 * variance), 1)


class Exact(NoisyClassifier):
    """The mixture's own classifier."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity(), 1.0, lambda level: level.s)

    def forward(self, x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        return log_p(x, level)


def _guided(strength: float, labels: Tensor, x: Tensor, level: Level) -> Tensor:
    whole = closed_form.mixture(SHARES, MEANS, SD)
    return guided(whole, Exact(), LABELS, strength)(x, level, {LABELS: labels})


def test_strength_two_on_the_unconditional_denoiser_is_the_conditional_one() -> None:
    """p(x) p(c | x)^(w - 1) is p(x | c) up to a factor at w = 2; at w = 1 and without a label nothing changes."""
    x = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(30) % 3
    labels = one_hot(classes, 3)
    whole = closed_form.mixture(SHARES, MEANS, SD)
    for t in (0.1, 0.5, 0.9):
        level = trig()(torch.tensor(t, dtype=torch.float64))
        ours = _guided(2.0, labels, x, level)
        for c in range(3):
            only = closed_form.mixture(torch.ones(1, dtype=torch.float64), MEANS[c : c + 1], SD)
            torch.testing.assert_close(ours[classes == c], only(x, level, {})[classes == c])
        torch.testing.assert_close(_guided(1.0, labels, x, level), whole(x, level, {}))
        torch.testing.assert_close(_guided(2.0, torch.zeros_like(labels), x, level), whole(x, level, {}))
    start = Level(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    assert _guided(2.0, labels, x, start).isfinite().all()


@pytest.mark.parametrize("recipe", [presets.edm(0.7), presets.rectified_flow(0.7)], ids=["edm", "rectified flow"])
def test_a_trained_classifier_comes_near_bayes_rule(recipe: Recipe) -> None:
    ids = torch.arange(2000)
    classes = torch.multinomial(SHARES, 2000, True, generator=torch.Generator().manual_seed(0))
    x0 = (MEANS[classes] + SD * rng.normal((2,), 1, ids)).float()
    labels = one_hot(classes, 3).float()
    net = MLP(2, width=64, depth=2, out=3)
    trained = recipe_of(recipe, LABELS)
    classifier = NoisyClassifier(net, recipe.sd, recipe.c_noise)
    config = TrainConfig(images=40 * 250, batch=250, learning_rate=1e-2, ema_halflife_images=1000)
    trainer = Trainer(classifier, trained, config, lambda i: (x0[i], {LABELS: labels[i]}), len(x0))
    while not trainer.done:
        trainer.step()
    level = trig()(torch.tensor(0.4, dtype=torch.float64))
    x = level.corrupt(x0, rng.normal((2,), 2, ids).float())
    with torch.no_grad():
        ours = trainer.averaged().log_p(x, level, labels)
    exact = (log_p(x.double(), level) * labels).sum(1)
    assert float(exact.mean() - ours.double().mean()) < 0.05  # nats; knowing nothing costs 0.5
