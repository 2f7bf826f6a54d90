"""Stage `fidelity`: how near are the samples to held-out data? Writes reports/fidelity/fidelity.json.

Every distance is to held-out data (validation and test together) and stands beside its floor, the distance of the
training set to the same held-out data. A number that cannot be had is listed under `absent` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tasks.copies.views import joints, pixels
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import Split, load_splits
from tasks.distances import torch_fidelity_bridge as bridge
from tasks.distances.anatomy import bone_lengths, bone_name, sides_mixed
from tasks.distances.distance import frechet_estimate, frechet_needs, frechet_of, kid
from tasks.distances.estimate import Estimate, TooFewSamples
from tasks.distances.feature_cache import cached
from tasks.distances.precision_recall import precision_recall_density_coverage
from tasks.files import new_folder, write_json
from tasks.params import Params
from tasks.skeleton import LIMB_BONES

BONE_TOLERANCE = 0.15  # of the training data's mean length


def independent_joints(poses: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` poses float32 `[count, 33, 3]` whose every joint has its own mean and covariance, but no joint knows of
    another: the noise that a pose model has to beat."""
    noise = np.empty((count, *poses.shape[1:]), np.float32)
    for joint in range(poses.shape[1]):
        place = poses[:, joint].astype(np.float64)
        noise[:, joint] = rng.multivariate_normal(place.mean(axis=0), np.cov(place, rowvar=False), count)
    return noise


class Findings:
    """Flat metrics, and for each metric that is absent the reason."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.absent: dict[str, str] = {}

    def add(self, name: str, compute: Callable[[], float | Estimate]) -> None:
        """Compute and keep a number (an estimate also leaves name_low and name_high), or the reason it is absent."""
        try:
            value = compute()
        except TooFewSamples as error:
            self.absent[name] = str(error)
            return
        if isinstance(value, Estimate):
            self.metrics |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            self.metrics[name] = float(value)

    def add_manifold(self, prefix: str, generated: np.ndarray, real: np.ndarray) -> None:
        """Precision, recall, density and coverage under `prefix`."""
        try:
            manifold = precision_recall_density_coverage(generated, real)
        except TooFewSamples as error:
            self.absent |= {f"{prefix}.{name}": str(error) for name in ("precision", "recall", "density", "coverage")}
            return
        self.metrics |= {f"{prefix}.{name}": value for name, value in manifold._asdict().items()}


def _plug_in(generated: np.ndarray, reference: np.ndarray) -> float:
    """torch-fidelity's value, refused where its bias cannot be corrected."""
    n, needed = min(len(generated), len(reference)), frechet_needs(generated[0].size)
    if n < needed:
        raise TooFewSamples("the Frechet pose distance", n, needed)
    return bridge.frechet_pose_distance(generated, reference)


def _pose_findings(found: Findings, poses: np.ndarray, train: np.ndarray, heldout: np.ndarray) -> None:
    """Distances of generated poses, floor and noise reference, anatomy."""
    noise = independent_joints(train, len(poses), np.random.default_rng(0)) if len(train) > 1 else train
    same_size = train[: len(poses)]
    for name, sample in (("", poses), ("_floor", same_size), ("_noise", noise)):
        features, real = joints(sample), joints(heldout)
        found.add(f"poses.frechet_pose_distance{name}", lambda s=sample: _plug_in(s, heldout))  # type: ignore[misc]
        found.add(
            f"poses.frechet_pose_distance{name}_corrected",
            lambda f=features, r=real: frechet_estimate(f, r, np.random.default_rng(0)),  # type: ignore[misc]
        )
        found.add(f"poses.kernel_pose_distance{name}", lambda f=features, r=real: kid(f, r))  # type: ignore[misc]
    found.add("poses.frechet_pose_distance_to_train", lambda: _plug_in(poses, train))
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


def _inception_score(logits: np.ndarray) -> float:
    """exp of the mean Kullback-Leibler divergence of p(class | picture) from p(class) (Salimans et al. 2016), one set."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    return float(np.exp((p * (log_p - np.log(p.mean(axis=0)))).sum(axis=1).mean()))


def _picture_findings(
    found: Findings, params: Params, root: Path, generated: ShardDataset, train: Split, heldout: Split
) -> None:
    """Distances of generated pictures in pixels, and in Inception features if the weights are given."""
    size = generated.picture(0).shape[0]
    pictures, real, known = generated.pictures(size), heldout.bytes(size), train.bytes(size)
    sets = [pixels(p.astype(np.float32) / 255) for p in (pictures, real, known[: len(pictures)])]
    found.add("pictures.pixel_kernel_distance", lambda: kid(sets[0], sets[1]))
    found.add("pictures.pixel_kernel_distance_floor", lambda: kid(sets[2], sets[1]))
    found.add_manifold("pictures.pixel", sets[0], sets[1])

    if params.fidelity.inception_weights is None or params.fidelity.inception_sha256 is None:
        reason = "fidelity.inception_weights is not given: the Inception network needs its weights file."
        found.absent |= {f"pictures.{name}": reason for name in ("fid", "kid", "inception_score")}
        return
    weights, sha256 = root / params.fidelity.inception_weights, params.fidelity.inception_sha256
    network = bridge.load_inception(weights, sha256)
    extractor = {**bridge.INCEPTION, "weights": sha256}

    def inception(some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        folder = root / ".contrapposto/features"
        kept = cached(folder, some, extractor, lambda items: bridge.inception_features(network, items))
        return kept["pool"], kept["logits"]

    pools, logits = inception(pictures)
    real_pools, known_pools = inception(real)[0], inception(known[: len(pictures)])[0]
    for name, features in (("", pools), ("_floor", known_pools)):
        found.add(
            f"pictures.fid{name}",
            lambda f=features: frechet_estimate(f, real_pools, np.random.default_rng(0)),  # type: ignore[misc]
        )
        found.add(f"pictures.kid{name}", lambda f=features: kid(f, real_pools))  # type: ignore[misc]
    if "pictures.fid" in found.metrics:
        found.add("pictures.fid_uncorrected", lambda: frechet_of(pools, real_pools))
    found.metrics["pictures.inception_score"] = _inception_score(logits)


def run(params: Params, root: Path) -> None:
    """Compare the samples of both models with the held-out data of data/shards; writes fidelity.json.

    Raises DataError if shards or samples are missing, UserError if the Inception weights given are not usable.
    """
    train, heldout = load_splits(root)
    poses = ShardDataset(root / "samples/poses", "samples")
    pictures = ShardDataset(root / "samples/pictures", "samples")
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
        _pose_findings(found, poses.pose(), train.poses(), heldout.poses())
        bones = _anatomy_findings(found, poses.pose(), train.poses())
    if len(pictures) and len(heldout) and len(train):
        _picture_findings(found, params, root, pictures, train, heldout)
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
    with new_folder(root / "reports/fidelity") as folder:
        write_json(folder / "fidelity.json", report)
