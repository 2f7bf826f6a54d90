"""Stage `fidelity`: how near are the samples to held-out data? Writes reports/fidelity/fidelity.json.

Every distance is to held-out data (validation and test together) and stands beside its floor, the distance of the
training set to the same held-out data. A number that cannot be had is listed under `absent` with the reason.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

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
from tasks.metrics.picture_metrics import PictureSets, compare_pictures

BONE_TOLERANCE = 0.15  # of the training data's mean length


def independent_joints(poses: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` poses float32 `[count, 33, 3]` whose every joint has its own mean and covariance, but no joint knows of
    another: the noise that a pose model has to beat."""
    noise = np.empty((count, *poses.shape[1:]), np.float32)
    for joint in range(poses.shape[1]):
        place = poses[:, joint].astype(np.float64)
        noise[:, joint] = rng.multivariate_normal(place.mean(axis=0), np.cov(place, rowvar=False), count)
    return noise


def _plug_in(generated: np.ndarray, reference: np.ndarray) -> float:
    """torch-fidelity's value, refused where its bias cannot be corrected."""
    n, needed = min(len(generated), len(reference)), frechet_needs(generated[0].size)
    if n < needed:
        raise TooFewSamples("the Frechet pose distance", n, needed)
    return bridge.frechet_pose_distance(generated, reference)


def _corrected(x: np.ndarray, y: np.ndarray) -> Estimate:
    return frechet_estimate(x, y, np.random.default_rng(0))


def _pose_findings(found: Findings, poses: np.ndarray, train: np.ndarray, heldout: np.ndarray) -> None:
    """Distances of generated poses, floor and noise reference, anatomy."""
    for name, some in (("generated", poses), ("training", train), ("held-out", heldout)):
        check_features(f"the {name} poses", joints(some))
    noise = independent_joints(train, len(poses), np.random.default_rng(0)) if len(train) > 1 else train
    same_size = train[: len(poses)]
    for name, sample in (("", poses), ("_floor", same_size), ("_noise", noise)):
        features, real = joints(sample), joints(heldout)
        found.add(f"poses.frechet_pose_distance{name}", partial(_plug_in, sample, heldout))
        found.add(f"poses.frechet_pose_distance{name}_corrected", partial(_corrected, features, real))
        found.add(f"poses.kernel_pose_distance{name}", partial(kid, features, real))
        turned = joints(face_forward(sample)), joints(face_forward(heldout))  # the same whatever way people face
        found.add(f"poses.turned_frechet_pose_distance{name}_corrected", partial(_corrected, *turned))
    found.add("poses.frechet_pose_distance_to_train", partial(_plug_in, poses, train))
    if "poses.frechet_pose_distance_noise" in found.metrics:
        value, reference = (found.metrics[f"poses.frechet_pose_distance{name}"] for name in ("", "_noise"))
        found.metrics["poses.frechet_pose_distance_over_noise"] = value / reference
    found.add_manifold("poses", joints(poses), joints(heldout))
    found.add_manifold("poses.floor", joints(same_size), joints(heldout))


def _anatomy_findings(found: Findings, poses: np.ndarray, train: np.ndarray) -> list[dict[str, Any]]:
    """Bone lengths and mixed sides of generated poses beside the training data's; one row a bone."""
    generated, real = bone_lengths(poses), bone_lengths(train)
    rows = [
        {
            "bone": bone_name(bone),
            "mean": float(generated[:, b].mean()),
            "sd": float(generated[:, b].std()),
            "train_mean": float(real[:, b].mean()),
            "train_sd": float(real[:, b].std()),
            "within": bool(abs(generated[:, b].mean() / real[:, b].mean() - 1) <= BONE_TOLERANCE),
        }
        for b, bone in enumerate(LIMB_BONES)
    ]
    found.metrics |= {
        "poses.bone_length_worst_deviation": float(np.abs(generated.mean(axis=0) / real.mean(axis=0) - 1).max()),
        "poses.bone_length_sd_ratio": float((generated.std(axis=0) / real.std(axis=0).clip(1e-9)).mean()),
        "poses.sides_mixed": float(sides_mixed(poses).mean()),
        "poses.sides_mixed_train": float(sides_mixed(train).mean()),
    }
    return rows


def run(params: Params, root: Path) -> None:
    """Compare the samples of both models with the held-out data of data/shards; writes fidelity.json.

    Raises DataError if shards or samples are missing, UserError if weights that are given cannot be used.
    """
    train, heldout = load_splits(root)
    poses = ShardDataset(paths.sample_folder(root, "poses"), SAMPLES)
    pictures, comparison = (ShardDataset(paths.sample_folder(root, "pictures"), name) for name in (SAMPLES, COMPARISON))
    found = Findings()
    bones: list[dict[str, Any]] = []
    for name, count in (
        ("generated poses", len(poses)),
        ("held-out poses", len(heldout)),
        ("training poses", len(train)),
    ):
        if not count:
            found.absent["poses"] = f"there are no {name}."
    if "poses" not in found.absent:
        _pose_findings(found, poses.poses(), train.poses(), heldout.poses())
        bones = _anatomy_findings(found, poses.poses(), train.poses())
    unseen, seen = heldout.pictured(), train.pictured()
    if len(pictures) and len(unseen) and len(seen):
        sets = PictureSets(pictures, comparison, unseen, seen, params.pictures.size)
        compare_pictures(found, params.fidelity, root, sets)
    else:
        found.absent["pictures"] = "there are no generated, held-out or training pictures."

    report = {
        "metrics": found.metrics,
        "absent": found.absent,
        "bones": bones,
        "sizes": {
            "poses": len(poses),
            "pictures": len(pictures),
            "train": len(train),
            "heldout": len(heldout),
        },
    }
    with new_folder(root / paths.FIDELITY) as folder:
        write_json(folder / "fidelity.json", report)
