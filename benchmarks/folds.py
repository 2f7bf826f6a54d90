"""`python -m benchmarks.folds`: does `--folds` predict when a training on everything would begin to memorize?

Pose models (an MLP denoiser with EDM's recipe) of mannequins. N poses are dealt into three folds, models are trained without
each fold and on each, and the onsets with all N are predicted as `contrapposto train --folds 3` does. Then a model is trained
on all N, and its onsets are measured with 300 poses that no other training has seen. Goal: each predicted turn of the held-out
loss is within 25% of the measured one, and the safe length, 80% of the prediction, is before it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.memorization_training import SD, mannequin_poses
from benchmarks.report import finish, table
from diffusion_core import presets
from diffusion_core.codecs import Affine
from diffusion_core.nets.mlp import MLP
from diffusion_core.training.trainer import TrainConfig, Trainer
from tasks.common import files
from tasks.config.folds import Folds
from tasks.folds.dealing import deal
from tasks.folds.onset import Curve, grid, predict, safe_length
from tasks.metrics.features import joints
from tasks.metrics.membership_inference import SIGMAS, gaps, losses
from tasks.train.early_stopping import has_turned, relative_loss

FOLDS = 3
SIZES = (60, 120)
BATCH = 64
WIDTH, DEPTH = 128, 2
FRESH = 300  # poses on which the training on all is evaluated
LEVELS = SIGMAS[1:]
EVALUATED = 128
LONGEST = 4000  # steps


def train(x0: Tensor, heldout: Tensor, settings: Folds, label: str) -> Curve:
    """The evaluations of a training on x0 until its held-out loss has turned."""
    torch.manual_seed(0)
    recipe = presets.edm(sd=SD)
    trainer = Trainer(
        recipe.denoiser(MLP(x0.shape[1], width=WIDTH, depth=DEPTH)),
        recipe,
        TrainConfig(images=LONGEST * BATCH, batch=BATCH, warmup_images=20 * BATCH, ema_halflife_images=50 * BATCH),
        data=lambda index: (x0[index], {}),
        n=len(x0),
    )
    curve = Curve(len(x0), [], [], [], settings.patience)
    milestones = {-(-images // BATCH) for images in grid(40 * BATCH, LONGEST * BATCH, settings.evaluations_ratio)}
    for step in tqdm(range(1, LONGEST + 1), desc=label, mininterval=10):
        trainer.step()
        if step in milestones:
            denoiser = trainer.averaged()
            known, unseen = (losses(denoiser, some[:EVALUATED], {}, LEVELS, draws=1) for some in (x0, heldout))
            curve.images.append(trainer.nimg)
            curve.loss.append(relative_loss(LEVELS, (unseen.mean(1) * np.square(LEVELS)).tolist()))
            curve.alarming.append(any(gap.alarming for gap in gaps(LEVELS, known, unseen)))
            if has_turned(curve.loss, settings.patience):
                break
    return curve


def one(n: int, seed: int, settings: Folds, kept: dict[str, Any], keep: Callable[[], None]) -> dict[str, Any]:
    """Predicted and measured onsets for n poses. `kept`: finished trainings by name; `keep` writes them."""

    def trained(some: Tensor, heldout: Tensor, name: str) -> Curve:
        label = f"{n} poses, seed {seed}, {name}"
        if label not in kept:
            kept[label] = asdict(train(some, heldout, settings, label))
            keep()
        return Curve(**kept[label])

    x0 = torch.from_numpy(joints(mannequin_poses(1000 * (seed + 1), n)))
    fresh = torch.from_numpy(joints(mannequin_poses(10**6 + 1000 * seed, FRESH)))
    codec = Affine.fit(x0, SD, per_coordinate=True)
    x0, fresh = codec.encode(x0), codec.encode(fresh)
    fold = torch.from_numpy(deal([str(i) for i in range(n)], FOLDS, seed))
    large, small = (
        [
            trained(
                x0[(fold == number) == alone],
                x0[(fold == number) != alone],
                f"{'on' if alone else 'without'} fold {number + 1}",
            )
            for number in range(FOLDS)
        ]
        for alone in (False, True)
    )
    measured = trained(x0, fresh, "all")
    found: dict[str, Any] = {"n": n, "seed": seed}
    for kind in ("turn", "alarm"):
        predicted = predict(kind, large, small, n)
        found |= {
            f"{kind}.exponent": predicted.exponent,
            f"{kind}.predicted": predicted.images,
            f"{kind}.measured": getattr(measured, kind),
        }
        if kind == "turn":
            found["safe"] = safe_length(predicted, settings.safe_fraction, LONGEST * BATCH)
    return found


def main() -> int:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.folds", description=__doc__)
    parser.add_argument("--n", type=int, nargs="*", default=SIZES, help="how many poses there are")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--state", type=Path, help="file that keeps finished trainings")
    options = parser.parse_args()
    kept = files.read_json(options.state) if options.state and options.state.is_file() else {}
    keep = partial(files.write_json, options.state, kept) if options.state else lambda: None
    found = [one(n, seed, Folds(), kept, keep) for n in options.n for seed in range(options.seeds)]
    names = list(found[0])
    print(table([tuple(names), *(tuple(_cell(case[name]) for name in names) for case in found)]))
    goals = {}
    for case in found:
        of, measured, predicted = (
            f"{case['n']} poses, seed {case['seed']}",
            case["turn.measured"],
            case["turn.predicted"],
        )
        known = measured is not None and predicted is not None
        goals[f"{of}: the turn is predicted within 25%"] = known and abs(math.log(predicted / measured)) < math.log(
            1.25
        )
        goals[f"{of}: the safe length is before the turn"] = measured is None or case["safe"] <= measured
    return finish("folds", {"cases": found}, goals)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) and value < 10 else f"{value:.0f}"


if __name__ == "__main__":
    sys.exit(main())
