"""`python -m benchmarks.memorization_training`: the certificate during real training (M7).

Pose models (an MLP denoiser with EDM's recipe) are trained on 100, 400 and 2000 mannequin poses. Along the way it
measures held-out loss, loss gap, verdict, and the Frechet distance to the training set and to held-out poses. The
small sets must be caught, the large one must not, and the held-out loss must have risen before the first alarm. With
`--figure`, all of it against the steps as PNG.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.report import finish, table
from diffusion_core import presets
from diffusion_core.codecs import Affine
from diffusion_core.nets.mlp import MLP
from diffusion_core.sampling.loop import generate
from diffusion_core.training.trainer import TrainConfig, Trainer
from tasks.common import files, machine
from tasks.common.skeleton import normalise
from tasks.evaluate.memorization import positive_control
from tasks.evaluate.memorization.certificate import certify, score_samples
from tasks.evaluate.memorization.copy_test import Verdict
from tasks.evaluate.memorization.invariances import POSE_BANKS
from tasks.evaluate.memorization.reference import Items, Reference, make_reference
from tasks.metrics.features import joints
from tasks.metrics.frechet import frechet_of
from tasks.metrics.membership_inference import gaps, losses
from tasks.plots import colours
from tasks.synthetic.stage import scene

SIZES = (100, 400, 2000)
CHECKED = (250, 380, 550, 820, 1230, 1820, 2710, 4030, 6000)  # steps
BATCH = 128
SAMPLES = 500
SD = 0.5  # of what the network sees
SIGMAS = (0.03, 0.1, 0.5)  # in the network's units
UNSEEN = 500  # held-out poses of the copy test
REFERENCE = 1000  # more held-out poses, for the distance
Row = dict[str, Any]


def mannequin_poses(first: int, count: int) -> np.ndarray:
    """True poses of the built-in data, float32 `[count, 33, 3]`, normalised."""
    return np.stack([normalise(scene(0, index, 64).joints) for index in range(first, first + count)]).astype(np.float32)


def _check(trainer: Trainer, codec: Affine, compared: Reference, distant: np.ndarray) -> Row:
    """All measurements at one step."""
    denoiser = trainer.averaged()
    train, unseen = compared.train.data, compared.heldout.data
    encoded = [codec.encode(torch.from_numpy(joints(some))) for some in (train[:500], unseen)]
    rows = gaps(SIGMAS, *(losses(denoiser, x0, {}, SIGMAS) for x0 in encoded))
    recipe = trainer.recipe
    z = generate(denoiser, recipe.timesteps(18), recipe.step, (99,), 0, torch.arange(SAMPLES), {}, batch=SAMPLES)
    poses = codec.decode(z).numpy().reshape(-1, 33, 3)
    scored = score_samples("poses", poses, compared)
    certificate = certify("poses", scored, compared, positive_control.poses(train), np.random.default_rng(0))
    return {
        "step": trainer.nimg // BATCH,
        "heldout_loss": float(np.mean([row.heldout * row.sigma**2 for row in rows])),
        "auc_small_noise": rows[0].auc,
        "loss_gap_alarm": any(row.alarming for row in rows),
        "verdict": certificate.verdict.value,
        "p_tail": certificate.tail_p,
        "p_split": certificate.split.p,
        "listed": float(certificate.copies.mean()),
        "third_rule": float((certificate.banks[0].samples.ratio < 1 / 3).mean()),
        "frechet_to_train": frechet_of(joints(poses), joints(train)),
        "frechet_to_heldout": frechet_of(joints(poses), joints(distant)),
        "frechet_floor": frechet_of(joints(train), joints(distant)),
    }


def train_and_watch(steps: int, folder: Path, n: int) -> list[Row]:
    """Train on `n` poses and check at every step of CHECKED up to `steps`; results are kept in `folder`."""
    state = folder / f"n{n}.json"
    rows: list[Row] = json.loads(state.read_bytes()) if state.is_file() else []
    checked = sorted({*(step for step in CHECKED if step < steps), steps})
    if rows and rows[-1]["step"] >= checked[-1]:
        return rows
    rows = []
    distant, unseen = mannequin_poses(0, REFERENCE), mannequin_poses(REFERENCE, UNSEEN)
    train = mannequin_poses(REFERENCE + UNSEEN, n)
    compared = make_reference(POSE_BANKS, Items(train, np.arange(n)), Items(unseen, n + np.arange(UNSEEN)))
    x0 = torch.from_numpy(joints(train))
    codec = Affine.fit(x0, SD, per_coordinate=True)
    encoded = codec.encode(x0)
    torch.manual_seed(0)
    recipe = presets.edm(sd=SD)
    trainer = Trainer(
        recipe.denoiser(MLP(99, width=256, depth=4)),
        recipe,
        TrainConfig(images=CHECKED[-1] * BATCH, batch=BATCH, warmup_images=20 * BATCH, ema_halflife_images=100 * BATCH),
        data=lambda index: (encoded[index], {}),
        n=n,
    )
    for step in tqdm(range(1, checked[-1] + 1), desc=f"n = {n}", mininterval=10):
        trainer.step()
        if step in checked:
            rows.append(_check(trainer, codec, compared, distant))
            files.write_json(state, rows)
    return rows


def draw(found: dict[int, list[Row]], path: Path) -> None:
    """Draw a PNG with one column per size, against steps: held-out loss, AUC and share of listed samples, Frechet distances."""
    figure = Figure(figsize=(4.2 * len(found), 7.4), layout="constrained")
    for column, (n, rows) in zip(figure.subplots(3, len(found), squeeze=False).T, found.items(), strict=True):
        steps = [row["step"] for row in rows]
        lines = (
            (0, "heldout_loss", "held-out loss", colours.HELDOUT),
            (1, "auc_small_noise", f"AUC at sigma {SIGMAS[0]:g}", colours.FIT),
            (1, "listed", "samples on the list of copies", colours.ALARM),
            (2, "frechet_to_train", "Frechet distance to train", colours.TRAIN),
            (2, "frechet_to_heldout", "to held-out", colours.HELDOUT),
            (2, "frechet_floor", "floor: train to held-out", colours.FLOOR),
        )
        for place, key, label, colour in lines:
            style = "--" if key == "frechet_floor" else "o-"
            column[place].plot(steps, [row[key] for row in rows], style, color=colour, label=label, markersize=3.5)
        flagged = first(rows, Verdict.COPIES.value)
        for axes in column:
            if flagged is not None:
                axes.axvline(flagged, color=colours.ALARM, linewidth=0.8, linestyle=":", label="first COPIES")
            axes.set_xscale("log")
            axes.set_xticks(steps[::2], [str(step) for step in steps[::2]])
            axes.set_xticks([], minor=True)
            axes.set_xlabel("steps")
            axes.grid(alpha=0.3, linewidth=0.4)
            axes.legend(fontsize=7)
        column[0].set_title(f"{n} poses", fontsize=10)
        column[0].set_yscale("log")
        column[1].set_ylim(-0.02, 1.02)
        column[2].set_yscale("log")
    figure.savefig(path, dpi=110)


def first(rows: list[Row], verdict: str) -> int | None:
    """The first checked step with that verdict."""
    return min((row["step"] for row in rows if row["verdict"] == verdict), default=None)


def judge(found: dict[int, list[Row]]) -> dict[str, bool]:
    """The goals M7, and the table."""
    told: list[tuple[str, ...]] = [
        ("n", "held-out loss lowest", "loss gap alarm", "first COPIES", "listed at the end", "to train", "to held-out")
    ]
    goals: dict[str, bool] = {}
    for n, rows in found.items():
        flagged = first(rows, Verdict.COPIES.value)
        best = min(rows, key=lambda row: row["heldout_loss"])["step"]
        warned = min((row["step"] for row in rows if row["loss_gap_alarm"]), default=None)
        last = rows[-1]
        distances = [f"{last[key]:.3f}" for key in ("frechet_to_train", "frechet_to_heldout")]
        told.append((str(n), str(best), str(warned), str(flagged), f"{last['listed']:.2f}", *distances))
        if n <= 100:
            goals[f"M7 n = {n}: COPIES by step 2000"] = flagged is not None and flagged <= 2000
        if n >= 2000:
            goals[f"M7 n = {n}: never COPIES"] = flagged is None
        elif flagged is not None:
            goals[f"M7 n = {n}: held-out loss was lowest before"] = best < flagged
    print(table(told))
    return goals


def main() -> int:
    """Train the models, each in a process of its own; the last line printed is JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memorization_training", description=__doc__)
    parser.add_argument("--n", type=int, nargs="*", default=SIZES, help="sizes of the training set")
    parser.add_argument("--steps", type=int, default=CHECKED[-1])
    parser.add_argument("--state", type=Path, default=Path(".contrapposto/benchmarks/memorization_training"))
    parser.add_argument("--figure", type=Path, help="PNG to draw")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(max(1, machine.cores() // len(options.n)))  # of the processes
    with ProcessPoolExecutor(len(options.n), multiprocessing.get_context("spawn")) as processes:
        trained = processes.map(partial(train_and_watch, options.steps, options.state), options.n)
        found = dict(zip(options.n, trained, strict=True))
    if options.figure:
        draw(found, options.figure)
    return finish("memorization_training", {str(n): rows for n, rows in found.items()}, judge(found))


if __name__ == "__main__":
    sys.exit(main())
