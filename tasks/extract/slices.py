"""`python -m tasks extract_slice PART RANK WORLD [FOLDER [WORKERS]]`: extract every WORLD-th file of a part, from the RANK-th.

This distributes a part over several machines. Each extracts a slice, and `absorb` puts the findings into the cache of one
machine, where the stage `extract` then finds all files known. The stage's output does not depend on the number of slices.

A slice writes `.contrapposto/slices/<part>/<rank>-of-<world>/`:

    findings.db     the findings of each file (see `cache`)
    slice.json      its statistics; the file is written last and marks a complete slice
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tasks import paths
from tasks.common import files
from tasks.common.blocks import MARK
from tasks.common.errors import UserError
from tasks.common.pool import preload
from tasks.config.params import Params
from tasks.extract.cache import Store, findings_digest
from tasks.extract.pose_bundle import check
from tasks.extract.scan import scan
from tasks.extract.source_files import dvc_cache
from tasks.extract.stage import PRELOAD, extracted, part_folder, settings, with_progress_bar

log = logging.getLogger(__name__)

FINDINGS = paths.FINDINGS.name


@dataclass(frozen=True)
class Statistics:
    """The statistics of one or more slices."""

    files: int
    extracted: int  # files that were not in the cache
    persons: int
    seconds: float  # of the workers' time
    rejects: dict[str, int]  # by reason


def name(rank: int, world: int) -> str:
    """The name of a slice's folder."""
    return f"{rank}-of-{world}"


def digest(params: Params, root: Path) -> str:
    """A digest of everything but the files that findings depend on. Machines may share a part only if they agree on it."""
    return findings_digest(settings(params.extract, root), root / params.extract.model)


def run(params: Params, root: Path, part: str, rank: str, world: str, folder: str = "", workers: str = "0") -> None:
    """Extract one slice. `folder` holds just the files of the slice, for a machine that does not have the whole part.

    `workers`: processes that extract, for an engine that shares a machine out; 0: as `extract.workers` says.

    Raises UserError if there is no such part or slice, or the folder or the model cannot be used.
    """
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise UserError(f"A slice is a RANK below WORLD, such as 0 3; got {rank} {world}.")
    if not workers.isdecimal():
        raise UserError(f"WORKERS is a number of processes; got {workers}.")
    if workers != "0":
        extract = params.extract.model_copy(update={"workers": int(workers)})
        params = params.model_copy(update={"extract": extract})
    preload(PRELOAD)
    whole_part = part_folder(params, root, part)
    source_folder = root / folder if folder else whole_part
    check(root / params.extract.model, params.extract.model_sha256)
    began = time.monotonic()
    sources = scan(source_folder, dvc_cache(root)).sources
    if not folder:
        sources = sources[int(rank) :: int(world)]
    cache_digest = digest(params, root)
    with ExitStack() as stack:
        store = stack.enter_context(Store(root, cache_digest))
        results = stack.enter_context(closing(extracted(store, params, root, source_folder, sources)))
        exported: set[str] = set()
        persons = new_files = 0
        rejects: Counter[str] = Counter()
        for _, key, findings, new in with_progress_bar(results, len(sources)):
            new_files += new
            if key is None or key in exported:
                continue  # the stage `extract` reports it
            persons += len(findings.persons)
            rejects.update(row.reason.value for row in findings.refused)
            if findings.cacheable:
                exported.add(key)
        result = root / paths.SLICES / part / name(int(rank), int(world))
        stack.enter_context(files.alone(result))  # the process of a worker that was killed may not have ended yet
        output = stack.enter_context(files.new_folder(result))
        store.export(output / FINDINGS, exported)
        statistics = Statistics(len(sources), new_files, persons, time.monotonic() - began, dict(rejects))
        files.write_json(output / MARK, {"digest": cache_digest, **asdict(statistics)})
    log.info(f"{part}, slice {rank} of {world}: {persons} persons in {len(sources)} files, {new_files} extracted")


def combine(statistics: Iterable[Statistics]) -> Statistics:
    """The sum of the statistics of several slices."""
    slices = list(statistics)
    return Statistics(
        files=sum(one.files for one in slices),
        extracted=sum(one.extracted for one in slices),
        persons=sum(one.persons for one in slices),
        seconds=sum(one.seconds for one in slices),
        rejects=dict(sum((Counter(one.rejects) for one in slices), Counter())),
    )


def absorb(params: Params, root: Path, folder: Path) -> Statistics:
    """Move the findings of a slice's folder into this workspace's cache and remove the folder. Returns its statistics.

    Findings that were made with other parameters are ignored. Raises DataError if the findings cannot be read.
    """
    saved = files.read_json(folder / MARK)
    with Store(root, digest(params, root)) as store:
        store.absorb(folder / FINDINGS)
    shutil.rmtree(folder)  # `forget` deletes findings from the cache only, so no other copy may stay
    return Statistics(**{field.name: saved[field.name] for field in fields(Statistics)})
