"""Synthetic feature laws with known copies: the ground truth of the memorization benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasks.metrics.neighbours import search


@dataclass(frozen=True)
class Law:
    """Features float32 of width `width` on a curved manifold of dimension `latent`, with `modes` equal modes."""

    latent: int = 16
    width: int = 256
    modes: int = 10

    def _weights(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self.latent, self.width, self.modes])
        hidden = rng.normal(0, 1 / np.sqrt(self.latent), (self.latent, self.width))
        out = rng.normal(0, 1 / np.sqrt(self.width), (self.width, self.width))
        centres = rng.normal(0, 1, (self.modes, self.latent))
        return hidden, out, centres

    def latents(self, n: int, rng: np.random.Generator, modes: int | None = None) -> np.ndarray:
        """`n` points of the latent mixture; `modes` limits them to the first modes."""
        centres = self._weights()[2]
        return centres[rng.integers(0, modes or self.modes, n)] + rng.normal(0, 0.5, (n, self.latent))

    def features(self, latents: np.ndarray) -> np.ndarray:
        """The features of latent points: float32 `[n, width]`."""
        hidden, out, _ = self._weights()
        features: np.ndarray = np.tanh(latents @ hidden * 1.5) @ out
        return features.astype(np.float32)

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """`n` fresh features."""
        return self.features(self.latents(n, rng))

    def blurred(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """A copy-free generator that loses detail: the latent point is moved to its mode's centre in half of its
        directions."""
        centres = self._weights()[2]
        mode = rng.integers(0, self.modes, n)
        deviation = rng.normal(0, 0.5, (n, self.latent))
        deviation[:, ::2] *= 0.2
        return self.features(centres[mode] + deviation)

    def shrunk(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """A copy-free generator with too little variety: deviations from the mode times 0.8."""
        centres = self._weights()[2]
        mode = rng.integers(0, self.modes, n)
        return self.features(centres[mode] + rng.normal(0, 0.4, (n, self.latent)))

    def half_the_modes(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """A copy-free generator that knows only half of the modes."""
        return self.features(self.latents(n, rng, modes=self.modes // 2))

    def noisy(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """A copy-free generator whose features are noisy."""
        x = self.draw(n, rng)
        return x + rng.normal(0, 0.2 * x.std(), x.shape).astype(np.float32)


def with_copies(
    fresh: np.ndarray, train: np.ndarray, heldout: np.ndarray, count: int, eta: float, rng: np.random.Generator
) -> np.ndarray:
    """`fresh` with its first `count` rows replaced by copies of distinct training rows, moved by `eta` times the
    median distance of a held-out row to its nearest training row."""
    typical = np.median(search(heldout, train, 1).distance)
    step = rng.normal(size=(count, train.shape[1]))
    step *= eta * typical / np.linalg.norm(step, axis=1, keepdims=True)
    out = fresh.copy()
    out[:count] = train[rng.choice(len(train), count, replace=False)] + step
    return out
