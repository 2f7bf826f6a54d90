"""An ordered map over worker processes that hold an expensive resource and may crash or hang in native code.

Each worker has its own pipe and receives a few items at a time. It records in shared memory which item it is working on
and when it last made progress, so the parent knows on which item a dead worker died. A worker whose parent dies reads the
end of its pipe and exits. Memory use does not grow with the number of items.
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
# The first step takes an item, every other one what the step before returned; the last returns the result.
Steps = tuple[Callable[[Any], Any], ...]
OpenFunction = Callable[[], AbstractContextManager[Function[Item, Result] | Steps]]

_ASSIGNED_SECONDS = (
    1.0  # work assigned to a worker: half in progress, half queued so that it never waits for the parent
)
_MAX_ASSIGNED = 16  # items assigned to a worker at once; they and their results should be small (see `OrderedMap`)
_MAX_PENDING = 512  # results that may wait for an earlier, slower one
_MAX_FAILED_STARTS = 3  # workers that may die before they start an item; more are the fault of the machine or the code
# Workers are never forked from this process: native thread pools do not survive a fork. On Linux they are forked from a
# server process that has only imported what they need; macOS frameworks do not survive even that.
CONTEXT = multiprocessing.get_context("forkserver") if sys.platform == "linux" else multiprocessing.get_context("spawn")
_READY, _ANSWERS, _ERROR = "ready", "answers", "error"  # kinds of messages from a worker


class _Progress(ctypes.Structure):
    """Shared memory of a worker and its parent: the current item's position, and the time (time.monotonic) of its last
    progress."""

    _fields_ = (("position", ctypes.c_longlong), ("heartbeat", ctypes.c_double))


_progress: _Progress | None = None  # set in worker processes only


class WorkerDied(Exception):
    """A worker process died on an item twice.

    `exit_code` is -N if signal N ended the process, and None if the parent killed it because it exceeded the time limit.
    """

    def __init__(self, item: Any, exit_code: int | None) -> None:
        super().__init__(item, exit_code)
        self.item = item
        self.exit_code = exit_code


def preload(module: str) -> None:
    """Start importing what workers will need, once for all of them. Call it before this process's first `OrderedMap`.

    Does nothing on systems where every worker imports for itself.
    """
    if CONTEXT.get_start_method() == "forkserver":
        CONTEXT.set_forkserver_preload([module])
        forkserver.ensure_running()


def heartbeat() -> None:
    """Restart the time limit of the current item; long items call it in their worker."""
    if _progress is not None:
        _progress.heartbeat = time.monotonic()


class OrderedMap(Iterator[Result], Generic[Item, Result]):
    """The function's result for each item, in the items' order. Items are taken from the iterable as workers become free.

    Work starts in the constructor. Each worker process enters `open_function()` once and calls the function that it yields;
    `open_function` is pickled by name. If it yields a tuple of functions, they are the steps of the function: a worker runs
    all items that it received together through the first step, then through the second, and so on, so that each step runs
    with warm processor caches. The intermediate values of eight items must fit into memory, and sixteen items, or their
    results, into a pipe (64 kB).

    A UserError raised in a worker is raised here, and so is an OSError about a full disk. An item on which a worker dies is
    tried once more in another worker. An item that exceeds `time_limit` seconds in one step is given up at once. The result
    of an item that was given up is `lost(WorkerDied(...))`; WorkerDied is raised if `lost` is None, or if worker after worker
    dies before it starts an item. Call `close` to stop before the end.
    """

    def __init__(
        self,
        open_function: OpenFunction[Item, Result],
        items: Iterable[Item],
        workers: int,
        lost: Callable[[WorkerDied], Result] | None = None,
        time_limit: float | None = None,
    ) -> None:
        self._open_function, self._worker_count, self._lost, self._time_limit = open_function, workers, lost, time_limit
        self._workers: list[_Worker[Item, Result]] = []
        self._items = enumerate(items)
        self._pending: dict[int, Item] = {}  # items whose results have not been delivered
        self._results: dict[int, Result] = {}
        self._retries: deque[int] = deque()  # items assigned to a worker that died
        self._crashed_once: set[int] = set()
        self._delivered = self._failed_starts = 0
        with self._closing_on_error():
            self._assign()

    def __next__(self) -> Result:
        while self._delivered not in self._results:
            if not self._exchange(self._time_limit):
                self.close()
                raise StopIteration
        result = self._results.pop(self._delivered)
        del self._pending[self._delivered]
        self._delivered += 1
        return result

    def extend(self, items: Iterable[Item]) -> None:
        """Go on with these items, with the same workers; all results of the items before have to be taken."""
        self._items = enumerate(items, self._delivered)

    def poll(self) -> None:
        """Collect results and assign items without waiting. Callers that do other work between results call it now and
        then, so that the workers stay busy."""
        self._exchange(0)

    def close(self) -> None:
        """Stop the workers."""
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.process.join()
        self._workers = []

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _exchange(self, timeout: float | None) -> bool:
        """Assign items, and collect the results that arrive within `timeout` seconds; False if no worker has work."""
        with self._closing_on_error():
            self._assign()
            busy = [worker for worker in self._workers if worker.assigned]
            ready = wait([worker.pipe for worker in busy], timeout) if busy else []
            for worker in busy:
                try:
                    if worker.pipe in ready:
                        self._results.update(worker.receive())
                    elif worker.ready and time.monotonic() - worker.progress.heartbeat > (self._time_limit or inf):
                        raise worker.kill()
                except _WorkerEnded as ended:
                    self._workers[self._workers.index(worker)] = _Worker(self._open_function)
                    self._handle_death(worker, ended.exit_code)
            return bool(busy)

    def _assign(self) -> None:
        for worker in self._workers:
            while worker.capacity and (items := self._next_items(worker.capacity)):
                worker.assign(items)
        while len(self._workers) < self._worker_count and (items := self._next_items(1)):
            self._workers.append(_Worker(self._open_function))
            self._workers[-1].assign(items)

    def _next_items(self, most: int) -> list[tuple[int, Item]]:
        positions = (self._next_position() for _ in range(most))
        return [(position, self._pending[position]) for position in positions if position is not None]

    def _next_position(self) -> int | None:
        """The position of the next item to assign; None if there is none at the moment."""
        if self._retries:
            return self._retries.popleft()
        if len(self._pending) == _MAX_PENDING or (new := next(self._items, None)) is None:
            return None
        self._pending[new[0]] = new[1]
        return new[0]

    def _handle_death(self, worker: _Worker[Item, Result], exit_code: int | None) -> None:
        """Decide which items of a dead worker are tried again and which one is given up."""
        self._retries.extend(worker.assigned)
        position = worker.progress.position
        if not worker.ready or position not in worker.assigned:  # it was not working on an item
            self._failed_starts += 1
            if self._failed_starts == _MAX_FAILED_STARTS:
                raise WorkerDied(self._pending[worker.assigned[0]], exit_code) from None
            return
        if position not in self._crashed_once and exit_code is not None:
            self._crashed_once.add(position)
            return
        self._retries.remove(position)
        death = WorkerDied(self._pending[position], exit_code)
        if self._lost is None:
            raise death from None
        self._results[position] = self._lost(death)


class _WorkerEnded(Exception):
    """A worker process has ended; `exit_code` is None if the parent killed it."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class _Worker(Generic[Item, Result]):
    """One process, the pipe to it, and the positions of the items that it was assigned and has not answered."""

    def __init__(self, open_function: OpenFunction[Item, Result]) -> None:
        self.pipe, worker_end = CONTEXT.Pipe()
        self.progress: _Progress = CONTEXT.RawValue(_Progress, -1, time.monotonic())
        self.process = CONTEXT.Process(target=_serve, args=(worker_end, self.progress, open_function), daemon=True)
        self.process.start()
        worker_end.close()
        self.assigned: deque[int] = deque()
        self.ready = False
        self._target = 1  # how many items to keep assigned: the slower the items, the fewer

    @property
    def capacity(self) -> int:
        """How many items to assign now, to be worked on together; 0 if it has enough."""
        half = max(1, self._target // 2)
        return half if len(self.assigned) + half <= self._target else 0

    def assign(self, items: list[tuple[int, Item]]) -> None:
        if not self.assigned:
            self.progress.heartbeat = time.monotonic()
        self.assigned.extend(position for position, _ in items)
        try:
            self.pipe.send(items)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended; `receive` will report it

    def receive(self) -> dict[int, Result]:
        """Read one message of the worker: results by position, if any. Raises _WorkerEnded."""
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError):  # the message may be incomplete
            self.process.join()
            raise _WorkerEnded(self.process.exitcode) from None
        self.ready = True
        if kind == _ERROR:
            raise value
        if kind == _READY:
            return {}
        answers: dict[int, Result]
        answers, seconds = value
        for position in answers:
            self.assigned.remove(position)
        self._target = max(1, min(_MAX_ASSIGNED, int(_ASSIGNED_SECONDS * len(answers) / max(seconds, 1e-6))))
        return answers

    def kill(self) -> _WorkerEnded:
        """Kill the process; returns the exception to raise."""
        self.process.kill()
        self.process.join()
        return _WorkerEnded(None)

    def stop(self) -> None:
        """Terminate a worker that is busy or still starting; let an idle one exit by itself."""
        if self.assigned or not self.ready:
            self.process.terminate()
        self.pipe.close()


def _serve(pipe: Connection, progress: _Progress, open_function: OpenFunction[Any, Any]) -> None:
    """The main function of a worker process: answer items until the parent closes the pipe or dies."""
    global _progress
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    _progress = progress
    try:
        with open_function() as function:
            steps = function if isinstance(function, tuple) else (function,)
            pipe.send((_READY, None))
            while True:
                answers = dict(pipe.recv())
                began = time.monotonic()
                for step in steps:
                    for position, value in answers.items():
                        progress.position, progress.heartbeat = position, time.monotonic()
                        answers[position] = step(value)
                pipe.send((_ANSWERS, (answers, time.monotonic() - began)))
    except UserError as error:
        pipe.send((_ERROR, error))
    except (EOFError, ConnectionError):
        return
    except OSError as error:
        if error.errno not in FULL:
            raise
        pipe.send((_ERROR, error))  # not the item's fault: another process would fail too
