"""The two sides of every comparison: the training set, and the held-out data (validation and test together)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks import paths
from tasks.dataset.shards import ShardDataset

# Splits of a folder of samples.
SAMPLES = "samples"  # those that every headline number is about
COMPARISON = "train_conditions"  # pictures generated with conditions of the training set
NEW_POSES = "new_poses"  # pictures of generated poses


def load_splits(root: Path) -> tuple[ShardDataset, ShardDataset]:
    """The training split and the held-out data (val and test) of root/data/shards."""
    folder = root / paths.SHARDS
    return ShardDataset(folder, "train"), ShardDataset(folder, "val", "test")


def group_numbers(train: ShardDataset, heldout: ShardDataset) -> tuple[np.ndarray, np.ndarray]:
    """The group of each sample as an integer; the same group has the same number on both sides.

    Near-copies and frames of one source share a group.
    """
    groups = [str(meta["group"]) for meta in (*train.metas(), *heldout.metas())]
    _, numbers = np.unique(groups, return_inverse=True)
    return numbers[: len(train)], numbers[len(train) :]
