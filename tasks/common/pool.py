"""An ordered map over processes whose workers hold something costly and may crash or hang in native code.

Each worker has its own pipe and is given a few items at a time. Which one it is at, and when it last gave a sign of life,
it says in shared memory: when it dies, the item it died on is known, and when the parent dies, it reads the end of its pipe
and leaves. Memory does not grow with the items.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from math import inf
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from tasks.common.errors import FULL, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
Function = Callable[[Item], Result]
Steps = tuple[
    Callable[[Any], Any], ...
]  # the first takes an item, each other what the one before gave; the last a result
OpenFunction = Callable[[], AbstractContextManager[Function[Item, Result] | Steps]]

_IN_HAND_S = 1.0  # seconds of work that a worker is given: half of them in work, half lest it wait for the parent
_MOST = 16  # items given to a worker at once; they and their results should be small (see `OrderedMap`)
_WINDOW = 512  # results that may wait for an earlier, slower one
_STILLBORN = 3  # workers that may end before they begin an item: once may be chance, this is the machine or the code
# Never a fork of this process: native thread pools do not survive it. On Linux workers are forked from a process that has
# imported what they need and nothing else; macOS's frameworks do not survive even that.
_CONTEXT = (
    multiprocessing.get_context("forkserver") if sys.platform == "linux" else multiprocessing.get_context("spawn")
)
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


def prepare(module: str) -> None:
    """Begin to import what workers will need, once for all of them; before this process's first `OrderedMap`.

    Does nothing where each worker has to import for itself.
    """
    if _CONTEXT.get_start_method() == "forkserver":
        _CONTEXT.set_forkserver_preload([module])
        forkserver.ensure_running()


def sign_of_life() -> None:
    """In a worker, on a long item: starts the time limit anew."""
    if _where is not None:
        _where.alive = time.monotonic()


class OrderedMap(Iterator[Result], Generic[Item, Result]):
    """The function's result for each item, in the items' order. Items are asked for as workers become free.

    Work begins with the constructor. Each worker process enters `open_function()` once and calls the function that it gives;
    it is pickled by name. Where it gives several, they are the steps of the function: a few quick items that a worker was
    given at once go through the first together, then through the second, so that each step finds the processor's caches as it
    left them. What eight items are between two steps has to fit into memory, and sixteen items, or else their results, into a
    pipe (64 kB).

    A UserError raised in a worker is raised here, and a full disk's OSError. An item on which a process ends is tried once
    more in another, and one that stays in a step for longer than `time_limit` seconds is given up; then its result is
    `lost(WorkerDied(...))`, or WorkerDied is raised where `lost` is None, or where process after process ends before it has
    begun. Who leaves before the end calls `close`.
    """

    def __init__(
        self,
        open_function: OpenFunction[Item, Result],
        items: Iterable[Item],
        workers: int,
        lost: Callable[[WorkerDied], Result] | None = None,
        time_limit: float | None = None,
    ) -> None:
        self._open_function, self._workers, self._lost, self._time_limit = open_function, workers, lost, time_limit
        self._team: list[_Worker[Item, Result]] = []
        self._coming = enumerate(items)
        self._waiting: dict[int, Item] = {}  # items whose results have not been delivered
        self._done: dict[int, Result] = {}
        self._again: deque[int] = deque()  # items that a dead worker has left behind
        self._suspects: set[int] = set()  # items on which a process has ended once
        self._delivered = self._stillborn = 0
        with self._ending_with_an_error():
            self._employ()

    def __next__(self) -> Result:
        while self._delivered not in self._done:
            if not self._turn(self._time_limit):
                self.close()
                raise StopIteration
        result = self._done.pop(self._delivered)
        del self._waiting[self._delivered]
        self._delivered += 1
        return result

    def poll(self) -> None:
        """Hear what workers have said and give them more, without waiting: for one who has other work for a while."""
        self._turn(0)

    def close(self) -> None:
        """End the workers."""
        for worker in self._team:
            worker.dismiss()
        for worker in self._team:
            worker.process.join()
        self._team = []

    @contextmanager
    def _ending_with_an_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _turn(self, timeout: float | None) -> bool:
        """Give, and take what there is by then; False where nobody has anything to do."""
        with self._ending_with_an_error():
            self._employ()
            busy = [worker for worker in self._team if worker.given]
            ready = wait([worker.pipe for worker in busy], timeout) if busy else []
            for worker in busy:
                try:
                    if worker.pipe in ready:
                        self._done.update(worker.take())
                    elif worker.began and time.monotonic() - worker.where.alive > (self._time_limit or inf):
                        raise worker.hangs()
                except _Ended as ended:
                    self._team[self._team.index(worker)] = _Worker(self._open_function)
                    self._bury(worker, ended.exit_code)
            return bool(busy)

    def _employ(self) -> None:
        for worker in self._team:
            while worker.free and (given := self._some(worker.free)):
                worker.give(given)
        while len(self._team) < self._workers and (given := self._some(1)):
            self._team.append(_Worker(self._open_function))
            self._team[-1].give(given)

    def _some(self, most: int) -> list[tuple[int, Item]]:
        positions = (self._to_do() for _ in range(most))
        return [(position, self._waiting[position]) for position in positions if position is not None]

    def _to_do(self) -> int | None:
        """The position of an item that somebody has to work on, if one is there by now."""
        if self._again:
            return self._again.popleft()
        if len(self._waiting) == _WINDOW or (new := next(self._coming, None)) is None:
            return None
        self._waiting[new[0]] = new[1]
        return new[0]

    def _bury(self, worker: _Worker[Item, Result], exit_code: int | None) -> None:
        """Decide what becomes of the items of a worker that has ended."""
        self._again.extend(worker.given)
        position = worker.where.position
        if not worker.began or position not in worker.given:  # no item was in work
            self._stillborn += 1
            if self._stillborn == _STILLBORN:
                raise WorkerDied(self._waiting[worker.given[0]], exit_code) from None
            return
        if position not in self._suspects and exit_code is not None:
            self._suspects.add(position)
            return
        self._again.remove(position)
        death = WorkerDied(self._waiting[position], exit_code)
        if self._lost is None:
            raise death from None
        self._done[position] = self._lost(death)


class _Ended(Exception):
    """A worker process is no more; None where it had to be ended."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class _Worker(Generic[Item, Result]):
    """One process, the pipe to it, and the positions of the items it was given and has not answered."""

    def __init__(self, open_function: OpenFunction[Item, Result]) -> None:
        self.pipe, theirs = _CONTEXT.Pipe()
        self.where: _Where = _CONTEXT.RawValue(_Where, -1, time.monotonic())
        self.process = _CONTEXT.Process(target=_serve, args=(theirs, self.where, open_function), daemon=True)
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
        """Let an idle worker leave by itself; end one that is busy, or still beginning."""
        if self.given or not self.began:
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
