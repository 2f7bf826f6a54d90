"""The two sides of every comparison: the training set, and what was held out (validation and test together)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tasks import paths
from tasks.dataset.shards import ShardDataset

SAMPLES = "samples"  # of a folder of samples: those that every headline number is about
COMPARISON = "train_conditions"  # pictures that were asked for with conditions of the training set
NEW_POSES = "new_poses"  # pictures of generated poses


class Split:
    """One or several splits of a shard folder as one set: keys, metadata, groups, poses and pictures."""

    def __init__(self, *parts: ShardDataset) -> None:
        self._parts = parts
        self.keys = [key for part in parts for key in part.keys]
        self.metas = [meta for part in parts for meta in part.metas()]

    def __len__(self) -> int:
        return len(self.keys)

    def pictured(self) -> Split:
        """The items that have a picture."""
        return Split(*(part.pictured() for part in self._parts))

    @property
    def groups(self) -> list[str]:
        """The group of each item (duplicates and frames of one source share one)."""
        return [str(meta["group"]) for meta in self.metas]

    def poses(self) -> np.ndarray:
        """Normalised poses, float32 `[n, 33, 3]`."""
        return np.concatenate([part.pose() for part in self._parts])

    def pictures(self, size: int) -> np.ndarray:
        """Pictures, float32 `[n, size, size, 3]` in [0, 1]."""
        return self.bytes(size).astype(np.float32) / 255

    def bytes(self, size: int) -> np.ndarray:
        """Pictures, uint8 `[n, size, size, 3]`."""
        return np.concatenate([part.pictures(size) for part in self._parts])

    def blocks(self, size: int, count: int | None = None, rows: int = 1024) -> Iterator[np.ndarray]:
        """The first `count` pictures (all of them by default), at most `rows` at a time: uint8 `[r, size, size, 3]`."""
        left = len(self) if count is None else min(count, len(self))
        for part in self._parts:
            for start in range(0, min(left, len(part)), rows):
                stop = min(start + rows, left, len(part))
                yield np.stack([part.picture(i, size) for i in range(start, stop)])
            left -= min(left, len(part))


def load_splits(root: Path) -> tuple[Split, Split]:
    """The training split and the held-out data (val and test) of root/data/shards."""
    folder = root / paths.SHARDS
    train = Split(ShardDataset(folder, "train"))
    return train, Split(*(ShardDataset(folder, name) for name in ("val", "test")))


def group_numbers(train: Split, heldout: Split) -> tuple[np.ndarray, np.ndarray]:
    """Groups as integers, the same number for the same group in both."""
    _, numbers = np.unique(train.groups + heldout.groups, return_inverse=True)
    return numbers[: len(train)], numbers[len(train) :]
