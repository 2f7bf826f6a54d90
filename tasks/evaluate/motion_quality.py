"""Stage `motion_quality`: how good is generated motion, and is it copied? Writes reports/motion_quality/motion_quality.json.

frechet_motion_distance     between trajectories (tasks/metrics/trajectories.py) of samples and of held-out clips, with an
                            interval that counts sources; `_floor` is that of training clips, `_frames` and `_joints` those of
                            two references: frames drawn independently of each other, and joints independent of each other
foot_skating, jitter, bone_change    medians over clips (tasks/metrics/motion.py), beside those of held-out clips and, as
                            `_locked`, of the samples after standing feet were locked (tasks/common/foot_lock.py)
seam                        of long motion: the change of velocity where two windows meet over that elsewhere
verdict                     of the memorization test on windows; a group is a source
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tasks import paths
from tasks.common import foot_lock, motion
from tasks.common.files import new_folder, write_json
from tasks.common.skeleton import LIMBS
from tasks.config.params import Params
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import SAMPLES, group_numbers
from tasks.evaluate.memorization import motion_banks
from tasks.evaluate.memorization.certificate import Certificate, certify_samples
from tasks.evaluate.memorization.copy_score import TooFewItems
from tasks.evaluate.memorization.copy_test import Verdict
from tasks.evaluate.memorization.reference import Items, make_reference
from tasks.metrics import motion as motion_metrics
from tasks.metrics import trajectories
from tasks.metrics.findings import Findings
from tasks.metrics.frechet import frechet_estimate
from tasks.metrics.kid import kid

LISTED = 50  # samples in the report of the copy test


def run(params: Params, root: Path) -> None:
    """Judge `samples/motion`. A number that cannot be computed is listed under `absent` with the reason."""
    train, held_out = ShardDataset(root / paths.CLIPS, "train"), ShardDataset(root / paths.CLIPS, "val", "test")
    samples = ShardDataset(paths.sample_folder(root, paths.MOTION), SAMPLES)
    rate = float(train.about["rate"])
    findings = Findings()
    ours, real, known = samples.clips(), held_out.clips(), train.clips()
    names = {id(data): [str(meta["source"]) for meta in data.metas()] for data in (held_out, train)}
    if len(real) and len(known) > 1:
        rng = np.random.default_rng(0)
        sets = {
            "": (ours, [str(i) for i in range(len(ours))]),
            "_floor": (known[: len(ours)], names[id(train)][: len(ours)]),
            "_frames": (independent_frames(known, len(ours), rng), [str(i) for i in range(len(ours))]),
            "_joints": (independent_joints(known, len(ours), rng), [str(i) for i in range(len(ours))]),
        }
        held = trajectories.features(trajectories.fitted(real))
        for suffix, (clips, sources) in sets.items():
            features = trajectories.features(trajectories.fitted(clips))
            both = (sources, names[id(held_out)])
            findings.add(
                f"frechet_motion_distance{suffix}",
                partial(frechet_estimate, features, held, np.random.default_rng(0), sources=both),
            )
            findings.add(f"kernel_motion_distance{suffix}", partial(kid, features, held, sources=both))
        findings.add_manifold("motion", trajectories.features(trajectories.fitted(ours)), held)
    for name, clips in (("", ours), ("_heldout", real), ("_locked", foot_lock.locked(ours, rate))):
        if len(clips):
            findings.metrics |= {f"{key}{name}": value for key, value in plausibility(clips, rate).items()}
    findings.metrics |= seams(root)
    answer, rows = _copies(params, ours, train, held_out)
    with new_folder(root / paths.MOTION_QUALITY) as folder:
        write_json(
            folder / "motion_quality.json",
            {
                "metrics": findings.metrics,
                "absent": findings.absent,
                "verdict": answer["verdict"],
                "sentence": answer["sentence"],
                "copy_test": answer["metrics"],
                "closest": rows,
                "clips": {"samples": len(ours), "train": len(known), "heldout": len(real)},
            },
        )


def plausibility(clips: np.ndarray, rate: float) -> dict[str, float]:
    """Medians over clips `[n, frames, 33, 3]` of foot skating, jitter and the change of bones; those that exist."""
    values = {
        "foot_skating": motion_metrics.foot_skating(clips, rate),
        "jitter": motion_metrics.jitter(clips, rate),
        "bone_change": motion_metrics.bone_change(clips),
    }
    return {name: float(np.nanmedian(value)) for name, value in values.items() if np.isfinite(value).any()}


def independent_frames(clips: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Clips whose frames are drawn independently, each from that frame of all clips: each has the right law."""
    frames = clips.shape[1]
    rows = rng.integers(len(clips), size=(count, frames))
    result: np.ndarray = clips[rows, np.arange(frames)]
    return result


