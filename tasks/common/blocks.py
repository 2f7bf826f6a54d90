"""Work that a stage does in independent blocks, so that an engine can have some of them done elsewhere (docs/scaling.md).

A stage makes a list of blocks, functions without arguments that return arrays, and calls `computed` with it. What a block
returns is a pure function of the stage's inputs and the block's number. The stage computes the same blocks wherever it runs,
so its outputs have the same bytes whoever computed which of them:

    as a whole      `computed` computes every block
    as a slice      it computes every WORLD-th block from the RANK-th, writes each into a folder, and ends the stage
    after slices    it reads the blocks that are in the folder named by the environment variable BLOCKS, and computes the others

The stage ends at its first `computed` when it runs as a slice: what depends on these blocks is left to the stage itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from tasks.common import arrays
from tasks.common.arrays import Arrays

MARK = "slice.json"  # in the folder of a slice: what it did; written last
BLOCKS = "CONTRAPPOSTO_BLOCKS"  # environment variable: the folder of blocks that were computed elsewhere

Block = Callable[[], Arrays]


@dataclass(frozen=True)
class Share:
    """The share of the blocks that is computed by a slice, and the folder for their results."""

    rank: int
    world: int
    folder: Path


class ShareDone(Exception):
    """A slice has computed its share; there is nothing else to do in its process."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.total = total  # number of blocks of all slices


_share: ContextVar[Share | None] = ContextVar("share", default=None)


@contextmanager
def slice_of(rank: int, world: int, folder: Path) -> Iterator[None]:
    """Let the stage that is called in this block compute a share of its blocks and leave with ShareDone."""
    token = _share.set(Share(rank, world, folder))
    try:
        yield
    finally:
        _share.reset(token)


def computed(work: Sequence[Block], label: str) -> list[Arrays]:
    """What the blocks return, in their order; `label` names the progress bar. Raises ShareDone in a slice."""
    share = _share.get()
    if share is not None:
        for number in tqdm(range(share.rank, len(work), share.world), label, unit="block", mininterval=2):
            arrays.write(share.folder / file_name(number), work[number]())
        raise ShareDone(len(work))
    given = os.environ.get(BLOCKS)
    results = []
    for number, block in enumerate(tqdm(work, label, unit="block", mininterval=2)):
        path = Path(given) / file_name(number) if given else None
        results.append(arrays.read(path) if path is not None and path.is_file() else block())
    return results


def divided() -> bool:
    """Whether this is a slice of the stage, or blocks were computed elsewhere."""
    return _share.get() is not None or BLOCKS in os.environ


def file_name(number: int) -> str:
    """The name of a block's file."""
    return f"{number:06d}.npz"
