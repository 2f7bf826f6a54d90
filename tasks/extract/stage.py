"""Stage `extract PART`: finds the persons in a part's pictures, videos and motion captures, and writes them down.

Reads the part's folder (`raw.parts`), writes `data/poses/<part>/` (see `poses_table`) with `provenance.json`, what each
SOURCE.txt says, and `summary.json`:

    files                  files looked at
    frames                 pictures and sampled frames looked at, a refused file being one:
                           distinct (source, frame) of poses.parquet + all rejects
    files_with_person
    persons                rows of poses.parquet
    rejects                {reason: frames}
    joint_error            against true joints, where the folder has them (see `joint_error`)
    joint_error_absent     why there is none

What has been found in a file is kept by its content (see `store`): a run that was killed goes on where it was, and a
new picture costs one picture. What depends on the machine (seconds, workers) is no output of the stage, since the same
files must give the same bytes; it is left in `.contrapposto/extract/<part>.json`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from tasks import paths
from tasks.common import files, machine
from tasks.common.errors import DataError, UserError
from tasks.common.pool import OrderedMap, WorkerDied, prepare
from tasks.config.params import Params
from tasks.extract import joint_error
from tasks.extract.cache import Store, decoded, findings_digest
from tasks.extract.content_keys import stamp_of
from tasks.extract.decode import JOINTS_SUFFIX, Refusal, Source, content_key, open_regular, printable, scan
from tasks.extract.findings import Findings, Kind, Reason, Refused, Settings
from tasks.extract.pose_bundle import check
from tasks.extract.poses_table import Pose, Reject, Writer, read_poses
from tasks.extract.worker import Answer, extracting

FORERUNNER = "tasks.extract.preload"
_OFTEN = 32  # known files a look at the workers
PROVENANCE = "SOURCE.txt"  # where pictures come from and under which licence, in any folder of them
_LONGEST = 4000  # characters of it


def run(params: Params, root: Path, part: str) -> None:
    """Extract one part; the result does not depend on the number of workers.

    Raises UserError if there is no such part, or its folder or the model cannot be used.
    """
    prepare(FORERUNNER)
    folder, model = part_folder(params, root, part), root / params.extract.model
    sources = scan(folder)
    check(model)
    workers = params.extract.workers or machine.cores()
    began = time.monotonic()
    with (
        Store(root, findings_digest(settings(params), model)) as store,
        files.new_folder(root / paths.POSES / part) as output,
        closing(extracted(store, params, root, folder, sources)) as found,
    ):
        counts, rejects, made = _write_tables(output, shown(found, len(sources)))
        seconds = time.monotonic() - began
        summary = {
            "files": len(sources),
            **counts,
            "rejects": dict(rejects),
            **_joint_error(output, folder, sources),
        }
        files.write_json(output / "summary.json", summary)
        files.write_json(output / "provenance.json", provenance(folder))
    timing = {"seconds": seconds, "workers": workers, "files": len(sources), "extracted": made}
    files.write_json(root / paths.EXTRACT_STATE / f"{part}.json", timing)
    print(
        f"{part}: {summary['persons']} persons in {len(sources)} files, {sum(rejects.values())} refused"
        + (f" ({_spell(rejects)})" if rejects else "")
        + (f"; {len(sources) - made} known" if made < len(sources) else "")
        + f"; {len(sources) / seconds:.1f} files/s with {workers} worker{'s' if workers > 1 else ''}"
    )


def part_folder(params: Params, root: Path, part: str) -> Path:
    """Where a part lies; raises UserError if there is none of this name."""
    if part not in params.raw.parts:
        names = ", ".join(params.raw.parts)
        raise UserError(f"There is no part {part!r} in raw.parts of params.yaml; there are {names}.")
    return root / params.raw.parts[part]


def settings(params: Params) -> Settings:
    """The parameters that findings depend on."""
    chosen = params.extract
    return Settings(chosen.min_confidence, chosen.min_side, chosen.max_people, chosen.video_rate, chosen.pose_change)


class Extracted(NamedTuple):
    """What is in one file."""

    source: Source
    key: str | None  # None where the file could not be read
    findings: Findings
    new: bool  # not from the store


def extracted(
    store: Store, params: Params, root: Path, folder: Path, sources: Sequence[Source]
) -> Generator[Extracted, None, None]:
    """What is in each file, in the order of the sources: from the store, or found now and put there.

    Several files with the same new bytes may each be extracted. Raises DataError where worker processes cannot begin, or
    where somebody forgets meanwhile what was known.
    """
    chosen = params.extract
    keys = [store.seen(stamp) if (stamp := stamp_of(folder / source.path)) else None for source in sources]
    try:
        answers = OrderedMap(
            partial(extracting, root, store.digest, folder, root / chosen.model, settings(params)),
            (source.path for source, key in zip(sources, keys, strict=True) if key is None),
            chosen.workers or machine.cores(),
            lost=partial(_lost, folder=folder, time_limit=chosen.time_limit),
            time_limit=chosen.time_limit,
        )
        with closing(answers):
            for number, (source, seen) in enumerate(zip(sources, keys, strict=True)):
                if seen is not None:
                    if number % _OFTEN == 0:
                        answers.poll()
                    yield Extracted(source, seen, _kept(store, seen), new=False)
                    continue
                key, stamp, findings = next(answers)
                if key and stamp:
                    store.see(stamp, key)
                if isinstance(findings, Findings):
                    there = findings
                else:
                    assert key is not None  # else they would not last
                    if findings is not None:
                        store.put(key, findings)
                    there = _kept(store, key) if findings is None else decoded(*findings)
                yield Extracted(source, key, there, new=key is not None and findings is not None)
    except WorkerDied as error:
        raise DataError(
            f"A worker process died before it could begin (exit code {error.exit_code}); give the machine more "
            "memory, or extract.workers a smaller number, and run again."
        ) from error


def _kept(store: Store, key: str) -> Findings:
    try:
        return store.get(key)
    except KeyError as error:
        raise DataError(f"{key} was forgotten while its part was being extracted; run again.") from error


def shown(found: Iterable[Extracted], count: int) -> Iterable[Extracted]:
    """The same, with a progress bar."""
    return tqdm(found, "extract", count, unit="file", mininterval=1)


def _lost(death: WorkerDied, folder: Path, time_limit: float) -> Answer:
    """What is said of a file on which a worker died."""
    refused = Refused(None, Reason.TOO_SLOW, f"nothing came for {time_limit:g} s")
    if death.exit_code is not None:
        detail = f"its process ended twice, the second time with exit code {death.exit_code}"
        refused = Refused(None, Reason.CRASHED, detail)
    try:
        with open_regular(folder / death.item) as file:
            key = content_key(file)
    except Refusal:
        key = None
    return Answer(key, None, Findings(Kind.PICTURE, refused=[refused]))


def _write_tables(output: Path, found: Iterable[Extracted]) -> tuple[dict[str, int], Counter[str], int]:
    """Write poses.parquet and rejects.parquet; what they hold, the rejects for each reason, and how many files were new."""
    counts = dict.fromkeys(("frames", "files_with_person", "persons"), 0)
    rejects: Counter[str] = Counter()
    new = 0
    first_with: dict[str, str] = {}  # key -> source
    with Writer(output) as tables:
        for source, key, there, is_new in found:
            new += is_new
            refusals = there.refused
            if key and there.found and (first := first_with.setdefault(key, source.name)) != source.name:
                refusals = [Refused(None, Reason.DUPLICATE, f"the same bytes as {first}")]
            else:
                for pose in _poses(source, key, there):
                    tables.add_pose(pose)
                counts["frames"] += len({pose.frame for pose in there.found})
                counts["files_with_person"] += bool(there.found)
                counts["persons"] += len(there.found)
            for refused in refusals:
                rejects[refused.reason.value] += 1
                tables.add_reject(
                    Reject(source.name, key, source.category, refused.reason, refused.detail, refused.frame)
                )
    counts["frames"] += rejects.total()
    return counts, rejects, new


def _poses(source: Source, key: str | None, there: Findings) -> Iterator[Pose]:
    for found in there.found:
        frame = "" if there.kind is Kind.PICTURE else f"-f{found.frame:05d}"
        person = f"-{found.person}" if found.person else ""
        yield Pose(
            key=f"{key}{frame}{person}",
            source=source.name,
            source_kind=there.kind,
            category=source.category,
            **vars(found),
        )


def _joint_error(output: Path, folder: Path, sources: Sequence[Source]) -> dict[str, Any]:
    """What the summary says of errors against true joints."""
    if joint_error.can_measure((source.path for source in sources), folder):
        errors = joint_error.measure(read_poses(output), folder)
        if errors is not None:
            return {"joint_error": errors}
    return {"joint_error_absent": f"no picture in which somebody was found has a {JOINTS_SUFFIX} file"}


def provenance(folder: Path) -> dict[str, str]:
    """What every SOURCE.txt below a part's folder says, by its path in the part: at most `_LONGEST` characters of it."""
    said = {}
    for path in sorted(folder.rglob(PROVENANCE)):
        if path.is_file() and not path.is_symlink():
            with path.open(encoding="utf-8", errors="replace") as file:
                said[printable(str(path.relative_to(folder)))] = file.read(_LONGEST)
    return said


def _spell(rejects: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(rejects.items(), key=lambda r: (-r[1], r[0])))
