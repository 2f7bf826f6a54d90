"""Stage `fidelity`: how near are the samples to held-out data? Writes reports/fidelity/fidelity.json.

Every distance is to held-out data (validation and test together) and is reported with its floor, the distance of the
training set to the same held-out data. A number that cannot be computed is listed under `absent` with the reason.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tasks import paths
from tasks.common.files import new_folder, write_json
from tasks.common.skeleton import LIMB_BONES, face_forward
from tasks.config.params import Params
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import COMPARISON, SAMPLES, load_splits
from tasks.metrics import torch_fidelity_bridge as bridge
from tasks.metrics.anatomy import bone_lengths, bone_name, sides_mixed
from tasks.metrics.estimate import Estimate, TooFewSamples, check_features
from tasks.metrics.features import joints
from tasks.metrics.findings import Findings
from tasks.metrics.frechet import frechet_estimate, frechet_needs
from tasks.metrics.kid import kid
from tasks.metrics.picture_metrics import PictureSets, compare_pictures, prepare_features

BONE_TOLERANCE = 0.15  # of the training data's mean length


@dataclass(frozen=True)
class BoneLength:
    """Mean and standard deviation of a bone's length in generated and in training poses, torso lengths."""

    bone: str
    mean: float
    sd: float
    train_mean: float
    train_sd: float
    within: bool  # the means differ by at most BONE_TOLERANCE


def independent_joints(poses: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` poses float32 `[count, 33, 3]` with the mean and covariance of each joint of `poses`, joints independent.

    This is the noise that a pose model has to beat.
    """
    noise = np.empty((count, *poses.shape[1:]), np.float32)
    for joint in range(poses.shape[1]):
        positions = poses[:, joint].astype(np.float64)
        noise[:, joint] = rng.multivariate_normal(positions.mean(axis=0), np.cov(positions, rowvar=False), count)
    return noise


def _plug_in(generated: np.ndarray, reference: np.ndarray) -> float:
    """torch-fidelity's value; refused at sample sizes at which its bias cannot be corrected."""
    n, needed = min(len(generated), len(reference)), frechet_needs(generated[0].size)
    if n < needed:
        raise TooFewSamples("the Frechet pose distance", n, needed)
    return bridge.frechet_pose_distance(generated, reference)


def _corrected(x: np.ndarray, y: np.ndarray) -> Estimate:
    return frechet_estimate(x, y, np.random.default_rng(0))


def _add_pose_distances(findings: Findings, poses: np.ndarray, train: np.ndarray, heldout: np.ndarray) -> None:
    """Distances of generated poses, of the floor and of the noise reference to held-out poses."""
    for name, checked in (("generated", poses), ("training", train), ("held-out", heldout)):
        check_features(f"the {name} poses", joints(checked))
    noise = independent_joints(train, len(poses), np.random.default_rng(0)) if len(train) > 1 else train
    same_size = train[: len(poses)]
    for name, sample in (("", poses), ("_floor", same_size), ("_noise", noise)):
        features, real = joints(sample), joints(heldout)
        findings.add(f"poses.frechet_pose_distance{name}", partial(_plug_in, sample, heldout))
        findings.add(f"poses.frechet_pose_distance{name}_corrected", partial(_corrected, features, real))
        findings.add(f"poses.kernel_pose_distance{name}", partial(kid, features, real))
        turned = joints(face_forward(sample)), joints(face_forward(heldout))  # independent of the direction people face
        findings.add(f"poses.turned_frechet_pose_distance{name}_corrected", partial(_corrected, *turned))
    findings.add("poses.frechet_pose_distance_to_train", partial(_plug_in, poses, train))
    if "poses.frechet_pose_distance_noise" in findings.metrics:
        value, reference = (findings.metrics[f"poses.frechet_pose_distance{name}"] for name in ("", "_noise"))
        findings.metrics["poses.frechet_pose_distance_over_noise"] = value / reference
    findings.add_manifold("poses", joints(poses), joints(heldout))
    findings.add_manifold("poses.floor", joints(same_size), joints(heldout))


def _add_anatomy(findings: Findings, poses: np.ndarray, train: np.ndarray) -> list[BoneLength]:
    """Bone lengths and mixed sides of generated poses, with those of the training data; returns one row per bone."""
    generated, real = bone_lengths(poses), bone_lengths(train)
    rows = [
        BoneLength(
            bone=bone_name(bone),
            mean=float(generated[:, b].mean()),
            sd=float(generated[:, b].std()),
            train_mean=float(real[:, b].mean()),
            train_sd=float(real[:, b].std()),
            within=bool(abs(generated[:, b].mean() / real[:, b].mean() - 1) <= BONE_TOLERANCE),
        )
        for b, bone in enumerate(LIMB_BONES)
    ]
    findings.metrics |= {
        "poses.bone_length_worst_deviation": float(np.abs(generated.mean(axis=0) / real.mean(axis=0) - 1).max()),
        "poses.bone_length_sd_ratio": float((generated.std(axis=0) / real.std(axis=0).clip(1e-9)).mean()),
        "poses.sides_mixed": float(sides_mixed(poses).mean()),
        "poses.sides_mixed_train": float(sides_mixed(train).mean()),
    }
    return rows


def run(params: Params, root: Path) -> None:
    """Compare the samples of both models with the held-out data of data/shards; write fidelity.json.

    Raises DataError if shards or samples are missing, UserError if given network weights cannot be used.
    """
    train, heldout = load_splits(root)
    poses = ShardDataset(paths.sample_folder(root, "poses"), SAMPLES)
    pictures, comparison = (ShardDataset(paths.sample_folder(root, "pictures"), name) for name in (SAMPLES, COMPARISON))
    heldout_pictures, train_pictures = heldout.pictured(), train.pictured()
    sets: PictureSets | None = None
    if len(pictures) and len(heldout_pictures) and len(train_pictures):
        size = pictures.picture(0).shape[0]  # of the enlarged ones if there is an upscaler
        sets = PictureSets(pictures, comparison, heldout_pictures, train_pictures, size)
        prepare_features(params.fidelity, root, sets)
    findings = Findings()
    bones: list[BoneLength] = []
    for name, count in (
        ("generated poses", len(poses)),
        ("held-out poses", len(heldout)),
        ("training poses", len(train)),
    ):
        if not count:
            findings.absent["poses"] = f"there are no {name}."
    if "poses" not in findings.absent:
        _add_pose_distances(findings, poses.poses(), train.poses(), heldout.poses())
        bones = _add_anatomy(findings, poses.poses(), train.poses())
    if sets is not None:
        compare_pictures(findings, params.fidelity, root, sets)
    else:
        findings.absent["pictures"] = "there are no generated, held-out or training pictures."

    report = {
        "metrics": findings.metrics,
        "notes": findings.notes,
        "absent": findings.absent,
        "bones": [asdict(bone) for bone in bones],
        "sizes": {
            "poses": len(poses),
            "pictures": len(pictures),
            "train": len(train),
            "heldout": len(heldout),
        },
    }
    with new_folder(root / paths.FIDELITY) as folder:
        write_json(folder / "fidelity.json", report)
