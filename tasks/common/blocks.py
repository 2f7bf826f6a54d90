"""Work that a stage does in independent blocks, so that an engine can have some of them done elsewhere (docs/scaling.md).

A stage makes a list of blocks, functions without arguments that return arrays, and iterates over `computed` of it. What a
block returns is a pure function of the stage's inputs and the block's number. The stage computes the same blocks wherever it
runs, so its outputs have the same bytes whoever computed which of them:

    as a whole      `computed` computes every block
    as a slice      it computes every WORLD-th block from the RANK-th, writes each into a folder, and ends the stage
    after slices    it reads the blocks that are in the folder named by the environment variable BLOCKS, and computes the others

The stage ends at its first `computed` when it runs as a slice: what depends on these blocks is left to the stage itself.

A stage may take only the first blocks of the list, as many as it turns out to need. It tells `computed` how many it expects to
need, and slices compute so many. If these are not enough, the stage ends with MoreBlocks, and the file WANTED says which blocks
slices have to compute before it runs again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from tasks.common import arrays, files
from tasks.common.arrays import Arrays
from tasks.common.errors import UserError

MARK = "slice.json"  # in the folder of a slice: what it did; written last
BLOCKS = "CONTRAPPOSTO_BLOCKS"  # environment variable: the folder of blocks that were computed elsewhere
WANTED = "wanted.json"  # in that folder: [FIRST, LAST], the blocks from FIRST to LAST - 1 are needed as well

Block = Callable[[], Arrays]


@dataclass(frozen=True)
class Share:
    """The share of the blocks that is computed by a slice, and the folder for their results.

    Only the blocks from `first` to `last` - 1 are divided; `last` None: to the last one that the stage expects to need.
    """

    rank: int
    world: int
    folder: Path
    first: int = 0
    last: int | None = None


class ShareDone(Exception):
    """A slice has computed its share; there is nothing else to do in its process."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.total = total  # number of blocks in the list


class MoreBlocks(UserError):
    """A stage needs blocks that its slices have not computed; the file WANTED says which."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__(
            f"Blocks {first} to {last - 1} are needed as well; the engine has slices compute them.", code=1
        )


_share: ContextVar[Share | None] = ContextVar("share", default=None)


@contextmanager
def slice_of(rank: int, world: int, folder: Path, first: int = 0, last: int | None = None) -> Iterator[None]:
    """Let the stage that is called in this context compute a share of its blocks and leave with ShareDone; see Share."""
    token = _share.set(Share(rank, world, folder, first, last))
    try:
        yield
    finally:
        _share.reset(token)


def computed(work: Sequence[Block], label: str, needed: Callable[[], int] | None = None) -> Iterator[Arrays]:
    """What the blocks return, in their order; `label` names the progress bar.

    `needed`, of a stage that may not take all of them: how many more it expects to take, at least 1. Raises ShareDone in a
    slice. After slices, the iterator raises MoreBlocks if the stage takes more than they computed.
    """

    def expected(first: int) -> int:
        return len(work) if needed is None else min(first + needed(), len(work))

    share = _share.get()
    if share is not None:
        last = expected(share.first) if share.last is None else min(share.last, len(work))
        for number in tqdm(range(share.first + share.rank, last, share.world), label, unit="block", mininterval=2):
            arrays.write(share.folder / file_name(number), work[number]())
        raise ShareDone(len(work))
    total = len(work) if needed is None else math.inf  # unknown
    numbers = tqdm(range(len(work)), label, total, unit="block", mininterval=2)
    given = os.environ.get(BLOCKS)
    if given is None:
        return (work[number]() for number in numbers)
    return _after_slices(Path(given), work, numbers, None if needed is None else expected)


def _after_slices(
    folder: Path, work: Sequence[Block], numbers: Iterable[int], expected: Callable[[int], int] | None
) -> Iterator[Arrays]:
    """The blocks in `folder`, and the others computed, or with `expected` wanted from slices."""
    for number in numbers:
        path = folder / file_name(number)
        if path.is_file():
            yield arrays.read(path)
        elif expected is None:
            yield work[number]()
        else:
            last = expected(number)
            files.write_json(folder / WANTED, [number, last])
            raise MoreBlocks(number, last)


def divided() -> bool:
    """Whether this is a slice of the stage, or blocks were computed elsewhere."""
    return _share.get() is not None or BLOCKS in os.environ


def file_name(number: int) -> str:
    """The name of a block's file."""
    return f"{number:06d}.npz"
