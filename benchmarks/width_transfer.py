"""Does a learning rate carry over from narrow networks to wide ones? The patch transformer at widths of 64 to 512.

    python -m benchmarks.width_transfer [--steps 100] [--widths 64 128 256 512]

Every width is trained with every rate of Muon (AdamW's stays in proportion, as in params.yaml) and with AdamW alone, on the
same batches of mannequins as principal components, 16 tokens each; the table shows the mean loss over the last fifth of the
steps, relative to the best of the width. A rate carries over if the best one is the same, or next to it, at all widths.
"""

from __future__ import annotations

import argparse
import sys
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import finish, table
from diffusion_core import presets
from diffusion_core.codecs import Latent
from diffusion_core.nets.autoencoder import Autoencoder
from diffusion_core.nets.patch_transformer import PatchTransformer
from diffusion_core.training.compute import Compute, best_precision
from diffusion_core.training.trainer import TrainConfig, Trainer

SIZE, COUNT, DEPTH, BATCH = 32, 512, 2, 64
MUON = (0.00125, 0.0025, 0.005, 0.01, 0.02)
ADAMW = (0.0005, 0.001, 0.002, 0.004, 0.008)
RATIO = 0.3  # AdamW's rate beside Muon's, as in params.yaml


def examples() -> Tensor:
    """Mannequins of SIZE pixels as 32 principal components of patches of 8 pixels, `[COUNT, 32, 4, 4]`."""
    from tasks.synthetic.stage import picture

    def small(index: int) -> np.ndarray:
        image = picture(0, index, 2 * SIZE).image.astype(np.float32)
        half: np.ndarray = image.reshape(SIZE, 2, SIZE, 2, 3).mean(axis=(1, 3))
        return half

    x = torch.from_numpy(np.stack([small(i) for i in range(COUNT)])).permute(0, 3, 1, 2) / 127.5 - 1
    net = Autoencoder(8, 32, widths=())
    net.start_from_pca(x)
    return Latent.fit(net, x, 0.5).encode(x)


def loss(x: Tensor, width: int, optimiser: Literal["muon", "adamw"], rate: float, steps: int) -> float:
    """Mean training loss over the last fifth of the steps."""
    torch.manual_seed(0)
    recipe = presets.edm(0.5, p_mean=-0.8)
    net = PatchTransformer(4, 1, channels=32, width=width, depth=DEPTH, heads=4)
    config = TrainConfig(
        images=steps * BATCH, batch=BATCH, optimiser=optimiser, learning_rate=rate * RATIO if optimiser == "muon" else rate,
        muon_learning_rate=rate, warmup_images=steps * BATCH // 10, cooldown_images=steps * BATCH // 2,
    )  # fmt: skip
    compute = Compute(best_precision(torch.device("cpu")))
    trainer = Trainer(recipe.denoiser(net), recipe, config, lambda i: (x[i], {}), len(x), compute=compute)
    losses = []
    while not trainer.done:
        losses.append(trainer.step().loss)
    return sum(losses[-(steps // 5) :]) / (steps // 5)


def main(arguments: list[str]) -> int:
    """Print a table for each optimiser and the line of figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    given = parser.parse_args(arguments)
    x, figures, goals = examples(), dict[str, float](), dict[str, bool]()
    optimisers: tuple[tuple[Literal["muon", "adamw"], tuple[float, ...]], ...] = (("muon", MUON), ("adamw", ADAMW))
    for optimiser, rates in optimisers:
        rows, best = [(optimiser, *(f"{rate:g}" for rate in rates))], []
        for width in given.widths:
            losses = [loss(x, width, optimiser, rate, given.steps) for rate in rates]
            best.append(losses.index(min(losses)))
            rows.append((str(width), *(f"{value / min(losses):.3f}" for value in losses)))
            figures |= {f"{optimiser}.{width}.{rate:g}": round(v, 5) for rate, v in zip(rates, losses, strict=True)}
            print(table(rows), flush=True)
        figures |= {f"{optimiser}.best.{width}": rates[i] for width, i in zip(given.widths, best, strict=True)}
        if optimiser == "muon":
            goals["muon: the best rates of all widths lie within a factor of two"] = max(best) - min(best) <= 1
    return finish("width_transfer", figures, goals)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
