"""The ordered map: order, errors, crashes and orphans."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from tasks.errors import DataError
from tasks.pool import WorkerDied, ordered_map


@contextmanager
def tripling(trap: int, trace: str) -> Iterator[Callable[[int], int]]:
    """Triples numbers, small ones slowly, and does something bad at `trap` if that is one of the items."""

    def triple(number: int) -> int:
        time.sleep(0.02 if number < 4 else 0)
        if number == trap:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == -1:
            raise DataError("the data says no")
        if trace:
            Path(trace, str(os.getpid())).touch()
            time.sleep(0.1)
        return 3 * number

    yield triple


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_items(workers):
    results = ordered_map(partial(tripling, 10**9, ""), range(1500), workers)
    assert list(results) == [3 * i for i in range(1500)]


def test_no_items_need_no_workers():
    assert list(ordered_map(partial(tripling, 0, ""), [], 2)) == []


def test_a_killed_worker_names_the_item_it_died_on():
    with pytest.raises(WorkerDied) as caught:
        list(ordered_map(partial(tripling, 37, ""), range(100), 2))
    assert caught.value.item == 37
    assert caught.value.exit_code == -signal.SIGKILL


def test_an_error_of_the_users_crosses_over_with_its_exit_code():
    with pytest.raises(DataError, match="the data says no") as caught:
        list(ordered_map(partial(tripling, 10**9, ""), [5, 6, -1, 7], 2))
    assert caught.value.code == 3


def test_workers_leave_when_the_parent_is_killed(tmp_path):
    code = (
        "from functools import partial; from tasks.pool import ordered_map; from test_pool import tripling;"
        f"list(ordered_map(partial(tripling, 10**9, {str(tmp_path)!r}), range(10**6), 2))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent)
    deadline = time.monotonic() + 30
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [psutil.Process(int(path.name)) for path in tmp_path.iterdir()]
    parent.kill()
    parent.wait()
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