def independent_joints(clips: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Clips whose joints have the mean and the covariance over time of each joint of `clips`, joints independent."""
    placed = motion.in_place(clips.astype(np.float64))
    result = np.empty((count, *clips.shape[1:]), np.float32)
    for joint in range(clips.shape[2]):
        own = placed[:, :, joint].reshape(len(clips), -1)
        mean = own.mean(axis=0)
        # Normal with the empirical covariance, also where there are fewer clips than numbers: random mixtures of deviations.
        weights = rng.normal(size=(count, len(own))) / np.sqrt(max(len(own) - 1, 1))
        result[:, :, joint] = (mean + weights @ (own - mean)).reshape(count, -1, 3)
    return result


def seams(root: Path) -> dict[str, float]:
    """How visible the places are where the windows of long motion meet: acceleration there over the median elsewhere."""
    folder = paths.sample_folder(root, paths.MOTION)
    splits = ShardDataset(folder).splits
    if "long" not in splits:
        return {}
    long = ShardDataset(folder, "long")
    clips, frames, overlap = long.clips(), int(long.about["frames"]), int(long.about["overlap"])
    joints = motion.in_place(clips.astype(np.float64))[:, :, list(LIMBS)]
    size = np.linalg.norm(np.diff(joints, n=2, axis=1), axis=-1).mean(axis=2)  # [n, F - 2], centred at frame i + 1
    at = np.arange(frames, clips.shape[1], frames - overlap)  # the first new frame of each window
    near = np.unique(np.clip(np.concatenate([at - 2, at - 1]), 0, size.shape[1] - 1))
    elsewhere = np.setdiff1d(np.arange(size.shape[1]), near)
    return {"seam": float(size[:, near].mean() / size[:, elsewhere].mean())}


def _copies(
    params: Params, samples: np.ndarray, train: ShardDataset, held_out: ShardDataset
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The answer of the copy test, and the most suspicious samples. Too little data is a verdict, too."""
    groups = group_numbers(train, held_out)
    try:
        reference = make_reference(
            [motion_banks.bank(samples.shape[1])], Items(train.clips(), groups[0]), Items(held_out.clips(), groups[1])
        )
        certificate: Certificate = certify_samples(
            params.memorization, "motions", samples, reference, motion_banks.planter(reference.train.data)
        )
    except TooFewItems as error:
        sentence = f"Nothing can be said about copied motions: {error}"
        return {"verdict": Verdict.TOO_FEW.value, "sentence": sentence, "metrics": {}}, []
    rows = []
    for i in np.argsort(certificate.sample_p, kind="stable")[:LISTED]:
        result = certificate.best_bank(int(i))
        scores = result.samples
        rows.append({
            "number": int(i),
            "p": float(certificate.sample_p[i]),
            "listed": bool(certificate.copies[i]),
            "view": result.bank.invariances[scores.invariance[i]].name,
            "ratio": float(scores.ratio[i]),
            "nearest": train.keys[scores.first[i]],
        })  # fmt: skip
    answer = {"verdict": certificate.verdict.value, "sentence": certificate.sentence, "metrics": certificate.metrics()}
    return answer, rows
