"""The two sides of every comparison: the training set, and what was held out (validation and test together)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks.dataset.shards import ShardDataset


class Split:
    """One or several splits of a shard folder as one set: keys, metadata, groups, poses and pictures."""

    def __init__(self, *parts: ShardDataset) -> None:
        self._parts = parts
        self.keys = [key for part in parts for key in part.keys]
        self.metas = [meta for part in parts for meta in part.metas()]

    def __len__(self) -> int:
        return len(self.keys)

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


def load_splits(root: Path) -> tuple[Split, Split]:
    """The training split and the held-out data (val and test) of root/data/shards."""
    folder = root / "data/shards"
    train = Split(ShardDataset(folder, "train"))
    return train, Split(*(ShardDataset(folder, name) for name in ("val", "test")))


def group_numbers(train: Split, heldout: Split) -> tuple[np.ndarray, np.ndarray]:
    """Groups as integers, the same number for the same group in both."""
    _, numbers = np.unique(train.groups + heldout.groups, return_inverse=True)
    return numbers[: len(train)], numbers[len(train) :]
