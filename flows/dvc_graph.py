"""The graph of `dvc.yaml`: the only module that reads it, and the only one that runs DVC.

DVC alone decides what is up to date. A stage is run by `dvc repro --single-item`, so that walking the graph stage by
stage leaves the same `dvc.lock` as one `dvc repro`.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from dvc.dependency.param import ParamsDependency, read_param_file
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.stage import PipelineStage

from tasks.common import process
from tasks.common.environment import without_redirections
from tasks.common.errors import UserError

log = logging.getLogger(__name__)

SENTENCE = "contrapposto: "  # a stage prints such a line last when the user can fix the problem
LOCK_ATTEMPTS = 4
LOCK_DELAY_SECONDS = 5.0  # shorter delays still met the lock of a DVC that was killed
LOCKED = ("is busy, it is being blocked by", "Unable to acquire lock")
# What DVC prints around every stage; it is left out.
CHATTER = re.compile(
    r"Running stage |> |(Updating|Generating) lock file |Use `dvc push`|To (track the changes|enable auto staging)"
    r"|\t(git add|dvc config) |\s*$"
)
CODE = ("diffusion_core", "tasks")  # folders of code among the dependencies
_QUEUE = threading.Lock()  # DVC's queue is read by one thread at a time
# When stages and tasks are stopped, by time.monotonic.
_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


@dataclass(frozen=True)
class Stage:
    """A stage of `dvc.yaml` and the stages whose outputs it reads."""

    name: str
    parents: tuple[str, ...]


class OutOfTime(UserError):
    """The run has taken as long as `limits.hours` allows."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} was stopped: the run has used up its time (limits.hours); run again to resume.", code=1
        )


@contextmanager
def within(hours: float | None) -> Iterator[None]:
    """Stop stages and tasks that run inside this context, with OutOfTime, after so many hours; None: never."""
    token = _deadline.set(math.inf if hours is None else time.monotonic() + 3600 * hours)
    try:
        yield
    finally:
        _deadline.reset(token)


def seconds_left() -> float:
    """The time that is left inside `within`, at least 0."""
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
    """The stages that the targets need, each after its parents, otherwise in the order of `dvc.yaml`.

    Raises UserError if `dvc.yaml` cannot be read or lacks a target.
    """
    with _repository(root) as repository:
        # `dvc add` makes nodes without a command; an edge of DVC's graph leads from a stage to its dependency
        nodes = [node for node in repository.index.stages if isinstance(node, PipelineStage)]
        parents: dict[str, set[str]] = {node.name: set() for node in nodes}
        for stage, dependency in repository.index.graph.edges:
            if isinstance(dependency, PipelineStage):
                parents[stage.name].add(dependency.name)
    for target in targets:
        if target not in parents:
            raise UserError(f"dvc.yaml has no stage {target!r}; it has {', '.join(parents)}.")

    def visit(name: str, visited: dict[str, Stage]) -> None:
        """Add a stage after its parents."""
        if name not in visited:
            ordered = tuple(parent for parent in parents if parent in parents[name])
            for parent in ordered:
                visit(parent, visited)
            visited[name] = Stage(name, ordered)

    wanted: dict[str, Stage] = {}
    for target in targets:
        visit(target, wanted)
    plan: dict[str, Stage] = {}
    for name in parents:  # once more, in the order of the file
        if name in wanted:
            visit(name, plan)
    return list(plan.values())


def check_folders(root: Path, folders: Iterable[str]) -> None:
    """Raise UserError if DVC cannot build the graph, or ignores one of the folders, so that it would not notice new files."""
    with _repository(root) as repository:
        _ = repository.index.graph
        for folder in folders:
            path = (root / folder).resolve()
            if path.is_relative_to(root.resolve()) and repository.dvcignore.is_ignored_dir(str(path)):
                raise UserError(f"{path} cannot be the folder of pictures, because .dvcignore excludes it; rename it.")


def check_parameters(root: Path) -> None:
    """Raise UserError if a key that dvc.yaml lists under `params` is missing from params.yaml.

    The typed model has defaults for some of them; DVC has none, and would stop at the first stage that lists the key.
    """
    with _repository(root) as repository:
        listed: dict[str, list[str]] = {}
        for stage in repository.index.stages:
            for dependency in stage.deps:
                if isinstance(dependency, ParamsDependency):
                    listed.setdefault(dependency.fs_path, []).extend(dependency.params)
        for path, keys in listed.items():
            known = read_param_file(repository.fs, path, keys, flatten=True)
            missing = sorted(set(keys) - set(known))
            if missing:
                raise UserError(
                    f"{Path(path).name}: {', '.join(missing)} must be there, even with the default value: dvc.yaml lists it."
                )


