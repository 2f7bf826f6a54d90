"""The ordered map: order, errors, crashes and orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.common.errors import DataError
from tasks.common.pool import OrderedMap, Steps, WorkerDied, heartbeat
from tests.support.project import PROJECT


@contextmanager
def tripling(trap: int, trace: str) -> Iterator[Callable[[int], int]]:
    """Triples numbers, small ones slowly. It is killed at `trap`; negative numbers crash, hang or fail."""

    def triple(number: int) -> int:
        time.sleep(0.02 if number < 4 else 0)
        if number == trap:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == -2 and not Path(trace, "second").exists():
            Path(trace, "second").touch()
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == -3:
            time.sleep(60)
        if number == -4:
            for _ in range(8):
                time.sleep(0.25)
                heartbeat()
        if number == -1:
            raise DataError("the data says no")
        if trace:
            Path(trace, str(os.getpid())).touch()
            time.sleep(0.1)
        return 3 * number

    yield triple


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    results = OrderedMap(partial(tripling, 10**9, ""), range(1500), workers)
    assert list(results) == [3 * i for i in range(1500)]


def test_more_items_go_to_the_same_workers(tmp_path: Path) -> None:
    results = OrderedMap(partial(tripling, 10**9, str(tmp_path)), [1, 2, 3], 2)
    with closing(results):
        assert [next(results) for _ in range(3)] == [3, 6, 9]
        first = {path.name for path in tmp_path.iterdir()}
        results.extend([4, 5])
        assert [next(results) for _ in range(2)] == [12, 15]
    assert {path.name for path in tmp_path.iterdir()} == first and len(first) == 2


def test_items_are_taken_as_workers_become_free() -> None:
    asked = 0

    def without_end() -> Iterator[int]:
        nonlocal asked
        while True:
            asked += 1
            yield asked

    results = OrderedMap(partial(tripling, 10**9, ""), without_end(), 2)
    assert [next(results) for _ in range(20)] == [3 * i for i in range(1, 21)]
    results.close()
    assert asked <= 20 + 512


@contextmanager
def walking(trap: int) -> Iterator[Steps]:
    """Records the order in which items reach the steps; killed when `trap` reaches the last one."""
    came: list[tuple[int, int]] = []

    def first(number: int) -> int:
        came.append((1, number))
        return number

    def second(number: int) -> list[Any]:
        came.append((2, number))
        if number == trap:
            os.kill(os.getpid(), signal.SIGKILL)
        return [number, list(came)]

    yield first, second


def test_quick_items_pass_the_steps_in_groups() -> None:
    results: list[Any] = list(OrderedMap(partial(walking, -1), range(200), 1))
    assert [number for number, _ in results] == list(range(200))
    came = results[-1][1]
    assert [number for step, number in came if step == 1] == list(range(200))
    assert [number for step, number in came if step == 2] == list(range(200))
    turns = sum(a != b for (a, _), (b, _) in pairwise(came))
    assert 200 / 16 <= turns <= 200, "some were together, and no more than eight"


def test_a_worker_that_dies_among_several_items_names_the_right_one() -> None:
    results: list[Any] = list(OrderedMap(partial(walking, 150), range(200), 2, lost=said))
    assert results[150] == f"150: {-signal.SIGKILL}"
    assert [r[0] for i, r in enumerate(results) if i != 150] == [i for i in range(200) if i != 150]


@contextmanager
def slow() -> Iterator[Callable[[int], int]]:
    def sleep(number: int) -> int:
        time.sleep(0.6)
        return number

    yield sleep


def test_slow_items_do_not_wait_behind_each_other() -> None:
    asked = 0

    def some() -> Iterator[int]:
        nonlocal asked
        for number in range(7):
            asked += 1
            yield number

    results = OrderedMap(slow, some(), 2)
    ahead = [asked - number for number, _ in enumerate(results)]
    assert len(ahead) == 7 and max(ahead) <= 4, "two in work, two delivered or about to be"


def test_polling_keeps_the_workers_busy() -> None:
    asked = 0

    def noted() -> Iterator[int]:
        nonlocal asked
        while asked < 300:
            asked += 1
            yield asked

    with closing(OrderedMap(partial(tripling, 10**9, ""), noted(), 1)) as results:
        assert asked == 1  # at work before anybody waits
        time.sleep(2)
        assert asked == 1
        deadline = time.monotonic() + 20
        while asked < 300 and time.monotonic() < deadline:
            results.poll()
        assert asked == 300
        assert list(results) == [3 * number for number in range(1, 301)]


@pytest.mark.skipif(sys.platform != "linux", reason="workers import for themselves")
def test_a_preloaded_module_is_imported_once_for_all_workers(tmp_path: Path) -> None:
    (tmp_path / "costly.py").write_text(
        "import os\nfrom pathlib import Path\n"
        "with Path(__file__).with_suffix('.log').open('a') as log:\n    print(os.getpid(), file=log)\n"
    )
    (tmp_path / "main.py").write_text(
        "import os, time\nfrom contextlib import contextmanager\nfrom tasks.common.pool import OrderedMap, preload\n"
        "@contextmanager\ndef opened():\n    import costly\n    yield lambda number: [time.sleep(0.05), os.getpid()][1]\n"
        "if __name__ == '__main__':\n    preload('costly')\n    print(*set(OrderedMap(opened, range(60), 3)))\n"
    )
    done = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True)
    (importer,) = (tmp_path / "costly.log").read_text().split()
    assert len(workers := done.stdout.split()) == 3 and importer not in workers


def test_an_empty_iterable_gives_no_results() -> None:
    assert list(OrderedMap(partial(tripling, 0, ""), [], 2)) == []


def test_a_killed_worker_names_the_item_it_died_on() -> None:
    with pytest.raises(WorkerDied) as caught:
        list(OrderedMap(partial(tripling, 37, ""), range(100), 2))
    assert caught.value.item == 37
    assert caught.value.exit_code == -signal.SIGKILL


def said(death: WorkerDied) -> str:
    return f"{death.item}: {death.exit_code}"


def test_an_item_that_kills_two_workers_is_given_up_alone() -> None:
    results = list(OrderedMap(partial(tripling, 37, ""), range(100), 2, lost=said))
    assert results[37] == f"37: {-signal.SIGKILL}"
    assert [r for i, r in enumerate(results) if i != 37] == [3 * i for i in range(100) if i != 37]


def test_an_item_whose_worker_was_killed_once_is_retried(tmp_path: Path) -> None:
    results = list(OrderedMap(partial(tripling, 10**9, str(tmp_path)), [1, -2, 5], 1, lost=said))
    assert results == [3, -6, 15]


def test_an_item_that_hangs_is_given_up_unless_it_sends_heartbeats() -> None:
    items = [1, -3, -4, 7, 8]
    results = list(OrderedMap(partial(tripling, 10**9, ""), items, 2, lost=said, time_limit=1.0))
    assert results == [3, "-3: None", -12, 21, 24]


@contextmanager
def unable() -> Iterator[Callable[[int], int]]:
    """Is killed before it starts."""
    os.kill(os.getpid(), signal.SIGKILL)
    yield abs


def test_workers_that_cannot_start_end_the_map() -> None:
    with pytest.raises(WorkerDied):
        list(OrderedMap(unable, range(100), 2, lost=said))


def test_a_user_error_in_a_worker_is_raised_with_its_exit_code() -> None:
    with pytest.raises(DataError, match="the data says no") as caught:
        list(OrderedMap(partial(tripling, 10**9, ""), [5, 6, -1, 7], 2))
    assert caught.value.code == 3


def test_workers_exit_when_the_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "from functools import partial; from tasks.common.pool import OrderedMap;"
        "from tests.tasks.common.test_pool import tripling;"
        f"list(OrderedMap(partial(tripling, 10**9, {str(tmp_path)!r}), range(10**6), 2))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT)
    deadline = time.monotonic() + 30
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [psutil.Process(int(path.name)) for path in tmp_path.iterdir()]
    parent.kill()
    parent.wait()
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
