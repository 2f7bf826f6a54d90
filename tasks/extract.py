"""Stage `extract`: finds the persons in a folder of pictures and writes them down with their landmarks.

Reads `raw.folder`, writes `data/poses/<part>/` (see `poses_table`) with `summary.json`:

    files                  files looked at = files_with_person + all rejects
    files_with_person
    persons                rows of poses.parquet
    rejects                {reason: files}
    joint_error            against true joints, where the folder has them (see `joint_error`)
    joint_error_absent     why there is none

What depends on the machine (seconds, workers) is no output of the stage, since the same pictures must give the same
bytes; it is left in `.contrapposto/extract/<part>.json`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
from PIL import Image
from tqdm import tqdm

from tasks import files, machine
from tasks.errors import DataError
from tasks.extraction import joint_error
from tasks.extraction.ingest import JOINTS_SUFFIX, Refusal, Source, content_key, decode, open_regular, scan
from tasks.extraction.pose_bundle import check
from tasks.extraction.poses_table import Pose, Reason, Reject, Writer, read_poses
from tasks.params import Params
from tasks.pool import WorkerDied, ordered_map

_NUM_POSES = 1  # persons looked for in a picture


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know."""

    folder: Path
    model: Path
    min_confidence: float
    min_side: int


def run(params: Params, root: Path) -> None:
    """Extract the part `params.raw.folder`; the result does not depend on the number of workers.

    Raises UserError if the folder or the model cannot be used, and DataError if nobody at all is found or if a
    worker process dies on a picture. Where nobody is found, the refusals are kept in `.contrapposto/rejected/<part>/`.
    """
    part = params.raw.part
    folder = root / params.raw.folder
    job = _Job(folder, root / params.extract.model, params.extract.min_confidence, params.extract.min_side)
    sources = scan(folder)
    check(job.model)
    workers = min(params.extract.workers or machine.cores(), len(sources))
    began = time.monotonic()
    refused = root / ".contrapposto/rejected" / part
    with files.new_folder(root / "data/poses" / part) as output:
        rejects = _write_tables(output, job, sources, workers)
        seconds = time.monotonic() - began
        summary = _summary(output, folder, len(sources), rejects)
        files.write_json(output / "summary.json", summary)
        if summary["persons"] == 0:
            refused.parent.mkdir(parents=True, exist_ok=True)
            with files.new_folder(refused) as kept:
                output.rename(kept)
            raise DataError(
                f"Nobody was found in the {len(sources)} files of {folder} ({_spell(rejects)}); "
                f"each refusal with its reason is in {refused}."
            )
    timing = {"seconds": seconds, "workers": workers, "files_per_second": len(sources) / seconds}
    files.write_json(root / ".contrapposto/extract" / f"{part}.json", timing)
    print(
        f"{summary['persons']} persons in {len(sources)} files, {sum(rejects.values())} refused"
        + (f" ({_spell(rejects)})" if rejects else "")
        + f"; {timing['files_per_second']:.1f} files/s with {workers} worker{'s' if workers > 1 else ''}"
    )


def _write_tables(output: Path, job: _Job, sources: list[Source], workers: int) -> Counter[str]:
    """Write poses.parquet and rejects.parquet; the number of files refused for each reason."""
    rejects: Counter[str] = Counter()
    first_with: dict[str, str] = {}  # key -> source
    outcomes = ordered_map(partial(_extractor, job), sources, workers)
    progress = tqdm(total=len(sources), desc="extract", unit="file", mininterval=1)
    with Writer(output) as tables, closing(outcomes), progress:
        try:
            for source, outcome in zip(sources, outcomes, strict=True):
                if isinstance(outcome, list):
                    first = first_with.setdefault(outcome[0].key, source.name)
                    if first != source.name:
                        detail = f"the same bytes as {first}"
                        outcome = Reject(source.name, outcome[0].key, source.category, Reason.DUPLICATE, detail)
                if isinstance(outcome, Reject):
                    rejects[outcome.reason.value] += 1
                    tables.add_reject(outcome)
                else:
                    for pose in outcome:
                        tables.add_pose(pose)
                progress.update()
        except WorkerDied as error:
            raise DataError(
                f"A worker process died (exit code {error.exit_code}) on {job.folder / error.item.path}; take the "
                "file away, or give the machine more memory, and run again."
            ) from error
    return rejects


@contextmanager
def _extractor(job: _Job) -> Iterator[Callable[[Source], list[Pose] | Reject]]:
    """In a worker: the function from a source to its persons or its refusal, with the landmarker that it needs."""
    # Here, since mediapipe takes a second to import and the parent has no use for it.
    from tasks.extraction.landmarker import Landmarker, keep_offline

    keep_offline()
    with Landmarker(job.model, job.min_confidence, _NUM_POSES) as landmarker:

        def extract(source: Source) -> list[Pose] | Reject:
            key = None
            try:
                with open_regular(job.folder / source.path) as file:
                    key = content_key(file)
                    picture = decode(file, job.min_side)
                persons = landmarker.detect(picture)
                if not persons:
                    raise Refusal(Reason.NO_PERSON, f"in {picture.shape[1]} x {picture.shape[0]} pixels")
            except Refusal as refusal:
                return Reject(source.name, key, source.category, refusal.reason, refusal.detail)
            upright, mirrored = perceptual_hashes(picture)
            return [
                Pose(
                    key=f"{key}-{index}" if index else key,
                    source=source.name,
                    frame=0,
                    category=source.category,
                    width=picture.shape[1],
                    height=picture.shape[0],
                    landmarks=person.landmarks,
                    world=person.world,
                    phash=upright,
                    phash_mirrored=mirrored,
                )
                for index, person in enumerate(persons)
            ]

        yield extract


def perceptual_hashes(picture: np.ndarray) -> tuple[int, int]:
    """The 64-bit perceptual hash (DCT) of an RGB picture, and that of its mirror image."""
    # 32 x 32 grey is the hash's own first step: reduced once here, it serves both.
    grey = Image.fromarray(picture).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    pair = grey, grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    upright, mirrored = (int(str(imagehash.phash(image)), 16) for image in pair)
    return upright, mirrored


def _summary(output: Path, folder: Path, looked_at: int, rejects: Counter[str]) -> dict[str, Any]:
    poses = read_poses(output)
    summary: dict[str, Any] = {
        "files": looked_at,
        "files_with_person": looked_at - sum(rejects.values()),
        "persons": len(poses),
        "rejects": dict(rejects),
    }
    errors = joint_error.measure(poses, folder)
    if errors is None:
        summary["joint_error_absent"] = f"no picture in which somebody was found has a {JOINTS_SUFFIX} file"
    else:
        summary["joint_error"] = errors
    return summary


def _spell(rejects: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(rejects.items(), key=lambda r: (-r[1], r[0])))
