"""A slice: the unit of work that an engine (`flows.engines`) launches, on whatever machine.

A slice is a pure function of its inputs and a digest, so machines only have to agree on names. Its result is in the DVC remote
(`remote_store`), its mark written last. So it does not matter which machine does a slice, nor how often one is begun: the first
that ends counts, and all of them write the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.remote_store import RemoteStore, fetch_slice
from flows.task_process import TaskProcess
from tasks import paths
from tasks.common.errors import UserError
from tasks.config.params import load
from tasks.extract import slices

# Runs a task of `python -m tasks` with its arguments: `TaskProcess.run`, in a process that serves one slice after the other.
RunTask = Callable[..., None]

_here: TaskProcess | None = None  # of a worker process that lives as long as this one


@dataclass(frozen=True)
class Slice:
    """Every `world`-th file of a part, starting at number `rank`."""

    part: str
    rank: int
    world: int
    digest: str  # of what the results depend on besides the files, as the requesting machine has it
    version: str  # a digest of the part's content

    @property
    def stored(self) -> str:
        """The name of its result in the remote store."""
        return f"{self.part}/{self.digest}/{self.version}/{slices.name(self.rank, self.world)}"

    def __str__(self) -> str:
        return f"{self.part} {self.rank} of {self.world}"


def work(root: Path, piece: Slice, run_task: RunTask, workers: int = 0) -> bool:
    """Extract a slice in the workspace `root` and put the result into the remote store; returns whether there was work to do.

    `workers`: processes that extract; 0: as `extract.workers` says. Raises UserError if the slice cannot be extracted here.
    """
    params, store = load(root / paths.PARAMS), RemoteStore(root)
    if slices.digest(params, root) != piece.digest:
        raise UserError(
            "This worker would get other results than the machine that sent the request: its parameters, code, model or "
            "packages differ. Check out the same commit and run make setup."
        )
    if store.has(piece.stored, slices.MARK):
        return False
    folder = params.raw.parts.get(piece.part)
    result = root / paths.SLICES / piece.part / slices.name(piece.rank, piece.world)
    fetched = result.with_name(f"{result.name}-files")
    source = ""
    if folder is not None and not (root / folder).is_dir():
        fetch_slice(root, folder, piece.rank, piece.world, fetched)
        source = str(fetched)
    run_task("extract_slice", piece.part, str(piece.rank), str(piece.world), source, str(workers))
    store.put(piece.stored, result, slices.MARK)
    for used in (result, fetched):
        shutil.rmtree(used, ignore_errors=True)
    return True


def task_process(root: Path) -> TaskProcess:
    """A process for the tasks of all slices that this process runs in the workspace `root`; it ends with this process."""
    global _here
    if _here is None:
        _here = TaskProcess(root)
    return _here
