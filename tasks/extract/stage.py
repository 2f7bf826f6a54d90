"""Stage `extract PART`: finds the persons in the pictures, videos and motion captures of a part.

Reads the part's folder (`raw.parts`). Writes `data/poses/<part>/`: the tables of `poses_table`, `provenance.json` (the text
of each SOURCE.txt), and `summary.json`:

    files                  number of files
    frames                 number of pictures and sampled frames; a refused file counts as one:
                           distinct (source, frame) of poses.parquet + all rejects
    files_with_person      number of files in which somebody was found
    persons                rows of poses.parquet
    rejects                {reason: number of frames}
    joint_error            error against true joints, if the folder has them (see `joint_error`)
    joint_error_absent     why there is no joint_error

and `captions.json`, the captions by file, if any picture has one.

The findings of each file are cached by its content (see `cache`): a run that was killed continues where it stopped, and a
new picture costs one extraction. Timing depends on the machine and the stage's outputs must not, so it is written to
`.contrapposto/extract/<part>.json`.
"""

from __future__ import annotations

import io
import logging
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from tasks import paths
from tasks.common import files, machine
from tasks.common.errors import DataError, UserError
from tasks.common.pool import OrderedMap, WorkerDied, preload
from tasks.config.data import Extract
from tasks.config.params import Params
from tasks.extract import captions, joint_error, parts
from tasks.extract.cache import Store, decoded, findings_digest
from tasks.extract.content_keys import stamp_of
from tasks.extract.findings import Findings, Kind, Opinion, Reason, Refused, Settings
from tasks.extract.pose_bundle import check
from tasks.extract.poses_table import Pose, Reject, Writer, read_poses
from tasks.extract.scan import JOINTS_SUFFIX, PROVENANCE, Source, scan, walk
from tasks.extract.source_files import Refusal, behind_dvc_link, content_key, dvc_cache, open_regular, printable
from tasks.extract.worker import Answer, extracting

log = logging.getLogger(__name__)

PRELOAD = "tasks.extract.preload"
_POLL_EVERY = 32  # cached files between two looks at the workers
_MAX_PROVENANCE = 4000  # characters of a SOURCE.txt that are kept


def run(params: Params, root: Path, part: str) -> None:
    """Extract one part. The result does not depend on the number of workers.

    Raises UserError if there is no such part, or if its folder or the model cannot be used.
    """
    preload(PRELOAD)
    folder, model = part_folder(params, root, part), root / params.extract.model
    cache = dvc_cache(root)
    scanned = scan(folder, cache)
    sources = scanned.sources
    check(model, params.extract.model_sha256)
    for line in scanned.describe():
        log.info(f"{part}: {line}")
    workers = params.extract.workers or machine.cores()
    began = time.monotonic()
    with (
        Store(root, findings_digest(settings(params.extract, root), model)) as store,
        files.new_folder(root / paths.POSES / part) as output,
        closing(extracted(store, params, root, folder, sources)) as results,
    ):
        counts, rejects, new_files, known_files = _write_tables(output, with_progress_bar(results, len(sources)))
        seconds = time.monotonic() - began
        summary = {
            "files": len(sources),
            **counts,
            "rejects": dict(rejects),
            **_joint_error(output, folder, sources),
        }
        files.write_json(output / "summary.json", summary)
        files.write_json(output / "provenance.json", provenance(folder, cache))
        if texts := captions.of(folder, [source.path for source in sources], cache):
            files.write_json(output / parts.CAPTIONS, {printable(name): text for name, text in texts.items()})
    timing = {"seconds": seconds, "workers": workers, "files": len(sources), "extracted": new_files}
    files.write_json(root / paths.EXTRACT_STATE / f"{part}.json", timing)
    log.info(
        f"{part}: {summary['persons']} persons in {len(sources)} files, {sum(rejects.values())} refused"
        + (f" ({_spell(rejects)})" if rejects else "")
        + (f"; {known_files} known" if known_files else "")
        + f"; {len(sources) / seconds:.1f} files/s with {workers} worker{'s' if workers > 1 else ''}"
    )


def part_folder(params: Params, root: Path, part: str) -> Path:
    """The folder of a part. Raises UserError if there is no part of this name."""
    if part not in params.raw.parts:
        names = ", ".join(params.raw.parts)
        raise UserError(f"There is no part {part!r} in raw.parts of params.yaml; there are {names}.")
    return root / params.raw.parts[part]


def settings(extract: Extract, root: Path) -> Settings:
    """The parameters that findings depend on."""
    opinion = None
    if chosen := extract.second_opinion:
        path = str((root / chosen.source).resolve())
        opinion = Opinion(path, chosen.sha256, chosen.side, chosen.agreement)
    return Settings(
        extract.min_confidence,
        extract.min_side,
        extract.max_people,
        extract.video_rate,
        extract.pose_change,
        extract.second_pass,
        opinion,
    )


class Extracted(NamedTuple):
    """The findings of one file."""

    source: Source
    key: str | None  # None if the file could not be read
    findings: Findings
    new: bool  # extracted now, not taken from the cache


