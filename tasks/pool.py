"""An ordered map over processes whose workers hold something costly and may crash in native code.

Each worker has its own pipe and is given at most two items ahead: when one dies, the item it died on is known, and
when the parent dies, every worker reads the end of its pipe and leaves. Memory does not grow with the items.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, NoReturn, TypeVar

from tasks.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2  # items given to a worker at once: one in work, one so that it need not wait for the parent
_WINDOW = 512  # results that may wait for an earlier, slower one


class WorkerDied(Exception):
    """A worker process ended on an item without an answer; `exit_code` is -N where signal N ended it."""

    def __init__(self, item: Any, exit_code: int | None) -> None:
        super().__init__(item, exit_code)
        self.item = item
        self.exit_code = exit_code


def ordered_map(
    open_function: Callable[[], AbstractContextManager[Callable[[Item], Result]]],
    items: Sequence[Item],
    workers: int,
) -> Generator[Result, None, None]:
    """The function's result for each item, in the items' order.

    Each worker process enters `open_function()` once and calls the function that it gives; it is pickled by name. A
    UserError raised in a worker is raised here. Raises WorkerDied if a process ends unasked.
    """
    team = [_Worker(open_function, items) for _ in range(min(workers, len(items)))]
    done: dict[int, Result] = {}
    given = delivered = 0
    try:
        while delivered < len(items):
            for worker in team:
                while len(worker.given) < _AHEAD and given < min(len(items), delivered + _WINDOW):
                    worker.give(given)
                    given += 1
            ready = wait([worker.pipe for worker in team if worker.given])
            for worker in team:
                if worker.pipe in ready:
                    position, result = worker.take()
                    done[position] = result
            while delivered in done:
                yield done.pop(delivered)
                delivered += 1
    finally:
        for worker in team:
            worker.dismiss()
        for worker in team:
            worker.process.join()


class _Worker(Generic[Item, Result]):
    """One process, the pipe to it, and the positions of the items it was given and has not answered."""

    def __init__(
        self,
        open_function: Callable[[], AbstractContextManager[Callable[[Item], Result]]],
        items: Sequence[Item],
    ) -> None:
        context = multiprocessing.get_context("spawn")  # native thread pools do not survive a fork
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, open_function), daemon=True)
        self.process.start()
        theirs.close()
        self.items = items
        self.given: deque[int] = deque()

    def give(self, position: int) -> None:
        self.given.append(position)
        try:
            self.pipe.send(self.items[position])
        except BrokenPipeError:
            self._died()

    def take(self) -> tuple[int, Result]:
        try:
            answer = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._died()
        if isinstance(answer, UserError):
            raise answer
        return self.given.popleft(), answer

    def dismiss(self) -> None:
        """Let an idle worker leave by itself; end a busy one."""
        if self.given:
            self.process.terminate()
        self.pipe.close()

    def _died(self) -> NoReturn:
        self.process.join()
        raise WorkerDied(self.items[self.given[0]], self.process.exitcode)


def _serve(pipe: Connection, open_function: Callable[[], AbstractContextManager[Callable[[Any], Any]]]) -> None:
    """The life of a worker process: answer items until the parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    try:
        with open_function() as function:
            while True:
                pipe.send(function(pipe.recv()))
    except UserError as error:
        pipe.send(error)
    except (EOFError, ConnectionError):
        return
