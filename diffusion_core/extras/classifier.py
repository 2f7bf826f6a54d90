"""Classifiers of noisy examples, whose gradients guide sampling. Dhariwal & Nichol 2021 (arXiv 2105.05233), section 4."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser, Preconditioned
from diffusion_core.guidance import Strength, classifier_guidance, strength_at
from diffusion_core.losses import Weight
from diffusion_core.recipe import Recipe
from diffusion_core.schedules import Level
from diffusion_core.targets import X0


class NoisyClassifier(Preconditioned):
    """Logits of the classes of x `[B, *S]` at a noise level, `[B, classes]`, in the dtype of x.

    `net: (x, c_noise [B], cond) -> [B, classes]`, `[B, n, classes]` for tokens, or `[B, classes, side, side]` for pictures. Its
    result is averaged over all places. The input is scaled as a denoiser's.
    """

    def __init__(self, net: nn.Module, sd: float, c_noise: Callable[[Level], Tensor]) -> None:
        super().__init__(net, X0, sd, c_noise)

    def forward(self, x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        places = self.predict(x, level, cond)
        if places.ndim == 2:
            return places
        return places.mean(1) if places.ndim == 3 else places.flatten(2).mean(2)

    def log_p(self, x: Tensor, level: Level, labels: Tensor) -> Tensor:
        """log p(class | x), `[B]`, for labels one-hot `[B, classes]`; 0 for rows without a label (all zeros)."""
        return (log_softmax(self(x, level), 1) * labels.to(x)).sum(1)


def recipe_of(recipe: Recipe, key: str) -> Recipe:
    """The recipe that trains a `NoisyClassifier` at the noise levels of `recipe`: cross-entropy with the condition `key`.

    `key` holds the class one-hot. Levels are drawn as by `recipe`, but a schedule that it learned is not trained further.
    """

    def loss(
        classifier: NoisyClassifier, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond
    ) -> Tensor:
        logits = classifier(level.corrupt(x0, noise), level)
        return cross_entropy(logits.float(), cond[key].argmax(1), reduction="none")

    density = recipe.density
    return recipe.replace(loss=loss, importance=None, density=lambda u: density(u))


def guided(
    denoiser: Denoiser, classifier: NoisyClassifier, key: str, strength: Strength, rescale: float = 0.0
) -> Denoiser:
    """The denoiser of p(x | c) p(c | x)^(w - 1) for the class c in the condition `key`: w = 1 is no guidance.

    That is the law which classifier-free guidance of the same strength w has as its aim. Nothing is added at a = 0, where x
    holds no signal.
    """

    def denoise(x: Tensor, level: Level, cond: Cond) -> Tensor:
        if key not in cond or not bool((level.a > 0).all()):
            return denoiser(x, level, cond)
        labels, beyond = cond[key], strength_at(strength, level) - 1
        towards = classifier_guidance(
            denoiser, lambda x, level: classifier.log_p(x, level, labels), lambda _: beyond, rescale
        )
        return towards(x, level, cond)

    return denoise
