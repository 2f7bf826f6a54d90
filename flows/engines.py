"""Engines run the slices of a part or a stage, here or on other machines; `engine` of params.yaml says which.

An engine only launches slices. What a slice is, where its result is kept, how results are merged and what is repeated is the
same for all, so that an engine cannot change the bytes of any output: `local` runs the slices one after the other on this
machine, `flows.on_prefect` in the workers of a work pool, `flows.on_ray` on a Ray cluster.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from flows import data_fingerprint, dvc_graph, stage_inputs
from flows.remote_store import RemoteStore
from flows.slices import EXTRACT, Slice, code_digest, work
from flows.task_process import TaskProcess
from tasks import paths
from tasks.common import files
from tasks.common.blocks import BLOCKS, MARK, WANTED
from tasks.common.errors import DataError, UserError
from tasks.config.operations import MOST_SLICES
from tasks.config.params import Params
from tasks.extract import slices
from tasks.extract.scan import walk

log = logging.getLogger(__name__)

FILES_PER_SLICE = 1000  # fewer hardly pay: see docs/scaling.md
SLICES = 8  # of the blocks of a stage


class Engine(Protocol):
    """Something that runs slices."""

    @property
    def here(self) -> bool:
        """Whether all slices run in the folder of the workspace, so that they find their inputs in it."""

    def run(self, root: Path, pieces: Sequence[Slice]) -> Mapping[Slice, str]:
        """Run the slices and wait for them; returns why, for each that failed.

        Raises UserError if the engine itself cannot work, and OutOfTime. However this function is left, no slice that it
        launched is still running, or will begin.
        """


class Local:
    """A child process of this machine that runs one slice after the other with all cores."""

    here: ClassVar[bool] = True

    def run(self, root: Path, pieces: Sequence[Slice]) -> Mapping[Slice, str]:
        failures = {}
        with TaskProcess(root) as process:
            for piece in pieces:
                try:
                    work(root, piece, process.run)
                except dvc_graph.OutOfTime:
                    raise
                except UserError as error:
                    failures[piece] = str(error)
                log.info(f"slice {piece}: {failures.get(piece, 'done')}")
        return failures


def chosen(params: Params) -> Engine:
    """The engine that params.yaml names."""
    if params.engine.kind == "prefect":
        from flows.on_prefect import WorkPool

        return WorkPool(params.engine.runs)
    if params.engine.kind == "ray":
        from flows.on_ray import RayCluster

        return RayCluster(params.engine.address, params.extract.workers or 1)
    return Local()


def cuts(params: Params, stage: str) -> bool:
    """Whether a stage of dvc.yaml, or `generate`, is done in slices; if not, it does its work by itself."""
    cut = params.engine.kind != "local" or params.engine.slices > 0
    return cut and stage.partition("@")[0] in params.engine.stages


def extract(params: Params, root: Path, parts: Sequence[str]) -> None:
    """Extract the parts in slices, and put the findings into the cache of this workspace, where the stage `extract` finds them.

    Raises UserError if slices fail (see `_run_all`); the others are kept, so that the next run launches only those.
    """
    store, digest = RemoteStore(root), slices.digest(params, root)
    pieces = []
    for part in parts:
        folder = root / params.raw.parts[part]
        version = data_fingerprint.content(folder)
        world = params.engine.slices or _number(sum(1 for _ in walk(folder)))
        pieces += [Slice(f"{EXTRACT}@{part}", rank, world, digest, version) for rank in range(world)]
    _run_all(chosen(params), root, [piece for piece in pieces if not store.has(piece.stored, MARK)])
    for part in parts:
        statistics = []
        for piece in [piece for piece in pieces if piece.part == part]:
            folder = root / paths.SLICES / part / slices.name(piece.rank, piece.world)
            store.get(piece.stored, (slices.FINDINGS, MARK), folder)
            statistics.append(slices.absorb(params, root, folder))
        total = slices.combine(statistics)
        log.info(
            f"{part}: {len(statistics)} slices, {total.persons} persons in {total.files} files, {total.extracted} extracted "
            f"in {total.seconds:.0f} s of the workers' time"
        )


def run(params: Params, root: Path, stage: str, plain: Callable[[Sequence[str], Mapping[str, str]], None]) -> None:
    """Run a stage, or `generate`, after its slices.

    `plain` runs its task with these additional environment variables, which tell it where the blocks are. If that ends because
    it needs more blocks (see `tasks.common.blocks`), these are computed by slices, too, and it runs again. Raises UserError if
    slices fail, as `extract`, and DataError if a result in the store is damaged.
    """
    store, inputs, engine = RemoteStore(root), stage_inputs.of(params, root, stage), chosen(params)
    if engine.here:
        stage_inputs.link(inputs, root, store)
    else:
        stage_inputs.publish(inputs, root, store)
    folder = root / paths.SLICES / stage / "blocks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wanted: tuple[int, int] | None = 0, 0  # at first as many as the stage expects to need
    try:
        while wanted is not None:
            pieces = _slices(params, stage, inputs.version, *wanted)
            _run_all(engine, root, [piece for piece in pieces if not store.has(piece.stored, MARK)])
            _fetch_blocks(store, pieces, folder)
            wanted = _more_blocks(lambda: plain(inputs.task, {BLOCKS: str(folder.absolute())}), folder, wanted)
    finally:
        shutil.rmtree(folder)
        stage_inputs.remove(root, inputs.version)  # `forget` knows nothing of these copies


def _slices(params: Params, stage: str, version: str, first: int, last: int) -> list[Slice]:
    """The slices of these blocks, of which none is empty; `first` and `last` as in Slice."""
    world = min(params.engine.slices or SLICES, last - first or MOST_SLICES)
    return [Slice(stage, rank, world, code_digest(), version, first, last) for rank in range(world)]


def _more_blocks(task: Callable[[], None], folder: Path, known: tuple[int, int]) -> tuple[int, int] | None:
    """Run a task after its slices; returns the first block that it needs as well, and one more than the last, or None.

    `known`: what it needed before. Raises UserError if it fails for another reason.
    """
    try:
        task()
        return None
    except UserError:
        file = folder / WANTED
        if not file.exists():
            raise
        first, last = files.read_json(file)
        file.unlink()
        if (first, last) == known:  # slices have not brought them
            raise
        return first, last


def _fetch_blocks(store: RemoteStore, pieces: Sequence[Slice], folder: Path) -> None:
    """Copy the blocks of these slices into the folder. Raises DataError if one is damaged."""
    total = count = 0
    for piece in pieces:
        about = json.loads(store.get_bytes(piece.stored, MARK))
        total, count = about["total"], count + len(about["blocks"])
        for name, digest in about["blocks"].items():
            if not files.is_plain(name):
                raise DataError(f"{piece.stored} in the DVC remote names {name!r}, which is outside of its folder.")
            store.get_file(piece.stored, name, folder / name)
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise DataError(f"{piece.stored}/{name} in the DVC remote is damaged: remove it and run again.")
    log.info(f"{pieces[0].stage}: {count} of {total} blocks from {len(pieces)} slices")


def _number(files: int) -> int:
    """The number of slices for a part of so many files."""
    return min(max(1, math.ceil(files / FILES_PER_SLICE)), MOST_SLICES)


def _run_all(engine: Engine, root: Path, pieces: Sequence[Slice]) -> None:
    """Run the slices. Those that failed are tried again as long as each round finishes some: a worker may have been killed."""
    left = list(pieces)
    while left:
        failures = engine.run(root, left)
        if len(failures) == len(left):
            piece, reason = next(iter(failures.items()))
            raise UserError(
                f"{len(failures)} of {len(pieces)} slices failed (slice {piece}: {reason}); the others are kept. Run this "
                "again.",
                1,
            )
        left = [piece for piece in left if piece in failures]
        for piece in left:
            log.warning(f"slice {piece} is tried again: {failures[piece]}")
