"""`python -m tasks extract_slice PART RANK WORLD [FOLDER]`: extract every WORLD-th file of a part, from the RANK-th on.

So a part is shared out over machines: each works on a slice, and what they find is brought together (see `absorb`) where the
stage `extract` then finds everything known. Its output cannot depend on how many slices there were.

A slice leaves `.contrapposto/slices/<part>/<rank>-of-<world>/` with

    findings.db     what was found in each file (see `extraction.store`)
    slice.json      the statistics, which `together` adds up; that it is there is the mark of a slice that is done
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from tasks import paths
from tasks.common import files
from tasks.common.errors import UserError
from tasks.common.pool import prepare
from tasks.config.params import Params
from tasks.extract import parts
from tasks.extract.cache import Store, findings_digest
from tasks.extract.decode import scan
from tasks.extract.pose_bundle import check
from tasks.extract.stage import FORERUNNER, extracted, part_folder, settings, shown

MARK = "slice.json"
FINDINGS = paths.FINDINGS.name
_COUNTS = ("files", "extracted", "persons", "seconds")


def name(rank: int, world: int) -> str:
    """What a slice's folder is called."""
    return f"{rank}-of-{world}"


def digest(params: Params, root: Path) -> str:
    """What findings depend on besides the files: two machines may share a part if this is the same for both."""
    return findings_digest(settings(params), root / params.extract.model)


def run(params: Params, root: Path, part: str, rank: str, world: str, folder: str = "") -> None:
    """Extract one slice. `folder`: where just the files of the slice are, on a machine that does not have the whole part.

    Raises UserError if there is no such part or slice, or the folder or the model cannot be used.
    """
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise UserError(f"A slice is a RANK below WORLD, such as 0 3; got {rank} {world}.")
    prepare(FORERUNNER)
    whole = part_folder(params, root, part)
    place = root / folder if folder else whole
    check(root / params.extract.model)
    began = time.monotonic()
    sources = scan(place)
    if not folder:
        sources = sources[int(rank) :: int(world)]
    depends = digest(params, root)
    with ExitStack() as stack:
        store = stack.enter_context(Store(root, depends))
        found = stack.enter_context(closing(extracted(store, params, root, place, sources)))
        kept: set[str] = set()
        persons = made = 0
        refused: Counter[str] = Counter()
        for _, key, there, new in shown(found, len(sources)):
            made += new
            if key is None or key in kept:
                continue  # the part's own stage will say why
            persons += len(there.found)
            refused.update(row.reason.value for row in there.refused)
            if there.lasting:
                kept.add(key)
        output = stack.enter_context(files.new_folder(root / paths.SLICES / part / name(int(rank), int(world))))
        store.export(output / FINDINGS, kept)
        statistics = {
            "digest": depends, "files": len(sources), "extracted": made, "seconds": time.monotonic() - began,
            "persons": persons, "rejects": dict(refused),
        }  # fmt: skip
        files.write_json(output / MARK, statistics)
    print(f"{part}, slice {rank} of {world}: {statistics['persons']} persons in {len(sources)} files, {made} extracted")


def together(statistics: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of several slices, or of such sums, added up; the order does not matter."""
    return parts.added(list(statistics), _COUNTS)


def absorb(params: Params, root: Path, folder: Path) -> dict[str, Any]:
    """Take what a slice's folder holds into this workspace's findings, and remove the folder; its statistics.

    Raises DataError if its findings cannot be read. What was found with other parameters is left aside.
    """
    statistics: dict[str, Any] = files.read_json(folder / MARK)
    with Store(root, digest(params, root)) as store:
        store.absorb(folder / FINDINGS)
    shutil.rmtree(folder)  # findings have one place, where `forget` finds them
    return statistics
