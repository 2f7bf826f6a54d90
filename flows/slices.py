"""A slice: the unit of work that an engine (`flows.engines`) launches, on whatever machine.

A slice is a pure function of its inputs and a digest, so machines only have to agree on names. Its result is in the DVC remote
(`remote_store`), its mark written last. So it does not matter which machine does a slice, nor how often one is begun: the first
that ends counts, and all of them write the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.remote_store import RemoteStore, fetch_slice
from flows.stage_inputs import provide
from flows.task_process import TaskProcess
from tasks import paths
from tasks.common import code_digest as code_digests
from tasks.common.blocks import MARK
from tasks.common.errors import UserError
from tasks.config.params import load
from tasks.extract import slices

# Runs a task of `python -m tasks` with its arguments: `TaskProcess.run`, in a process that serves one slice after the other.
RunTask = Callable[..., None]

EXTRACT = "extract"
CODE = ("diffusion_core/**/*.py", "tasks/**/*.py")
PACKAGES = ("faiss-cpu", "numpy", "pillow", "scipy", "torch")

_here: TaskProcess | None = None  # of a worker process that lives as long as this one


@dataclass(frozen=True)
class Slice:
    """Slice `rank` of `world` of a stage of dvc.yaml.

    Of `extract@PART` it is every `world`-th file of the part, starting at number `rank`; of any other stage every `world`-th of
    its blocks (see `tasks.common.blocks`), from `first` to `last` - 1, or with `last` 0 of all that it expects to need.
    """

    stage: str
    rank: int
    world: int
    digest: str  # of the code, packages and parameters on which the result depends, as the requesting machine has them
    version: str  # a digest of the inputs
    first: int = 0
    last: int = 0

    @property
    def part(self) -> str | None:
        """The part whose files are extracted; None: these are blocks of a stage."""
        kind, _, part = self.stage.partition("@")
        return part if kind == EXTRACT else None

    @property
    def stored(self) -> str:
        """The name of its result in the remote store."""
        return f"{self.stage}/{self.digest}/{self.version}/{self.name}"

    @property
    def name(self) -> str:
        """The name of the folder of its result."""
        some = f"-of-blocks-{self.first}-to-{self.last}" if self.last else ""
        return f"{slices.name(self.rank, self.world)}{some}"

    def __str__(self) -> str:
        some = f" (blocks {self.first} to {self.last - 1})" if self.last else ""
        return f"{self.stage} {self.rank} of {self.world}{some}"


def code_digest() -> str:
    """A digest of the code and of the packages on which blocks of stages depend, besides their inputs."""
    sha = hashlib.sha256(code_digests.code_digest(CODE).encode())
    for package in PACKAGES:
        sha.update(f"{package} {importlib.metadata.version(package)}\n".encode())
    return sha.hexdigest()[:16]


def work(root: Path, piece: Slice, run_task: RunTask, cores: int = 0) -> bool:
    """Do a slice in the workspace `root` and put the result into the remote store; returns whether there was work to do.

    `cores`: processes that read pictures; 0: as `extract.workers` says. Raises UserError if the slice cannot be done here.
    """
    params, store = load(root / paths.PARAMS), RemoteStore(root)
    own = code_digest() if piece.part is None else slices.digest(params, root)
    if own != piece.digest:
        raise UserError(
            "This worker would get other results than the machine that sent the request: its parameters, code, model or "
            "packages differ. Check out the same commit and run make setup."
        )
    if store.has(piece.stored, MARK):
        return False
    result = root / paths.SLICES / (piece.part or piece.stage) / piece.name
    fetched = result.with_name(f"{result.name}-files")
    if piece.part is None:
        place, task = provide(root, piece.stage, piece.version, store)
        numbers = map(str, (piece.rank, piece.world, piece.first, piece.last, cores))
        run_task("stage_slice", str(result.absolute()), *numbers, *task, root=place)
    else:
        folder, source = params.raw.parts.get(piece.part), ""
        if folder is not None and not (root / folder).is_dir():
            fetch_slice(root, folder, piece.rank, piece.world, fetched)
            source = str(fetched)
        run_task("extract_slice", piece.part, str(piece.rank), str(piece.world), source, str(cores))
    store.put(piece.stored, result, MARK)
    for used in (result, fetched):
        shutil.rmtree(used, ignore_errors=True)
    return True


def task_process(root: Path) -> TaskProcess:
    """A process for the tasks of all slices that this process runs in the workspace `root`; it ends with this process."""
    global _here
    if _here is None:
        _here = TaskProcess(root)
    return _here
