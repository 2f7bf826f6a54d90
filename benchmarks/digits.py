"""Memorization of 8x8 digits by diffusion models, against the number of examples and of steps: `python -m benchmarks.digits`.

The onset of memorization, in steps, grows in proportion to the number of examples; the gap between training and validation loss
at low noise rises before; augmentation that the net is told about delays it without leaking into the samples.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from benchmarks.report import finish, table
from diffusion_core import augment, exact, measure, presets, rng
from diffusion_core.cond import Cond
from diffusion_core.denoiser import Denoiser
from diffusion_core.level import sigma_level
from diffusion_core.nets.mlp import MLP
from diffusion_core.recipe import Recipe
from diffusion_core.sample import generate
from diffusion_core.train import TrainConfig, Trainer, evaluate

BATCH, EVERY, SAMPLES = 256, 100, 400
SIGMAS = (0.1, 0.6, 2.0)
ONSET = 0.1  # share of copies at which memorization has set in


def digits() -> Tensor:
    """All digits in a fixed random order, `[1797, 64]` float32 in -1 ... 1."""
    data = torch.from_numpy(load_digits().data).float() / 8 - 1
    return data[torch.argsort(rng.bits(0, torch.arange(len(data)), 1)[:, 0])]


def copied(samples: Tensor, train: Tensor) -> float:
    """Share of samples less than a third as far from the nearest example as from the second nearest.

    Yoon et al. 2023 (ICML workshop on structured probabilistic inference); Gu et al. 2023 (arXiv 2310.02664).
    """
    near = torch.cdist(samples, train).topk(2, largest=False).values
    return float((near[:, 0] < near[:, 1] / 3).float().mean())


def edge_ink(pictures: Tensor) -> float:
    """Mean ink (0 to 1) in the outermost columns, where digits have next to none: shifted samples have more."""
    return float((pictures.reshape(-1, 8, 8)[:, :, [0, 7]] + 1).mean() / 2)


def draw(denoiser: Denoiser, recipe: Recipe, cond: Callable[[int], dict[str, Tensor]], count: int) -> Tensor:
    """Samples by 18 Heun steps, `[count, 64]`."""
    return generate(denoiser, recipe.walk(18), recipe.step, (64,), 1, torch.arange(count), cond(count))


def shifted(x0: Tensor, cond: Cond, seed: int, ids: Tensor) -> tuple[Tensor, Cond]:
    """Half of the examples shifted by one pixel or none in each direction, with the shift as a condition."""
    u = rng.uniform((3,), seed, ids)
    chosen = augment.identity(len(ids))
    chosen[:, 4:6] = (u[:, :2] * 3).floor() - 1
    chosen[:, 4:6] *= (u[:, 2:] < 0.5) / 8
    moved, cond = augment.pictures(x0.reshape(-1, 1, 8, 8), cond, chosen)
    return moved.flatten(1), cond


class Run:
    """One training run on the first n digits; the rest is held out."""

    def __init__(self, pictures: Tensor, n: int, augmented: bool = False) -> None:
        self.train, self.held = pictures[:n], pictures[-360:]
        scale = measure.data_scale(pictures)
        self.recipe = presets.edm(scale.sd)
        self.augmented = augmented
        torch.manual_seed(0)
        net = MLP(64, width=512, depth=4, conds={"vec:augment": augment.WIDTH} if augmented else {})
        config = TrainConfig(
            images=10**9, batch=BATCH, learning_rate=1e-3, warmup_images=50 * BATCH, ema_halflife_images=20 * BATCH
        )
        transform = shifted if augmented else None
        self.trainer = Trainer(self.recipe.denoiser(net), self.recipe, config, self.data, n, transform=transform)
        self.steps: list[int] = []
        self.memorized: list[float] = []
        self.gaps: list[list[float]] = []

    def data(self, indices: Tensor) -> tuple[Tensor, Cond]:
        """Examples without conditions."""
        return self.train[indices], {}

    def cond(self, count: int) -> dict[str, Tensor]:
        """The conditions of sampling: no augmentation."""
        return {"vec:augment": augment.identity(count)} if self.augmented else {}

    def advance(self, steps: int) -> None:
        """Train, and look every EVERY steps."""
        for _ in range(steps):
            self.trainer.step()
            done = self.trainer.nimg // BATCH
            if done % EVERY == 0:
                model = self.trainer.averaged()
                levels = sigma_level(torch.tensor(SIGMAS, dtype=torch.float64))
                train, held = (evaluate(model, x, self.cond(len(x)), levels) for x in (self.train, self.held))
                self.steps.append(done)
                self.memorized.append(copied(draw(model, self.recipe, self.cond, SAMPLES), self.train))
                self.gaps.append((held / train).tolist())

    def until_onset(self, most: int) -> float:
        """Steps at which the share of copies reaches ONSET, between looks by a straight line; infinite beyond `most`."""
        while not self.memorized or self.memorized[-1] < ONSET:
            if self.steps and self.steps[-1] >= most:
                return float("inf")
            self.advance(EVERY)
        if len(self.memorized) == 1:
            return float(EVERY)
        before, after = self.memorized[-2:]
        return self.steps[-2] + EVERY * (ONSET - before) / (after - before)


def main() -> int:
    """Train, print the tables and the JSON line."""
    pictures = digits()
    held = pictures[-360:]
    figures: dict = {"edge_ink_real": edge_ink(pictures)}
    goals = {}
    rows = [("examples", "onset, steps", "passes", "val / train loss at sigma 0.1 a quarter of the way", "at onset")]
    onsets = {}
    for n in (50, 100, 200):
        run = Run(pictures, n)
        onsets[n] = onset = run.until_onset(40 * n)
        early = run.gaps[max(len(run.gaps) // 4 - 1, 0)][0]
        figures[f"n={n}"] = {
            "onset_steps": onset, "memorized": dict(zip(run.steps, run.memorized, strict=True)), "gaps": run.gaps,
        }  # fmt: skip
        goals[f"n={n}: the gap at sigma 0.1 is above 1.5 before memorization sets in"] = early > 1.5
        rows.append((str(n), f"{onset:.0f}", f"{onset * BATCH / n:.0f}", f"{early:.2f}", f"{run.gaps[-1][0]:.2f}"))
        oracle = exact.empirical(run.train)
        empirical = copied(draw(oracle, run.recipe, lambda count: {}, SAMPLES), run.train)
        figures[f"n={n}"] |= {"empirical": empirical, "held_out": copied(held, run.train)}
        goals[f"n={n}: the empirical denoiser copies all, held-out digits are no copies"] = (
            empirical == 1.0 and figures[f"n={n}"]["held_out"] == 0.0
        )
    per_example = [onsets[n] / n for n in onsets]
    middle = sorted(per_example)[1]
    goals["onset proportional to the number of examples within 25%"] = all(
        abs(value / middle - 1) < 0.25 for value in per_example
    )
    steps = int(min(1.6 * onsets[200], 4000) // EVERY * EVERY)
    for name, run in (("plain", Run(pictures, 200)), ("conditioned shifts", Run(pictures, 200, augmented=True))):
        run.advance(steps)
        samples = draw(run.trainer.averaged(), run.recipe, run.cond, 1000)
        figures[name] = {"steps": steps, "memorized": copied(samples, run.train), "edge_ink": edge_ink(samples)}
        rows.append((f"200, {name}", f"{steps} steps", f"{figures[name]['memorized']:.3f} copied",
                     f"edge ink {figures[name]['edge_ink']:.4f}", ""))  # fmt: skip
    plain, told = figures["plain"], figures["conditioned shifts"]
    goals["conditioned augmentation copies less than half of plain"] = told["memorized"] < 0.5 * plain["memorized"]
    goals["conditioned augmentation leaks within 10% of plain"] = told["edge_ink"] < 1.1 * plain["edge_ink"]
    print(table(rows))
    return finish("digits", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
