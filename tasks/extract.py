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
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tasks import files, machine
from tasks.errors import DataError, UserError
from tasks.extraction import joint_error
from tasks.extraction.findings import Findings, Kind, Reason, Refused, Settings
from tasks.extraction.ingest import JOINTS_SUFFIX, Source, printable, scan
from tasks.extraction.keys import content_keys
from tasks.extraction.pose_bundle import check
from tasks.extraction.poses_table import Pose, Reject, Writer, read_poses
from tasks.extraction.store import Store, findings_digest
from tasks.extraction.worker import encoding_extractor
from tasks.params import Params
from tasks.pool import WorkerDied, ordered_map

PROVENANCE = "SOURCE.txt"  # where pictures come from and under which licence, in any folder of them
_LONGEST = 4000  # characters of it


def run(params: Params, root: Path, part: str) -> None:
    """Extract one part; the result does not depend on the number of workers.

    Raises UserError if there is no such part, or its folder or the model cannot be used.
    """
    folder, model = part_folder(params, root, part), root / params.extract.model
    sources = scan(folder)
    check(model)
    workers = params.extract.workers or machine.cores()
    began = time.monotonic()
    with Store(root, findings_digest(settings(params), model)) as store:
        keys, made, lost = fill(store, params, root, folder, sources)
        with files.new_folder(root / "data/poses" / part) as output:
            rejects = _write_tables(output, sources, keys, store, lost)
            seconds = time.monotonic() - began
            summary = _summary(output, folder, len(sources), rejects)
            files.write_json(output / "summary.json", summary)
            files.write_json(output / "provenance.json", provenance(folder))
    timing = {"seconds": seconds, "workers": workers, "files": len(sources), "extracted": made}
    files.write_json(root / ".contrapposto/extract" / f"{part}.json", timing)
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


def fill(
    store: Store, params: Params, root: Path, folder: Path, sources: Sequence[Source]
) -> tuple[list[str | Refused], int, dict[str, Findings]]:
    """Extract what the store does not have: the key of each file, how many were extracted, and by key the findings that the
    store is not to keep, since they are not `lasting`.
    """
    keys: list[str | Refused] = []
    asked: set[str] = set()  # files with the same bytes are extracted once
    progress = tqdm(total=len(sources), desc="extract", unit="file", mininterval=1)

    def unknown() -> Generator[tuple[str, str], None, None]:
        with closing(content_keys(folder, sources, store)) as found:
            for source, key in zip(sources, found, strict=True):
                keys.append(key)
                if isinstance(key, str) and key not in asked and key not in store:
                    asked.add(key)
                    yield source.path, key
                else:
                    progress.update()

    lost: dict[str, Findings] = {}
    chosen = params.extract
    items = unknown()
    outcomes = ordered_map(
        partial(encoding_extractor, folder, root / chosen.model, settings(params)),
        items,
        chosen.workers or machine.cores(),
        lost=partial(_lost, time_limit=chosen.time_limit),
        time_limit=chosen.time_limit,
    )
    with closing(items), closing(outcomes), progress:
        try:
            for key, outcome in outcomes:
                if isinstance(outcome, Findings):
                    lost[key] = outcome
                else:
                    store.put(key, outcome)
                progress.update()
        except WorkerDied as error:
            raise DataError(
                f"A worker process died before it could begin (exit code {error.exit_code}); give the machine more "
                "memory, or extract.workers a smaller number, and run again."
            ) from error
    store.commit()
    return keys, len(asked), lost


def _lost(death: WorkerDied, time_limit: float) -> tuple[str, Findings]:
    """The key and what it is given, as from the worker."""
    _, key = death.item
    refused = Refused(None, Reason.TOO_SLOW, f"nothing came for {time_limit:g} s")
    if death.exit_code is not None:
        detail = f"its process ended twice, the second time with exit code {death.exit_code}"
        refused = Refused(None, Reason.CRASHED, detail)
    return key, Findings(Kind.PICTURE, refused=[refused])


def _write_tables(
    output: Path, sources: list[Source], keys: list[str | Refused], store: Store, lost: dict[str, Findings]
) -> Counter[str]:
    """Write poses.parquet and rejects.parquet; the number of rejects for each reason."""
    rejects: Counter[str] = Counter()
    first_with: dict[str, str] = {}  # key -> source
    with Writer(output) as tables:
        for source, key in zip(sources, keys, strict=True):
            if isinstance(key, Refused):
                there, known = Findings(Kind.PICTURE, refused=[key]), None
            else:
                there, known = lost[key] if key in lost else store.get(key), key
                if there.found and (first := first_with.setdefault(key, source.name)) != source.name:
                    there = Findings(
                        there.kind, refused=[Refused(None, Reason.DUPLICATE, f"the same bytes as {first}")]
                    )
            for pose in _poses(source, known, there):
                tables.add_pose(pose)
            for refused in there.refused:
                rejects[refused.reason.value] += 1
                tables.add_reject(
                    Reject(source.name, known, source.category, refused.reason, refused.detail, refused.frame)
                )
    return rejects


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


def _summary(output: Path, folder: Path, looked_at: int, rejects: Counter[str]) -> dict[str, Any]:
    poses = read_poses(output)
    summary: dict[str, Any] = {
        "files": looked_at,
        "frames": len(set(zip(poses.source, poses.frame.tolist(), strict=True))) + sum(rejects.values()),
        "files_with_person": len(set(poses.source)),
        "persons": len(poses),
        "rejects": dict(rejects),
    }
    errors = joint_error.measure(poses, folder)
    if errors is None:
        summary["joint_error_absent"] = f"no picture in which somebody was found has a {JOINTS_SUFFIX} file"
    else:
        summary["joint_error"] = errors
    return summary


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
