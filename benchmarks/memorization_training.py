"""`python -m benchmarks.memorization_training`: the certificate during real training (M7).

Pose models (an MLP denoiser with EDM's recipe) are trained on 100, 400 and 2000 mannequin poses. Along the way: held-out
loss, loss gap, verdict, and the Frechet distance to the training set beside that to held-out poses. The small sets must be
caught, the large one must not, and the held-out loss must have risen before the first alarm.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from diffusion_core import presets
from diffusion_core.nets.mlp import MLP
from diffusion_core.sample import generate
from diffusion_core.train import TrainConfig, Trainer
from tasks.copies.certificate import Items, certify
from tasks.copies.control import planted_poses
from tasks.copies.copy_test import Verdict
from tasks.copies.views import POSE_BANKS, joints
from tasks.distances.distance import frechet_of
from tasks.loss_gap import gaps, losses
from tasks.mannequin import scene
from tasks.models import DATA_SD, Codec
from tasks.skeleton import normalise

SIZES = (100, 400, 2000)
CHECKED = (250, 380, 550, 820, 1230, 1820, 2710, 4030, 6000)  # steps
BATCH = 128
SAMPLES = 500
SIGMAS = (0.03, 0.1, 0.5)  # in the network's units
UNSEEN = 500  # held-out poses of the copy test
REFERENCE = 1000  # more held-out poses, for the distance


def mannequin_poses(count: int) -> np.ndarray:
    """True poses of the built-in data, float32 `[count, 33, 3]`, normalised."""
    shown = tqdm(range(count), desc="poses", leave=False)
    return np.stack([normalise(scene(0, index, 64).joints) for index in shown]).astype(np.float32)


def _check(
    trainer: Trainer, codec: Codec, train: np.ndarray, unseen: np.ndarray, reference: np.ndarray
) -> dict[str, Any]:
    """Everything that is watched at one step."""
    denoiser = trainer.averaged()
    encoded = [codec.encode(torch.from_numpy(joints(some))) for some in (train[:500], unseen)]
    rows = gaps(SIGMAS, *(losses(denoiser, x0, {}, SIGMAS) for x0 in encoded))
    recipe = trainer.recipe
    z = generate(denoiser, recipe.walk(18), recipe.step, (99,), 0, torch.arange(SAMPLES), {}, batch=SAMPLES)
    poses = codec.decode(z).numpy().reshape(-1, 33, 3)
    groups = np.arange(len(train) + len(unseen))
    certificate = certify(
        "poses",
        POSE_BANKS,
        poses,
        Items(train, groups[: len(train)]),
        Items(unseen, groups[len(train) :]),
        planted_poses,
        np.random.default_rng(0),
    )
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
        "frechet_to_heldout": frechet_of(joints(poses), joints(reference)),
        "frechet_floor": frechet_of(joints(train), joints(reference)),
    }


def train_and_watch(poses: np.ndarray, n: int, steps: int) -> list[dict[str, Any]]:
    """Train on the first `n` poses and check at every step of CHECKED up to `steps`."""
    reference, unseen, train = poses[:REFERENCE], poses[REFERENCE : REFERENCE + UNSEEN], poses[REFERENCE + UNSEEN :][:n]
    x0 = torch.from_numpy(joints(train))
    codec = Codec.fit(x0, per_coordinate=True)
    encoded = codec.encode(x0)
    torch.manual_seed(0)
    recipe = presets.edm(sd=DATA_SD)
    trainer = Trainer(
        recipe.denoiser(MLP(99, width=256, depth=4)),
        recipe,
        TrainConfig(images=steps * BATCH, batch=BATCH, warmup_images=20 * BATCH, ema_halflife_images=100 * BATCH),
        data=lambda index: (encoded[index], {}),
        n=n,
    )
    rows = []
    for step in tqdm(range(1, steps + 1), desc=f"n = {n}", leave=False):
        trainer.step()
        if step in CHECKED:
            rows.append(_check(trainer, codec, train, unseen, reference))
            print(f"n = {n}: {json.dumps(rows[-1])}", flush=True)
    return rows


def _first(rows: list[dict[str, Any]], found: str) -> float:
    return min((row["step"] for row in rows if row["verdict"] == found), default=float("inf"))


def main() -> None:
    """Train the models; the last line printed is JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memorization_training", description=__doc__)
    parser.add_argument("--n", type=int, nargs="*", default=SIZES, help="sizes of the training set")
    parser.add_argument("--steps", type=int, default=CHECKED[-1])
    parser.add_argument("--state", type=Path, help="file that keeps finished sizes")
    options = parser.parse_args()
    state = options.state
    results: dict[str, Any] = json.loads(state.read_text()) if state and state.is_file() else {}
    poses = mannequin_poses(REFERENCE + UNSEEN + max(options.n))
    for n in options.n:
        if str(n) not in results:
            results[str(n)] = train_and_watch(poses, n, options.steps)
            if state:
                state.write_text(json.dumps(results, indent=1))
    goals: dict[str, bool] = {}
    for n, rows in results.items():
        flagged = _first(rows, Verdict.COPIES.value)
        best = min(rows, key=lambda row: row["heldout_loss"])["step"]
        if int(n) <= 100:
            goals[f"M7 n = {n}: COPIES by step 2000"] = flagged <= 2000
        if int(n) >= 2000:
            goals[f"M7 n = {n}: never COPIES"] = flagged == float("inf")
        elif flagged < float("inf"):
            goals[f"M7 n = {n}: held-out loss was lowest before"] = best < flagged
    missed = [goal for goal, met in goals.items() if not met]
    print(json.dumps({"benchmark": "memorization_training", "figures": results, "goals": goals, "missed": missed}))


if __name__ == "__main__":
    main()
