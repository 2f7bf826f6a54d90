"""Stage `loss_gap`: does a model denoise its training examples better than held-out ones? Writes reports/loss_gap/.

The earliest sign of memorization: before a single sample is a copy, small noise is removed better from examples that
were trained on. Per noise level, the same noise is added to both sets, and AUC = P(training loss < held-out loss) is
0.5 where the model cannot tell them apart.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.special import ndtri
from scipy.stats import rankdata
from torch import Tensor

from diffusion_core import rng
from diffusion_core.cond import Cond
from diffusion_core.denoiser import Denoiser
from diffusion_core.level import sigma_level
from tasks import artifacts, models
from tasks.dataset.shards import ShardDataset
from tasks.files import new_folder, write_json
from tasks.params import Params

SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # in the network's units, where data have standard deviation 0.5
DRAWS = 4  # of the noise, for each example and level
MOST = 256  # examples of each set
BATCH = 256
ALARM = 0.55  # an AUC whose whole interval lies above is a model that knows its training set


@dataclass(frozen=True)
class LevelGap:
    """Mean relative losses of both sets at one noise level, and the AUC with its 95% interval."""

    sigma: float
    train: float
    heldout: float
    auc: float
    low: float
    high: float

    @property
    def alarming(self) -> bool:
        """Whether training examples are recognised beyond doubt."""
        return self.low > ALARM


def auc(train: np.ndarray, heldout: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """P(train < held-out) for losses `[n]` and `[m]`, ties counted half, with the interval of DeLong et al. 1988.

    The share of held-out losses above each training loss (and of training losses below each held-out one) are the
    two samples whose variances add up to that of the AUC. Needs two examples of each.
    """
    n, m = len(train), len(heldout)
    ranks = rankdata(np.concatenate([train, heldout]))
    above = 1 - (ranks[:n] - rankdata(train)) / m
    below = (ranks[n:] - rankdata(heldout)) / n
    value = float(above.mean())
    reach = float(ndtri(0.5 + level / 2) * np.sqrt(above.var(ddof=1) / n + below.var(ddof=1) / m))
    return value, max(0.0, value - reach), min(1.0, value + reach)


def gaps(sigmas: tuple[float, ...], train: np.ndarray, heldout: np.ndarray) -> list[LevelGap]:
    """The gap at each level from losses `[levels, n]` and `[levels, m]`."""
    return [
        LevelGap(sigma, float(a.mean()), float(b.mean()), *auc(a, b))
        for sigma, a, b in zip(sigmas, train, heldout, strict=True)
    ]


@torch.no_grad()
def losses(denoiser: Denoiser, x0: Tensor, cond: Cond, sigmas: tuple[float, ...], seed: int = 0) -> np.ndarray:
    """mean |D(x0 + sigma eps) - x0|^2 / sigma^2 of every example `[n, *S]` at every level: float64 `[levels, n]`.

    Example i of any set gets the same DRAWS draws of noise, so that two sets differ by their examples only.
    """
    out = np.zeros((len(sigmas), len(x0)))
    for start in range(0, len(x0), BATCH):
        rows = slice(start, start + BATCH)
        here = x0[rows]
        some = {key: value[rows] for key, value in cond.items()}
        ids = torch.arange(start, start + len(here), device=x0.device)
        for draw in range(DRAWS):
            noise = rng.normal(x0.shape[1:], (seed, draw), ids).to(here)
            for row, sigma in enumerate(sigmas):
                level = sigma_level(torch.tensor(sigma, dtype=torch.float64))
                error = denoiser(level.corrupt(here, noise), level, some) - here
                out[row, rows] += (error.square().flatten(1).mean(1).double() / sigma**2).cpu().numpy() / DRAWS
    return out


def of_model(root: Path, name: str) -> list[LevelGap]:
    """The gaps of a trained model between root/data/shards' training and held-out examples, MOST of each.

    Empty if a set has fewer than two examples. Raises DataError if the model or the shards are missing.
    """
    model = models.load(root / "artifacts" / name, models.device())
    seen = ShardDataset(root / "data/shards", "train")
    unseen = [ShardDataset(root / "data/shards", split) for split in ("val", "test")]
    table = []
    for parts in ([seen], unseen):
        found = [models.examples(part, model.config, model.categories, mirrored=False) for part in parts if len(part)]
        if sum(map(len, found)) < 2:
            return []
        cond = {key: torch.cat([part.cond[key] for part in found]) for key in found[0].cond}
        chosen = models.Examples(model.codec.encode(torch.cat([part.x0 for part in found])), cond).some(MOST)
        x0 = chosen.x0.to(models.device())
        cond = {key: value.to(x0.device) for key, value in chosen.cond.items()}
        table.append(losses(model.denoiser, x0, cond, SIGMAS))
    return gaps(SIGMAS, *table)


def draw(found: dict[str, list[LevelGap]], path: Path) -> None:
    """PNG: above, train and held-out loss against the noise level; below, the AUC with its interval. A column a model."""
    figure = Figure(figsize=(4.8 * len(found), 5.4), layout="constrained")
    for column, (name, rows) in zip(figure.subplots(2, len(found), squeeze=False).T, found.items(), strict=True):
        sigma = [row.sigma for row in rows]
        column[0].set_title(name, fontsize=10)
        column[0].plot(sigma, [row.train for row in rows], "o-", color="#7f8c8d", label="train")
        column[0].plot(sigma, [row.heldout for row in rows], "o-", color="#2c3e50", label="held-out")
        column[0].set_yscale("log")
        column[0].set_ylabel("loss / noise variance")
        column[0].legend(fontsize=8)
        value = np.array([(row.auc, row.auc - row.low, row.high - row.auc) for row in rows]).reshape(-1, 3).T
        column[1].errorbar(sigma, value[0], yerr=value[1:], fmt="o-", color="#2980b9", capsize=3)
        column[1].axhline(0.5, color="#7f8c8d", linewidth=0.8)
        column[1].axhline(ALARM, color="#c0392b", linewidth=0.8, linestyle="--")
        column[1].set_ylim(0.3, 1.02)
        column[1].set_ylabel("AUC: train known from held-out")
        for axes in column:
            axes.set_xscale("log")
            axes.set_xlabel("noise level sigma (data: 0.5)")
            axes.grid(alpha=0.3, linewidth=0.4)
    figure.savefig(path, dpi=110)


def _sentence(rows: list[LevelGap]) -> str:
    if not rows:
        return "Too few examples to compare the losses of training and held-out examples."
    alarming = [row for row in rows if row.alarming]
    worst = max(rows, key=lambda row: row.low)
    told = f"AUC {worst.auc:.2f}, 95% interval {worst.low:.2f} to {worst.high:.2f}, at noise level {worst.sigma:g}"
    if alarming:
        return f"The model knows its training examples from held-out ones by their loss ({told})."
    return f"The model does not know its training examples from held-out ones by their loss (at most {told})."


def run(params: Params, root: Path) -> None:
    """Loss gaps of both models; writes loss_gap.json (per model: alarm, sentence, levels; flat metrics) and a figure."""
    found = {name: of_model(root, name) for name in artifacts.MODELS}
    entries: dict[str, Any] = {
        name: {
            "alarm": any(row.alarming for row in rows),
            "sentence": _sentence(rows),
            "levels": [asdict(row) for row in rows],
        }
        for name, rows in found.items()
    }
    metrics = {f"{name}.loss_gap_auc.sigma_{row.sigma:g}": row.auc for name, rows in found.items() for row in rows}
    with new_folder(root / "reports/loss_gap") as folder:
        compared = {name: rows for name, rows in found.items() if rows}
        if compared:
            draw(compared, folder / "loss_gap.png")
        write_json(folder / "loss_gap.json", {"models": entries, "metrics": metrics})
