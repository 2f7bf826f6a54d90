"""`python -m tasks extract_slice PART RANK WORLD [FOLDER]`: extract every WORLD-th file of a part, from the RANK-th on.

So a part is shared out over machines: each works on a slice, and what they find is brought together (see `absorb`) where the
stage `extract` then finds everything known. Its output cannot depend on how many slices there were.

A slice leaves `.contrapposto/slices/<part>/<rank>-of-<world>/` with

    findings.db     what was found in each file (see `extraction.findings`)
    slice.json      the statistics, which `together` adds up; that it is there is the mark of a slice that is done
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tasks import files, machine
from tasks.errors import UserError
from tasks.extract import content_keys, fill, settings
from tasks.extraction import findings
from tasks.extraction.findings import Store
from tasks.extraction.ingest import scan
from tasks.extraction.pose_bundle import check
from tasks.params import Params

SLICES = Path(".contrapposto/slices")
MARK = "slice.json"
FINDINGS = "findings.db"
_COUNTS = ("files", "extracted", "persons", "seconds")


def name(rank: int, world: int) -> str:
    """What a slice's folder is called."""
    return f"{rank}-of-{world}"


def digest(params: Params, root: Path) -> str:
    """What findings depend on besides the files: two machines may share a part if this is the same for both."""
    return findings.digest(settings(params), root / params.extract.model)


def run(params: Params, root: Path, part: str, rank: str, world: str, folder: str = "") -> None:
    """Extract one slice. `folder`: where just the files of the slice are, on a machine that does not have the whole part.

    Raises UserError if there is no such part or slice, or the folder or the model cannot be used.
    """
    if part not in params.raw.parts:
        raise UserError(
            f"There is no part {part!r} in raw.parts of params.yaml; there are {', '.join(params.raw.parts)}."
        )
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise UserError(f"A slice is a RANK below WORLD, such as 0 3; got {rank} {world}.")
    place = root / (folder or params.raw.parts[part])
    check(root / params.extract.model)
    began = time.monotonic()
    sources = scan(place)
    if not folder:
        sources = sources[int(rank) :: int(world)]
    keys = content_keys(place, sources, params.extract.workers or machine.cores())
    known = {key for key in keys if isinstance(key, str)}
    with ExitStack() as stack:
        store = stack.enter_context(Store(root / findings.PATH, digest(params, root)))
        made, lost = fill(store, params, root, place, sources, keys)
        kept = known - lost.keys()
        there = [store.get(key) for key in sorted(kept)]
        output = stack.enter_context(files.new_folder(root / SLICES / part / name(int(rank), int(world))))
        store.export(output / FINDINGS, kept)
        refused = Counter(row.reason.value for one in (*there, *lost.values()) for row in one.refused)
        statistics = {
            "digest": digest(params, root), "files": len(sources), "extracted": made, "seconds": time.monotonic() - began,
            "persons": sum(len(one.found) for one in there), "rejects": dict(refused),
        }  # fmt: skip
        files.write_json(output / MARK, statistics)
    print(f"{part}, slice {rank} of {world}: {statistics['persons']} persons in {len(sources)} files, {made} extracted")


def together(statistics: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of several slices, or of such sums, added up; the order does not matter."""
    parts = list(statistics)
    total: dict[str, Any] = {key: sum(part[key] for part in parts) for key in _COUNTS}
    return total | {"rejects": dict(sum((Counter(part["rejects"]) for part in parts), Counter()))}


def absorb(params: Params, root: Path, folder: Path) -> dict[str, Any]:
    """Take what a slice's folder holds into this workspace's findings; its statistics.

    Raises DataError if its findings cannot be read. What was found with other parameters is left aside.
    """
    statistics: dict[str, Any] = files.read_json(folder / MARK)
    with Store(root / findings.PATH, digest(params, root)) as store:
        store.absorb(folder / FINDINGS)
    return statistics
