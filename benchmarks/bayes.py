"""How close training comes to the best possible loss, and samples to the data, on the asymmetric mixture:
`python -m benchmarks.bayes`."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

from benchmarks import mixture
from benchmarks.report import finish, table
from diffusion_core import presets
from diffusion_core.nets.mlp import MLP
from diffusion_core.sampling.loop import generate
from diffusion_core.schedules import sigma_level
from diffusion_core.training.trainer import TrainConfig, Trainer, evaluate

SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 10.0)
RECIPES = {
    "EDM": presets.edm(mixture.SD),
    "rectified flow": presets.rectified_flow(mixture.SD),
    "DDPM": presets.ddpm(mixture.SD),
}
BATCH, STEPS, COUNT = 512, 2000, 20_000


def main() -> int:
    """Train the three recipes, then print the table and the JSON line."""
    torch.set_num_threads(1)
    levels = sigma_level(torch.tensor(SIGMAS, dtype=torch.float64))
    test, other = (mixture.draw(seed, torch.arange(COUNT)) for seed in (99, 98))
    best = evaluate(mixture.denoiser(), test, {}, levels, batch=COUNT)
    null = mixture.sliced_w2(test, other)
    figures: dict[str, Any] = {"sliced_w2_null": null}
    goals = {}
    rows = [("recipe", "seconds", *(f"{sigma:g}" for sigma in SIGMAS), "sliced W2")]
    for name, recipe in RECIPES.items():
        torch.manual_seed(0)
        config = TrainConfig(
            images=STEPS * BATCH, batch=BATCH, learning_rate=2e-3, warmup_images=50 * BATCH,
            ema_halflife_images=100 * BATCH,
        )  # fmt: skip
        trainer = Trainer(
            recipe.denoiser(MLP(2, width=128, depth=3)), recipe, config, lambda i: (mixture.draw(1, i), {}), 10**7
        )
        start = time.process_time()
        while not trainer.done:
            trainer.step()
        seconds = time.process_time() - start
        model = trainer.averaged()
        excess = (evaluate(model, test, {}, levels, batch=COUNT) / best - 1).tolist()
        samples = generate(
            model, recipe.timesteps(100 if name == "DDPM" else 18), recipe.step, (2,), 0, torch.arange(COUNT)
        )
        distance = mixture.sliced_w2(samples, test)
        figures[name] = {
            "excess": dict(zip(map(str, SIGMAS), excess, strict=True)),
            "sliced_w2": distance,
            "seconds": seconds,
        }
        goals[f"{name}: excess over Bayes at most 5% at every sigma"] = max(excess) <= 0.05
        rows.append((name, f"{seconds:.0f}", *(f"{v:.3f}" for v in excess), f"{distance:.3f} (null {null:.3f})"))
    print(table(rows))
    return finish("bayes", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
