"""Stage `clips`: cut motion into clips of one length and one frame rate, and write them as shards.

Three kinds of motion are read:

    animation   the built-in clips of the stage `animate`
    mocap       BVH files of the parts, read at their own frame rate
    video       people who were tracked through videos; MediaPipe's world landmarks have no path, so the hips stay in place

Poses of a person are interpolated in time. A gap longer than `motion.clips.max_gap` ends a run; clips are cut from runs, one
every `stride` frames, and all clips of a source are in the same split: the one that the dataset gave to the source, if it is
there. A person with a row that was opted out gives no clip.

Writes `data/clips/` in the format of the shards. A sample's JSON has `kind`, `source`, `group`, `category`, `split`, `start`
(seconds), `track`, `path` (whether the path of the hips is known), `torso` (metres) and `rows` (the keys of the persons in the
tables that it was made from).
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from tasks import paths
from tasks.common import files, motion
from tasks.common.errors import DataError
from tasks.config.motion import Clips
from tasks.config.params import Params
from tasks.dataset import dataset_table, shards
from tasks.dataset.dataset_table import SPLITS, Gate
from tasks.dataset.split_assignment import assign
from tasks.extract import bvh, mocap, parts
from tasks.extract.findings import Kind
from tasks.extract.poses_table import Poses
from tasks.extract.source_files import Refusal, open_regular

ANIMATION = "animation"


class Refused(StrEnum):
    """Why motion did not become a clip."""

    TOO_SHORT = "too_short"  # no run is as long as a clip
    LOW_VISIBILITY = "low_visibility"  # over the clip
    NO_TORSO = "no_torso"  # the torso has no length
    FORGOTTEN = "forgotten"  # the person opted out
    IN_ANOTHER_PART = "in_another_part"  # the same file is in an earlier part


@dataclass(frozen=True)
class Track:
    """One person over time: `poses` `[n, 33, 3]` in metres at `times` `[n]` in seconds, and how visible each pose is.

    `path`: whether the hips move as they did; otherwise they stay at 0. `rows`: the key of each pose, empty without a table;
    of a motion capture, which has more frames than rows, the keys of all its rows. `landmarks` `[n, 33, 2]`: where a person
    who was tracked through a video is in its pictures, pixels.
    """

    kind: str
    source: str
    category: str
    number: int
    times: np.ndarray
    poses: np.ndarray
    visibility: np.ndarray
    path: bool
    rows: tuple[str, ...] = ()
    landmarks: np.ndarray | None = None


@dataclass(frozen=True)
class Clip:
    """`poses` float32 `[frames, 33, 3]` in the form of `tasks.common.motion`, `start` in seconds, `torso` in metres."""

    track: Track
    start: float
    poses: np.ndarray
    torso: float
    rows: tuple[str, ...]

    @property
    def key(self) -> str:
        """A name that is unique among all clips."""
        return f"{_plain(self.track.source)}-t{max(self.track.number, 0)}-s{round(1000 * self.start):08d}"


def run(params: Params, root: Path) -> None:
    """Write `data/clips/`. Raises DataError if there is no clip, or a motion capture was changed after extraction."""
    settings = params.motion.clips
    refused: Counter[str] = Counter()
    clips = [clip for track in tracks(params, root, refused) for clip in cut(track, settings, refused)]
    if not clips:
        raise DataError(
            "There is no motion to learn from: no animation, and no video or motion capture with a person for "
            f"{settings.frames / settings.rate:.1f} seconds ({', '.join(f'{k}: {n}' for k, n in refused.items()) or 'none'})."
        )
    write(params, root, paths.CLIPS, clips, settings, refused)


# A clip's further members, and further entries of its JSON.
Extra = tuple[dict[str, bytes], dict[str, Any]]


def write(
    params: Params,
    root: Path,
    folder: Path,
    clips: list[Clip],
    settings: Clips,
    refused: Counter[str],
    about: Mapping[str, Any] | None = None,
    extra: Callable[[list[Clip]], Iterable[Extra]] | None = None,
) -> None:
    """Write clips as shards into a folder of the workspace, split by source.

    `about`: further entries of the index. `extra` gives, for clips of one split, what is stored of each beside its poses.
    """
    placed = _groups(params, root, clips)
    described = {
        "frames": settings.frames,
        "rate": settings.rate,
        "categories": sorted({clip.track.category for clip in clips}),
        "parts": sorted(params.raw.parts),
        "margin": 0.0,
        "refused": dict(sorted(refused.items())),
        "sources": summary(clips, settings),
    }
    shards.write(
        root / folder,
        {split: _samples(clips, placed, split, extra) for split in SPLITS},
        params.shard.samples_per_shard,
        described | dict(about or {}),
    )


def tracks(params: Params, root: Path, refused: Counter[str]) -> Iterator[Track]:
    """All motion of a workspace."""
    yield from _animated(root)
    yield from extracted(params, root, refused, (Kind.VIDEO, Kind.MOCAP))


def extracted(params: Params, root: Path, refused: Counter[str], kinds: Sequence[Kind]) -> Iterator[Track]:
    """The motion that was found in files of these kinds."""
    table = parts.read_poses(root, params.raw)
    pixels = table.pixels.astype(np.float64)
    gated = dataset_table.read_gated(root / paths.DATASET)
    forgotten = {(row.source, row.key) for row in gated if row.reason is Gate.FORGOTTEN}
    repeated = {row.source for row in gated if row.reason is Gate.IN_ANOTHER_PART}
    by_person: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, kind in enumerate(table.source_kind):
        if kind in kinds:
            by_person[table.source[i], int(table.track[i])].append(i)
    place = parts.SourcePaths(root, params.raw)
    for (source, number), rows in by_person.items():
        if any((source, table.key[i]) in forgotten for i in rows):
            refused[Refused.FORGOTTEN] += 1
        elif source in repeated:
            refused[Refused.IN_ANOTHER_PART] += 1
        elif table.source_kind[rows[0]] == Kind.MOCAP:
            yield _captured(table, rows, place(source))
        else:
            yield Track(
                kind=str(Kind.VIDEO),
                source=source,
                category=table.category[rows[0]],
                number=number,
                times=table.timestamp_s[rows],
                poses=table.world[rows].astype(np.float64),
                visibility=table.limb_visibility[rows],
                path=False,
                rows=tuple(table.key[i] for i in rows),
                landmarks=pixels[rows],
            )


def _animated(root: Path) -> Iterator[Track]:
    folder = root / paths.ANIMATION
    with files.reading(folder / "joints.npy"):
        joints = np.load(folder / "joints.npy", mmap_mode="r")
    about = files.read_json(folder / "clips.json")
    for i, clip in enumerate(about["clips"]):
        times = np.arange(joints.shape[1]) / about["rate"]
        poses = np.asarray(joints[i], np.float64)
        yield Track(ANIMATION, f"{ANIMATION}-{i:05d}", clip["category"], 0, times, poses, np.ones(len(times)), True)


def _captured(table: Poses, rows: list[int], path: Path) -> Track:
    """A motion capture, read again at its own frame rate: the table has few frames of it."""
    try:
        with open_regular(path) as file:
            recorded = bvh.read(file)
        poses, _ = mocap.trajectory(recorded, np.arange(len(recorded.values)))
    except Refusal as refusal:
        raise DataError(f"{path} can no longer be read ({refusal.reason}); run the extract stage.") from refusal
    times = np.arange(len(poses)) * recorded.frame_time
    first = rows[0]
    return Track(
        str(Kind.MOCAP), table.source[first], table.category[first], 0, times, poses, np.ones(len(times)), True,
        tuple(table.key[i] for i in rows),
    )  # fmt: skip


def cut(track: Track, settings: Clips, refused: Counter[str], forward: bool = True) -> Iterator[Clip]:
    """The clips of one person; what is refused is counted.

    `forward`: turned so that the person faces forward in the first frame; otherwise the axes are those of the track.
    """
    length = (settings.frames - 1) / settings.rate
    found = False
    for run in motion.runs(track.times, settings.max_gap):
        times, poses, visibility = track.times[run], track.poses[run], track.visibility[run]
        # Half a frame of tolerance would extrapolate; a millionth of a second is rounding.
        for start in np.arange(times[0], times[-1] - length + 1e-6, settings.stride / settings.rate):
            at = np.minimum(start + np.arange(settings.frames) / settings.rate, times[-1])
            found = True
            if motion.resampled(visibility, times, at).mean() < settings.min_visibility:
                refused[Refused.LOW_VISIBILITY] += 1
                continue
            clip = motion.resampled(poses, times, at)
            torso = motion.scale(clip)
            if torso < 1e-6:
                refused[Refused.NO_TORSO] += 1
                continue
            rows = track.rows
            if rows and track.kind == Kind.VIDEO:
                inside = (times >= start - settings.max_gap) & (times <= at[-1] + settings.max_gap)
                rows = tuple(track.rows[i] for i, used in zip(run, inside, strict=True) if used)
            scaled = clip / torso
            normal = motion.canonical(scaled[None])[0] if forward else scaled - motion.middle_of_hips(scaled[0])
            yield Clip(track, round(float(start), 6), normal.astype(np.float32), torso, rows)
    if not found:
        refused[Refused.TOO_SHORT] += 1


def _groups(params: Params, root: Path, clips: list[Clip]) -> dict[str, tuple[str, str]]:
    """Source -> (group, split). A source that is in the dataset keeps its group and its split there."""
    persons = dataset_table.read(root / paths.DATASET)
    known = {
        source: (group, split)
        for source, group, split in zip(persons.source, persons.group, persons.split, strict=True)
    }
    sources = [clip.track.source for clip in clips]
    curate = params.curate
    new = [source for source in sources if source not in known]
    splits = assign(new, curate.seed, curate.val, curate.test)[0] if new else {}
    return {source: known[source] if source in known else (source, splits[source]) for source in sources}


def _samples(
    clips: Iterable[Clip],
    placed: dict[str, tuple[str, str]],
    wanted: str,
    extra: Callable[[list[Clip]], Iterable[Extra]] | None,
) -> Iterator[tuple[str, dict[str, bytes]]]:
    own = [clip for clip in clips if placed[clip.track.source][1] == wanted]
    further: Iterable[Extra] = repeat(({}, {}), len(own)) if extra is None else extra(own)
    for clip, (members, entries) in zip(own, further, strict=True):
        about = {
            "kind": clip.track.kind,
            "source": clip.track.source,
            "group": placed[clip.track.source][0],
            "category": clip.track.category,
            "split": wanted,
            "start": clip.start,
            "track": clip.track.number,
            "path": clip.track.path,
            "torso": round(clip.torso, 6),
            "rows": sorted(clip.rows),
            **entries,
        }
        yield clip.key, {**members, "clip.npy": shards.encode_pose(clip.poses), "json": shards.encode_json(about)}


def summary(clips: Iterable[Clip], settings: Clips) -> list[dict[str, Any]]:
    """For each kind and category: clips, sources, and seconds that at least one clip covers."""
    rows: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    for clip in clips:
        rows[clip.track.kind, clip.track.category].append(clip)
    table = []
    for (kind, category), own in sorted(rows.items()):
        persons: dict[tuple[str, int], set[int]] = defaultdict(set)
        for clip in own:
            first = round(clip.start * settings.rate)
            persons[clip.track.source, clip.track.number].update(range(first, first + settings.frames))
        seconds = sum(map(len, persons.values())) / settings.rate
        sources = len({clip.track.source for clip in own})
        table.append({"kind": kind, "category": category, "clips": len(own), "sources": sources, "seconds": seconds})
    return table


def _plain(source: str) -> str:
    """A source as a part of a key: a key has no dot, slash or space, and two sources never share it."""
    if source.startswith(f"{ANIMATION}-"):
        return source

    return hashlib.sha256(source.encode()).hexdigest()[:16]