def data_dependencies(root: Path, stage: str) -> list[str]:
    """The files and folders, relative to the workspace, on which a stage depends: data and models, not code and parameters."""
    names = []
    with _repository(root) as repository:
        for dependency in _stage(repository, stage).deps:
            if not isinstance(dependency, ParamsDependency):
                path = Path(os.path.relpath(dependency.fs_path, repository.root_dir))
                if path.parts[0] not in CODE:
                    names.append(path.as_posix())
    return names


def task_of(root: Path, stage: str) -> list[str]:
    """The task of `python -m tasks` that a stage runs, and its arguments. Raises UserError if there is no such stage."""
    with _repository(root) as repository:
        command = _stage(repository, stage).cmd
    return shlex.split(str(command))[2:]  # sh stage.sh TASK ARGUMENT ...


def _stage(repository: Repo, name: str) -> PipelineStage:
    for stage in repository.index.stages:
        if isinstance(stage, PipelineStage) and stage.name == name:
            return stage
    raise UserError(f"dvc.yaml has no stage {name!r}.")


def is_unchanged(root: Path, stage: str) -> bool:
    """Whether command, parameters, dependencies and outputs of the stage are those recorded in `dvc.lock`.

    A stage with `always_changed` counts as unchanged if nothing else is: the flow does its work itself (`workspace.prepare`).
    """
    for _ in range(LOCK_ATTEMPTS):
        try:
            with _repository(root) as repository:
                status = repository.status(targets=[f"{root.resolve() / 'dvc.yaml'}:{stage}"])
                return all(entry == "always changed" for entries in status.values() for entry in entries)
        except LockError:
            time.sleep(LOCK_DELAY_SECONDS)
    raise UserError("Another DVC command is running in this workspace; run this again when it has ended.")


def run_stage(root: Path, stage: str, environment: Mapping[str, str]) -> None:
    """Run one stage with these additional environment variables, and print its output line by line.

    Raises UserError with the stage's own last sentence and exit code if it fails (2 and 3 are kept, others become 1), and
    OutOfTime if it was stopped. However this function is left, no process that the stage started is still running.
    """
    for _ in range(LOCK_ATTEMPTS):
        code, lines = _run(root, stage, ["dvc", "repro", "--single-item", stage], environment)
        if code == 0:
            return
        errors = "\n".join(lines)
        if not any(sign in errors for sign in LOCKED):
            break
        time.sleep(LOCK_DELAY_SECONDS)
    raise _failure(stage, errors)


def queue_experiment(root: Path, changes: Sequence[str]) -> str:
    """Queue an experiment with these changes of params.yaml, `key=value` as Hydra reads it; returns its name.

    Raises UserError if DVC refuses it, for example because there is no git commit.
    """
    command = [sys.executable, "-m", "dvc", "exp", "run", "--queue"]
    for change in changes:
        command += ["--set-param", change]
    output = _output(root, command)
    queued = re.search(r"Queued experiment '([^']+)'", output)
    if queued is None:
        raise UserError(f"DVC did not queue an experiment: {' '.join(output.split())}.", code=1)
    return queued[1]


