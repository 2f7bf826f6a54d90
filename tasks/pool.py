"""An ordered map over processes whose workers hold something costly and may crash or hang in native code.

Each worker has its own pipe and is given a few items at a time. Which one it is at, and when it last gave a sign of life,
it says in shared memory: when it dies, the item it died on is known, and when the parent dies, it reads the end of its pipe
and leaves. Memory does not grow with the items.
"""

from __future__ import annotations

import ctypes
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
Function = Callable[[Item], Result]
Steps = tuple[
    Callable[[Any], Any], ...
]  # the first takes an item, each other what the one before gave; the last a result
OpenFunction = Callable[[], AbstractContextManager[Function[Item, Result] | Steps]]

_IN_HAND_S = 0.5  # seconds of work that a worker is given: half of them in work, half lest it wait for the parent
_MOST = 16  # items given to a worker at once; they and their results should be small (see `ordered_map`)
_WINDOW = 512  # results that may wait for an earlier, slower one
_STILLBORN = 3  # workers that may end before they begin an item: once may be chance, this is the machine or the code
_READY, _ANSWERS, _ERROR = "ready", "answers", "error"  # what a worker says


class _Where(ctypes.Structure):
    """Shared by a worker and its parent."""

    _fields_ = (("position", ctypes.c_longlong), ("alive", ctypes.c_double))  # of the item; by time.monotonic()


_where: _Where | None = None  # in a worker


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
    if _where is not None:
        _where.alive = time.monotonic()


def ordered_map(
    open_function: OpenFunction[Item, Result],
    items: Iterable[Item],
    workers: int,
    lost: Callable[[WorkerDied], Result] | None = None,
    time_limit: float | None = None,
) -> Generator[Result, None, None]:
    """The function's result for each item, in the items' order. Items are asked for as workers become free.

    Each worker process enters `open_function()` once and calls the function that it gives; it is pickled by name. Where it
    gives several, they are the steps of the function: a few quick items that a worker was given at once go through the first
    together, then through the second, so that each step finds the processor's caches as it left them. What eight items are
    between two steps has to fit into memory, and sixteen items, or else their results, into a pipe (64 kB).

    A UserError raised in a worker is raised here, and a full disk's OSError. An item on which a process ends is tried once
    more in another, and one that stays in a step for longer than `time_limit` seconds is given up; then its result is
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

    def some(most: int) -> list[tuple[int, Item]]:
        positions = (to_do() for _ in range(most))
        return [(position, waiting[position]) for position in positions if position is not None]

    try:
        while True:
            for worker in team:
                while worker.free and (given := some(worker.free)):
                    worker.give(given)
            while len(team) < workers and (given := some(1)):
                team.append(_Worker(open_function))
                team[-1].give(given)
            busy = [worker for worker in team if worker.given]
            if not busy:
                return
            ready = wait([worker.pipe for worker in busy], time_limit)
            for worker in busy:
                try:
                    if worker.pipe in ready:
                        done.update(worker.take())
                    elif worker.began and time.monotonic() - worker.where.alive > (time_limit or inf):
                        raise worker.hangs()
                except _Ended as ended:
                    team[team.index(worker)] = _Worker(open_function)
                    again.extend(worker.given)
                    position = worker.where.position
                    if not worker.began or position not in worker.given:  # no item was in work
                        stillborn += 1
                        if stillborn == _STILLBORN:
                            raise WorkerDied(waiting[worker.given[0]], ended.exit_code) from None
                        continue
                    if position not in suspects and ended.exit_code is not None:
                        suspects.add(position)
                        continue
                    again.remove(position)
                    death = WorkerDied(waiting[position], ended.exit_code)
                    if lost is None:
                        raise death from None
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
        self.where: _Where = context.RawValue(_Where, -1, time.monotonic())
        self.process = context.Process(target=_serve, args=(theirs, self.where, open_function), daemon=True)
        self.process.start()
        theirs.close()
        self.given: deque[int] = deque()
        self.began = False
        self._in_hand = 1  # items it should have: fewer the longer they take

    @property
    def free(self) -> int:
        """How many items it should be given now, to work on together; 0 if it has enough."""
        half = max(1, self._in_hand // 2)
        return half if len(self.given) + half <= self._in_hand else 0

    def give(self, items: list[tuple[int, Item]]) -> None:
        if not self.given:
            self.where.alive = time.monotonic()
        self.given.extend(position for position, _ in items)
        try:
            self.pipe.send(items)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended, and `take` will say so

    def take(self) -> dict[int, Result]:
        """What the worker has said: answers by position, if any. Raises _Ended."""
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError):  # it may have ended within a message
            self.process.join()
            raise _Ended(self.process.exitcode) from None
        self.began = True
        if kind == _ERROR:
            raise value
        if kind == _READY:
            return {}
        answers, seconds = value
        for position in answers:
            self.given.remove(position)
        self._in_hand = max(1, min(_MOST, int(_IN_HAND_S * len(answers) / max(seconds, 1e-6))))
        return answers

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


def _serve(pipe: Connection, where: _Where, open_function: OpenFunction[Any, Any]) -> None:
    """The life of a worker process: answer items until the parent closes the pipe or is gone."""
    global _where
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    _where = where
    try:
        with open_function() as function:
            steps = function if isinstance(function, tuple) else (function,)
            pipe.send((_READY, None))
            while True:
                answers = dict(pipe.recv())
                began = time.monotonic()
                for step in steps:
                    for position, value in answers.items():
                        where.position, where.alive = position, time.monotonic()
                        answers[position] = step(value)
                pipe.send((_ANSWERS, (answers, time.monotonic() - began)))
    except UserError as error:
        pipe.send((_ERROR, error))
    except (EOFError, ConnectionError):
        return
    except OSError as error:
        if error.errno not in FULL:
            raise
        pipe.send((_ERROR, error))  # no fault of the item's: no other process would do better