def extracted(
    store: Store, params: Params, root: Path, folder: Path, sources: Sequence[Source]
) -> Generator[Extracted, None, None]:
    """The findings of each file, in the order of the sources. What is not in the store is extracted and put there.

    If several new files have the same bytes, each of them may be extracted. Raises DataError if worker processes cannot
    start, or if an entry of the store is deleted meanwhile (`forget`).
    """
    extract = params.extract
    cache = dvc_cache(root)
    stamps = (stamp_of(behind_dvc_link(folder / source.path, cache)) for source in sources)
    keys = [store.key_of(stamp) if stamp else None for stamp in stamps]
    try:
        answers = OrderedMap(
            partial(extracting, root, store.digest, folder, root / extract.model, settings(params.extract, root)),
            (source.path for source, key in zip(sources, keys, strict=True) if key is None),
            extract.workers or machine.cores(),
            lost=partial(_lost, folder=folder, cache=cache, time_limit=extract.time_limit),
            time_limit=extract.time_limit,
        )
        with closing(answers):
            for number, (source, known_key) in enumerate(zip(sources, keys, strict=True)):
                if known_key is not None:
                    if number % _POLL_EVERY == 0:
                        answers.poll()
                    yield Extracted(source, known_key, _stored(store, known_key), new=False)
                    continue
                key, stamp, answer = next(answers)
                if key and stamp:
                    store.remember_key(stamp, key)
                if isinstance(answer, Findings):
                    findings = answer
                else:
                    assert key is not None  # findings without a key are never encoded
                    if answer is not None:
                        store.put(key, answer)
                    findings = _stored(store, key) if answer is None else decoded(*answer)
                yield Extracted(source, key, findings, new=key is not None and answer is not None)
    except WorkerDied as error:
        raise DataError(
            f"A worker process died before it could begin (exit code {error.exit_code}); give the machine more "
            "memory, or extract.workers a smaller number, and run again."
        ) from error


def _stored(store: Store, key: str) -> Findings:
    try:
        return store.get(key)
    except KeyError as error:
        raise DataError(f"{key} was forgotten while its part was being extracted; run again.") from error


def with_progress_bar(results: Iterable[Extracted], count: int) -> Iterable[Extracted]:
    """The same results; a progress bar counts them."""
    return tqdm(results, "extract", count, unit="file", mininterval=1)


def _lost(death: WorkerDied, folder: Path, cache: Path, time_limit: float) -> Answer:
    """The answer for a file on which a worker died."""
    refused = Refused(None, Reason.TOO_SLOW, f"nothing came for {time_limit:g} s")
    if death.exit_code is not None:
        detail = f"its process ended twice, the second time with exit code {death.exit_code}"
        refused = Refused(None, Reason.CRASHED, detail)
    try:
        with open_regular(behind_dvc_link(folder / death.item, cache)) as file:
            key = content_key(file)
    except Refusal:
        key = None
    return Answer(key, None, Findings(Kind.PICTURE, refused=[refused]))


def _write_tables(output: Path, results: Iterable[Extracted]) -> tuple[dict[str, int], Counter[str], int, int]:
    """Write poses.parquet and rejects.parquet.

    Returns the counts of the summary, the rejects of each reason, and how many files were extracted now and were in the cache.
    """
    counts = dict.fromkeys(("frames", "files_with_person", "persons"), 0)
    rejects: Counter[str] = Counter()
    new_files = known_files = 0
    first_source: dict[str, str] = {}  # by key
    with Writer(output) as tables:
        for source, key, findings, is_new in results:
            new_files += is_new
            known_files += key is not None and not is_new
            refusals = findings.refused
            if key and findings.persons and (first := first_source.setdefault(key, source.name)) != source.name:
                refusals = [Refused(None, Reason.DUPLICATE, f"the same bytes as {first}")]
            else:
                for pose in _poses(source, key, findings):
                    tables.add_pose(pose)
                counts["frames"] += len({person.frame for person in findings.persons})
                counts["files_with_person"] += bool(findings.persons)
                counts["persons"] += len(findings.persons)
            for refused in refusals:
                rejects[refused.reason.value] += 1
                tables.add_reject(
                    Reject(source.name, key, source.category, refused.reason, refused.detail, refused.frame)
                )
    counts["frames"] += rejects.total()
    return counts, rejects, new_files, known_files


def _poses(source: Source, key: str | None, findings: Findings) -> Iterator[Pose]:
    for finding in findings.persons:
        frame = "" if findings.kind is Kind.PICTURE else f"-f{finding.frame:05d}"
        person = f"-{finding.person}" if finding.person else ""
        yield Pose(
            key=f"{key}{frame}{person}",
            source=source.name,
            source_kind=findings.kind,
            category=source.category,
            **vars(finding),
        )


def _joint_error(output: Path, folder: Path, sources: Sequence[Source]) -> dict[str, Any]:
    """The summary's entry about errors against true joints."""
    if joint_error.can_measure((source.path for source in sources), folder):
        errors = joint_error.measure(read_poses(output), folder)
        if errors is not None:
            return {"joint_error": errors}
    return {"joint_error_absent": f"no picture in which somebody was found has a {JOINTS_SUFFIX} file"}


def provenance(folder: Path, cache: Path | None = None) -> dict[str, str]:
    """The first `_MAX_PROVENANCE` characters of every SOURCE.txt below a part's folder, by its path in the part."""
    texts = {}
    for path in sorted(entry.path for entry in walk(folder) if entry.path.split("/")[-1] == PROVENANCE):
        with suppress(Refusal), open_regular(behind_dvc_link(folder / path, cache)) as file:
            texts[printable(path)] = io.TextIOWrapper(file, encoding="utf-8", errors="replace").read(_MAX_PROVENANCE)
    return texts


def _spell(rejects: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(rejects.items(), key=lambda r: (-r[1], r[0])))
