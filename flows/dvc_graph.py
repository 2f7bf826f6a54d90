"""The graph of `dvc.yaml`: the only module that reads it, and the only one that runs DVC.

DVC alone decides what is up to date. A stage is made by `dvc repro --single-item`, so that walking the graph stage by
stage leaves the same `dvc.lock` as `dvc repro` alone.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.stage import PipelineStage

from tasks.common import process_guard
from tasks.common.errors import UserError

SENTENCE = "contrapposto: "  # a stage ends with such a line when the user can mend what is wrong
LOCK_ATTEMPTS = 4
LOCK_DELAY_SECONDS = 5.0  # shorter ones still meet the lock of a DVC that was killed
CHATTER = re.compile(  # what DVC says around every stage
    r"Running stage |> |(Updating|Generating) lock file |Use `dvc push`|To (track the changes|enable auto staging)"
    r"|\t(git add|dvc config) |\s*$"
)
_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)  # of what is run here, by time.monotonic
LOCKED = ("is busy, it is being blocked by", "Unable to acquire lock")


@dataclass(frozen=True)
class Stage:
    """A stage of `dvc.yaml` and the stages whose outputs it reads."""

    name: str
    parents: tuple[str, ...]


class OutOfTime(UserError):
    """The time that a run may take is over."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} was stopped, for the run's time (limits.hours) is over; run again to go on.", code=1)


@contextmanager
def within(hours: float | None) -> Iterator[None]:
    """Whatever stage or task is run inside is stopped, with OutOfTime, when so many hours are over; None: never."""
    token = _deadline.set(math.inf if hours is None else time.monotonic() + 3600 * hours)
    try:
        yield
    finally:
        _deadline.reset(token)


def seconds_left() -> float:
    """The time that is left inside `within`; 0 if it is over."""
    return max(_deadline.get() - time.monotonic(), 0.0)


@contextmanager
def _repository(root: Path) -> Iterator[Repo]:
    try:
        with Repo(str(root)) as repository:
            yield repository
    except LockError:
        raise
    except DvcException as error:
        raise UserError(f"DVC cannot read this workspace: {' '.join(str(error).split())}") from error


def order(root: Path, targets: Sequence[str]) -> list[Stage]:
    """The stages that the targets are made by, each after its parents, otherwise in the order of `dvc.yaml`.

    Raises UserError if `dvc.yaml` cannot be read or lacks a target.
    """
    with _repository(root) as repository:
        # `dvc add` makes nodes without a command; an edge of DVC's graph goes from a stage to what it depends on
        nodes = [node for node in repository.index.stages if isinstance(node, PipelineStage)]
        parents: dict[str, set[str]] = {node.name: set() for node in nodes}
        for stage, dependency in repository.index.graph.edges:
            if isinstance(dependency, PipelineStage):
                parents[stage.name].add(dependency.name)
    for target in targets:
        if target not in parents:
            raise UserError(f"dvc.yaml has no stage {target!r}; it has {', '.join(parents)}.")

    def visit(name: str, seen: dict[str, Stage]) -> dict[str, Stage]:
        if name not in seen:
            ordered = tuple(parent for parent in parents if parent in parents[name])
            for parent in ordered:
                visit(parent, seen)
            seen[name] = Stage(name, ordered)
        return seen

    wanted: dict[str, Stage] = {}
    for target in targets:
        visit(target, wanted)
    plan: dict[str, Stage] = {}
    for name in parents:
        if name in wanted:
            visit(name, plan)
    return list(plan.values())


def is_unchanged(root: Path, stage: str) -> bool:
    """Whether command, parameters, dependencies and outputs of the stage are those in `dvc.lock`."""
    for _ in range(LOCK_ATTEMPTS):
        try:
            with _repository(root) as repository:
                return not repository.status(targets=[f"{root.resolve() / 'dvc.yaml'}:{stage}"])
        except LockError:
            time.sleep(LOCK_DELAY_SECONDS)
    raise UserError("Another DVC command is at work in this workspace; run this again when it has ended.")


def run_stage(root: Path, stage: str, environment: Mapping[str, str]) -> None:
    """Make one stage, its output printed line by line as it comes.

    A stage that fails raises UserError with its own last sentence and exit code (2 and 3 are kept, others become 1), one
    for which there was no time OutOfTime.
    However this function is left, nothing that the stage started is still running.
    """
    for _ in range(LOCK_ATTEMPTS):
        code, told = _run(root, ["dvc", "repro", "--single-item", stage], environment)
        if code == 0:
            return
        if not any(sign in told for sign in LOCKED):
            break
        time.sleep(LOCK_DELAY_SECONDS)
    raise _failure(stage, told)


def run_task(root: Path, task: str, *arguments: str) -> None:
    """Run `python -m tasks TASK ARGUMENT ...`, which is no stage of the graph, in the same way; raises UserError as `run_stage`
    does."""
    code, told = _run(root, ["tasks", task, *arguments], {})
    if code:
        raise _failure(task, f"{told}\nexited with {code}")


def _run(root: Path, module: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """Run a Python module, print what it prints, and return its exit code and what `_failure` wants to know."""
    binaries = str(Path(sys.executable).parent)  # where `python` in dvc.yaml is found
    full = {
        **os.environ,
        "PATH": os.pathsep.join([binaries, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "TQDM_MININTERVAL": "5",  # seconds: a progress bar is a line here
        "DVC_NO_ANALYTICS": "true",
        **environment,
    }
    keeper = process_guard.start([sys.executable, "-m", *module], root, full, subprocess.PIPE, limit=seconds_left())
    assert keeper.stdout is not None
    told: list[str] = []
    try:
        for line in keeper.stdout:
            if line.startswith((SENTENCE, "ERROR: ")):
                told.append(line.rstrip())
            elif not CHATTER.match(line):
                print(line.rstrip(), flush=True)
        code = keeper.wait()
    finally:
        process_guard.release(keeper)
    if code == process_guard.OUT_OF_TIME:
        raise OutOfTime(module[-1] if module[0] == "dvc" else module[1])
    return code, "\n".join(told)


def _failure(stage: str, told: str) -> UserError:
    sentences = re.findall(rf"^{SENTENCE}(.*)", told, re.MULTILINE)
    exits = re.findall(r"exited with (-?\d+)", told)
    code = int(exits[-1]) if exits and int(exits[-1]) in (2, 3) else 1
    if sentences:
        return UserError(sentences[-1], code)
    if exits:
        return UserError(f"Stage {stage} stopped with exit code {exits[-1]}; what it said is above.", code)
    reason = told.removeprefix("ERROR: ").removeprefix(f"failed to reproduce '{stage}': ")
    return UserError(f"Stage {stage} could not be run by DVC: {reason or 'what it said is above'}.", code)
