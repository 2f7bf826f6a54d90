"""Distances of generated pictures to held-out ones in pixels, in edges, and in the features of the given networks.

Every set is read from its shards block by block. Each distance is reported with its floor, the same distance for as many
training pictures, and with that of the pictures that were generated for conditions of the training set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tasks import paths
from tasks.common import arrays
from tasks.common.arrays import Arrays
from tasks.common.blocks import Block, computed, divided
from tasks.config.params import Fidelity
from tasks.dataset.shards import PICTURE_ROWS, ShardDataset
from tasks.metrics import torch_fidelity_networks as networks
from tasks.metrics.feature_cache import cached, extract, place
from tasks.metrics.features import edges, pixels
from tasks.metrics.findings import Findings
from tasks.metrics.frechet import frechet_estimate, frechet_of
from tasks.metrics.kid import kid


@dataclass(frozen=True)
class PictureSets:
    """The pictures to compare, all at `size` pixels; `comparison` may be empty."""

    generated: ShardDataset
    comparison: ShardDataset  # generated for conditions of the training set
    heldout: ShardDataset
    train: ShardDataset
    size: int

    def sources(self) -> list[tuple[str, ShardDataset, int]]:
        """Name, pictures and how many of them count of each set that has any: of training as many as were generated."""
        count = len(self.generated)
        named = (
            ("generated", self.generated, count),
            ("floor", self.train, min(count, len(self.train))),
            ("train_conditions", self.comparison, len(self.comparison)),
            ("heldout", self.heldout, len(self.heldout)),
        )
        return [(name, split, most) for name, split, most in named if len(split)]

    def features(self, compute: Callable[[Callable[..., object], str], Arrays]) -> dict[str, Arrays]:
        """`compute(blocks, name)` for every set that has pictures."""
        return {
            name: compute(partial(split.picture_blocks, self.size, most), name) for name, split, most in self.sources()
        }


class Names(NamedTuple):
    """The names of the metrics in one feature space."""

    frechet: str | None  # None: not computed
    kernel: str
    manifold: str


def inception_score(logits: np.ndarray) -> float:
    """exp of the mean Kullback-Leibler divergence of p(class | picture) from p(class) (Salimans et al. 2016)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    return float(np.exp((p * (log_p - np.log(p.mean(axis=0)))).sum(axis=1).mean()))


def _add_frechet(findings: Findings, name: str, x: np.ndarray, real: np.ndarray) -> None:
    """The plain value, which the literature reports, and with enough pictures the corrected one as `<name>_corrected`."""
    findings.add(name, partial(frechet_of, x, real))
    findings.add(f"{name}_corrected", partial(frechet_estimate, x, real, np.random.default_rng(0)))
    if name in findings.metrics:
        findings.notes[name] = f"plain value of {len(x)} and {len(real)} pictures, biased upwards when they are few"


def _compare(findings: Findings, names: Names, sets: dict[str, np.ndarray]) -> None:
    """Add the distances of each set of features to the held-out one."""
    real = sets["heldout"]
    for suffix, name in (("", "generated"), ("_floor", "floor"), ("_train_conditions", "train_conditions")):
        if name not in sets:
            continue
        x = sets[name]
        findings.add(f"{names.kernel}{suffix}", partial(kid, x, real))
        if names.frechet is not None:
            _add_frechet(findings, f"{names.frechet}{suffix}", x, real)
    findings.add_manifold(names.manifold, sets["generated"], real)


def _plain(features: Callable[[np.ndarray], np.ndarray], block: np.ndarray) -> Arrays:
    return {"features": features(block.astype(np.float32) / 255)}


def prepare_features(given: Fidelity, root: Path, sets: PictureSets) -> None:
    """Put the features of the given networks into the cache if the stage's work is divided.

    Of that work (see `tasks.common.blocks`) a block is what a network makes of PICTURE_ROWS pictures. Raises UserError if given
    weights cannot be used.
    """
    if not divided():
        return
    work: list[Block] = []
    wanted: list[tuple[Path, int]] = []
    for name in networks.TITLES:
        weights = getattr(given, name)
        if weights is None:
            continue
        network = networks.load(name, weights, root)
        for _, split, most in sets.sources():
            path = place(root / paths.FEATURES, partial(split.picture_blocks, sets.size, most), network.about)
            begins = range(0, most, PICTURE_ROWS)
            work += [partial(_features_of, path, network, split, sets.size, most, begin) for begin in begins]
            wanted.append((path, len(begins)))
    made = computed(work, "features")
    for path, count in wanted:
        parts = list(islice(made, count))
        arrays.write(path, {field: np.concatenate([part[field] for part in parts]) for field in parts[0]})


def _features_of(
    path: Path, network: networks.Network, split: ShardDataset, size: int, most: int, begin: int
) -> Arrays:
    """A block of the features that belong into `path`, from there if they are: machines differ in what they have."""
    if path.is_file():
        return {field: array[begin : begin + PICTURE_ROWS] for field, array in arrays.read(path).items()}
    return network(next(split.picture_blocks(size, most, PICTURE_ROWS, begin)))


def compare_pictures(findings: Findings, given: Fidelity, root: Path, sets: PictureSets) -> None:
    """Add all distances of generated pictures. Raises UserError if given weights cannot be used."""
    for name, space in (("pixel", pixels), ("edge", edges)):
        extracted = sets.features(lambda blocks, what, s=space: extract(blocks, partial(_plain, s), what))  # type: ignore
        features = {what: of["features"] for what, of in extracted.items()}
        _compare(findings, Names(None, f"pictures.{name}_kernel_distance", f"pictures.{name}"), features)

    for name, title in networks.TITLES.items():
        prefix = f"pictures.{name}"
        names = Names(f"{prefix}_frechet_distance", f"{prefix}_kernel_distance", prefix)
        if name == "inception":
            names = Names("pictures.fid", "pictures.kid", prefix)
        weights = getattr(given, name)
        if weights is None:
            reason = f"fidelity.{name} is not given: {title} needs the file of its weights."
            wanted = [names.frechet, names.kernel] + ["pictures.inception_score"] * (name == "inception")
            findings.absent |= {str(metric): reason for metric in wanted}
            continue
        network = networks.load(name, weights, root)
        extracted = sets.features(
            lambda blocks, what, n=network: cached(
                root / paths.FEATURES, blocks, n.about, n, f"{n.about['network']}, {what}"
            )  # type: ignore
        )
        _compare(findings, names, {what: of["features"] for what, of in extracted.items()})
        if "logits" in extracted["generated"]:
            findings.metrics["pictures.inception_score"] = inception_score(extracted["generated"]["logits"])
            findings.metrics["pictures.inception_score_heldout"] = inception_score(extracted["heldout"]["logits"])