def start_queue(root: Path, workers: int) -> None:
    """Start DVC's workers, which run queued experiments in folders of their own and end when there are no more."""
    # Not by `_output`: the workers inherit a pipe, which would end only when they do.
    command = [sys.executable, "-m", "dvc", "queue", "start", "--jobs", str(workers)]
    done = subprocess.run(
        command,
        cwd=root,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if done.returncode:
        raise UserError("DVC could not start the workers of its queue: `dvc queue start` says why.", code=1)


def stop_queue(root: Path) -> None:
    """Stop DVC's workers and the experiments that they run; those that have not begun stay queued."""
    _output(root, [sys.executable, "-m", "dvc", "queue", "stop", "--kill"])


def queue_state(root: Path, experiment: str) -> str:
    """Where DVC's queue is with an experiment: Queued, Running, Success, Failed or Killed."""
    with _QUEUE, _repository(root) as repository:
        states = {entry["name"]: str(entry["status"]) for entry in repository.experiments.celery_queue.status()}
    if experiment not in states:
        raise UserError(f"DVC's queue has no experiment {experiment!r} any more.", code=1)
    return states[experiment]


def queue_failure(root: Path, experiment: str) -> str:
    """Why an experiment of the queue failed, in one sentence."""
    output = _output(root, [sys.executable, "-m", "dvc", "queue", "logs", experiment])
    return str(
        _failure(
            "of the experiment", "\n".join(line for line in output.splitlines() if SENTENCE in line or "ERROR" in line)
        )
    )


def _environment() -> dict[str, str]:
    """The environment of DVC's own commands; `python` in dvc.yaml is this one."""
    binaries = str(Path(sys.executable).parent)
    return {
        **without_redirections(os.environ),
        "PATH": os.pathsep.join([binaries, os.environ.get("PATH", os.defpath)]),
        "DVC_NO_ANALYTICS": "true",
    }


def _output(root: Path, command: Sequence[str]) -> str:
    """The output of a short DVC command. Raises UserError with its error if it fails."""
    for _ in range(LOCK_ATTEMPTS):
        done = subprocess.run(command, cwd=root, env=_environment(), capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout
        if not any(sign in done.stderr for sign in LOCKED):
            break
        time.sleep(LOCK_DELAY_SECONDS)
    raise UserError(f"DVC: {' '.join(done.stderr.removeprefix('ERROR: ').split())}.", code=1)


def run_task(root: Path, task: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
    """Run `python -m tasks TASK ARGUMENT ...`, outside the graph. Environment, output and errors are those of `run_stage`."""
    run_module(root, task, "tasks", task, *arguments, environment=environment)


def run_module(
    root: Path, name: str, module: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> None:
    """Run `python -m MODULE ARGUMENT ...`, called `name` in errors; otherwise as `run_stage`."""
    code, errors = _run(root, name, [module, *arguments], environment or {})
    check(name, code, errors)


def check(name: str, code: int, errors: Sequence[str]) -> None:
    """Raise the error of a task that ended with this exit code, after these error lines (see `relay`); none if it is 0."""
    if code == process.OUT_OF_TIME:
        raise OutOfTime(name)
    if code:
        raise _failure(name, "\n".join([*errors, f"exited with {code}"]))


def start_module(root: Path, module: Sequence[str], extra: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `python -m MODULE ARGUMENT ...` under a guard that ends with the time of this run (see `within`).

    Its output is the guard's stdout.
    """
    binaries = str(Path(sys.executable).parent)  # so that `python` in dvc.yaml is this one
    environment = {
        **without_redirections(os.environ),
        "PATH": os.pathsep.join([binaries, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "TQDM_MININTERVAL": "5",  # seconds; every update of a progress bar becomes a line
        "DVC_NO_ANALYTICS": "true",
        **(extra or {}),
    }
    return process.start([sys.executable, "-m", *module], root, environment, subprocess.PIPE, limit=seconds_left())


def relay(line: str, errors: list[str]) -> None:
    """Print a line of a module's output, or add it to the lines that tell what went wrong."""
    if line.startswith((SENTENCE, "ERROR: ")):
        errors.append(line.rstrip())
    elif not CHATTER.match(line):
        log.info(line.rstrip())


def _run(root: Path, name: str, module: Sequence[str], extra: Mapping[str, str]) -> tuple[int, list[str]]:
    """Run a Python module and print its output; returns its exit code and the error lines that `_failure` reads."""
    guard = start_module(root, module, extra)
    assert guard.stdout is not None
    errors: list[str] = []
    try:
        for line in guard.stdout:
            relay(line, errors)
        code = guard.wait()
    finally:
        process.stop(guard)
    if code == process.OUT_OF_TIME:
        raise OutOfTime(name)
    return code, errors


def _failure(stage: str, errors: str) -> UserError:
    """The error lines of a stage as one sentence with an exit code."""
    sentences = re.findall(rf"^{SENTENCE}(.*)", errors, re.MULTILINE)
    exits = re.findall(r"exited with (-?\d+)", errors)
    code = int(exits[-1]) if exits and int(exits[-1]) in (2, 3) else 1
    if sentences:
        return UserError(sentences[-1], code)
    if exits:
        return UserError(f"Stage {stage} stopped with exit code {exits[-1]}; its output is above.", code)
    reason = errors.removeprefix("ERROR: ").removeprefix(f"failed to reproduce '{stage}': ")
    if missing := re.search(r"No such file or directory: '(.*)'", reason):
        return UserError(f"Stage {stage} needs {missing[1]}, which does not exist.")
    return UserError(f"DVC could not run stage {stage}: {reason or 'its output is above'}.", code)
