"""An ordered map over processes whose workers hold something costly and may crash or hang in native code.

Each worker has its own pipe and is given a few items at a time: when one dies, the item it died on is known, and
when the parent dies, every worker reads the end of its pipe and leaves. Memory does not grow with the items.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from math import inf
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from tasks.errors import FULL, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
OpenFunction = Callable[[], AbstractContextManager[Callable[[Item], Result]]]

_AHEAD = (
    4  # items given to a worker at once: one in work, and some lest it wait for the parent, which waits for the disk
)
_WINDOW = 512  # results that may wait for an earlier, slower one
_STILLBORN = 3  # workers that may end before they can begin: once may be chance, this is the machine or the code
_READY, _ALIVE = "ready", "alive"  # what a worker says besides its answers

_to_parent: Connection | None = None  # in a worker


class WorkerDied(Exception):
    """A worker process ended on an item, twice, without an answer; `exit_code` is -N where signal N ended it.

    `exit_code` is None where the worker was ended because it gave no sign of life for the time limit.
    """

    def __init__(self, item: Any, exit_code: int | None) -> None:
        super().__init__(item, exit_code)
        self.item = item
        self.exit_code = exit_code


def sign_of_life() -> None:
    """In a worker, on a long item: starts the time limit anew."""
    if _to_parent is not None:
        _to_parent.send((_ALIVE, None))


def ordered_map(
    open_function: OpenFunction[Item, Result],
    items: Iterable[Item],
    workers: int,
    lost: Callable[[WorkerDied], Result] | None = None,
    time_limit: float | None = None,
) -> Generator[Result, None, None]:
    """The function's result for each item, in the items' order. Items are asked for as workers become free.

    Each worker process enters `open_function()` once and calls the function that it gives; it is pickled by name. A
    UserError raised in a worker is raised here, and a full disk's OSError. An item on which a process ends is tried once
    more in another, and one that takes longer than `time_limit` seconds is given up; then its result is
    `lost(WorkerDied(...))`, or WorkerDied is raised where `lost` is None, or where process after process ends before it has
    begun.
    """
    team: list[_Worker[Item, Result]] = []
    coming = enumerate(items)
    waiting: dict[int, Item] = {}  # items whose results have not been delivered
    done: dict[int, Result] = {}
    again: deque[int] = deque()  # items that a dead worker has left behind
    suspects: set[int] = set()  # items on which a process has ended once
    delivered = stillborn = 0

    def to_do() -> int | None:
        """The position of an item that somebody has to work on, if one is there by now."""
        if again:
            return again.popleft()
        if len(waiting) == _WINDOW or (new := next(coming, None)) is None:
            return None
        waiting[new[0]] = new[1]
        return new[0]

    try:
        while True:
            for worker in team:
                while len(worker.given) < _AHEAD and (position := to_do()) is not None:
                    worker.give(position, waiting[position])
            while len(team) < workers and (position := to_do()) is not None:
                team.append(_Worker(open_function))
                team[-1].give(position, waiting[position])
            busy = [worker for worker in team if worker.given]
            if not busy:
                return
            ready = wait([worker.pipe for worker in busy], time_limit)
            for worker in busy:
                try:
                    if worker.pipe in ready:
                        done.update(worker.take())
                    elif worker.began and time.monotonic() - worker.heard > (time_limit or inf):
                        raise worker.hangs()
                except _Ended as ended:
                    team[team.index(worker)] = _Worker(open_function)
                    position, *left = worker.given
                    death = WorkerDied(waiting[position], ended.exit_code)
                    again.extend(left)
                    stillborn += not worker.began
                    if stillborn == _STILLBORN:
                        raise death from None
                    if not worker.began:
                        again.append(position)
                    elif position not in suspects and ended.exit_code is not None:
                        suspects.add(position)
                        again.append(position)
                    elif lost is None:
                        raise death from None
                    else:
                        done[position] = lost(death)
            while delivered in done:
                yield done.pop(delivered)
                del waiting[delivered]
                delivered += 1
    finally:
        for worker in team:
            worker.dismiss()
        for worker in team:
            worker.process.join()


class _Ended(Exception):
    """A worker process is no more; None where it had to be ended."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class _Worker(Generic[Item, Result]):
    """One process, the pipe to it, and the positions of the items it was given and has not answered."""

    def __init__(self, open_function: OpenFunction[Item, Result]) -> None:
        context = multiprocessing.get_context("spawn")  # native thread pools do not survive a fork
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, open_function), daemon=True)
        self.process.start()
        theirs.close()
        self.given: deque[int] = deque()
        self.began = False
        self.heard = time.monotonic()  # when it last gave a sign of life

    def give(self, position: int, item: Item) -> None:
        if not self.given:
            self.heard = time.monotonic()
        self.given.append(position)
        try:
            self.pipe.send(item)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended, and `take` will say so

    def take(self) -> dict[int, Result]:
        """What the worker has said: an answer with its position, or nothing but a sign of life. Raises _Ended."""
        try:
            kind, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            raise _Ended(self.process.exitcode) from None
        self.heard = time.monotonic()
        self.began = True
        if isinstance(value, (UserError, OSError)):
            raise value
        return {} if kind in (_READY, _ALIVE) else {self.given.popleft(): value}

    def hangs(self) -> _Ended:
        """End the process."""
        self.process.kill()
        self.process.join()
        return _Ended(None)

    def dismiss(self) -> None:
        """Let an idle worker leave by itself; end a busy one."""
        if self.given:
            self.process.terminate()
        self.pipe.close()


def _serve(pipe: Connection, open_function: OpenFunction[Any, Any]) -> None:
    """The life of a worker process: answer items until the parent closes the pipe or is gone."""
    global _to_parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    _to_parent = pipe
    try:
        with open_function() as function:
            pipe.send((_READY, None))
            while True:
                item = pipe.recv()
                pipe.send(("answer", function(item)))
    except UserError as error:
        pipe.send(("error", error))
    except (EOFError, ConnectionError):
        return
    except OSError as error:
        if error.errno not in FULL:
            raise
        pipe.send(("error", error))  # no fault of the item's: no other process would do better
