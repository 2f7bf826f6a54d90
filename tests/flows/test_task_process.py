"""Tasks that share one child process: their errors, and what becomes of the process when it or its owner dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from flows import dvc_graph
from flows.task_process import TaskProcess
from tasks.common import process as processes
from tasks.common.errors import UserError


def _children() -> list[int]:
    return [child.pid for child in psutil.Process().children(recursive=True) if "flows.task_process" in child.cmdline()]


def _refused(process: TaskProcess, *task: str) -> UserError:
    with pytest.raises(UserError) as caught:
        process.run(*task)
    return caught.value


def test_tasks_share_a_process_which_starts_again_when_it_was_killed(workspace: Path) -> None:
    with TaskProcess(workspace) as process:
        assert _refused(process, "extract_slice", "sky", "0", "2").code == 2
        [guard, child] = _children()
        assert "RANK below WORLD" in str(_refused(process, "extract_slice", "sky", "2", "2"))
        assert _children() == [guard, child]
        os.kill(child, signal.SIGKILL)
        processes.wait_gone([psutil.Process(guard)] if psutil.pid_exists(guard) else [], 10)
        assert "RANK below WORLD" in str(_refused(process, "extract_slice", "sky", "2", "2"))
        assert set(_children()).isdisjoint({guard, child})
    assert not _children()


@pytest.mark.slow
def test_a_process_that_is_killed_at_work_is_an_error_and_its_time_ends_with_the_run(workspace: Path) -> None:
    with TaskProcess(workspace) as process, dvc_graph.within(0.5 / 3600), pytest.raises(dvc_graph.OutOfTime):
        process.run("extract_slice", "sky", "0", "2")
    assert not _children()
