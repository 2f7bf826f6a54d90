"""Stage `video_clips`: clips of pictures with the poses in them, as shards in `data/video/`.

The clips are cut as those of motion (`tasks.dataset.clips`), from the built-in film and from people tracked through videos;
motion captures have no pictures. A sample has

    frames.npy   uint8 [frames, size, size, 3]; the square follows the hips and holds the person in every frame
    clip.npy     float32 [frames, 33, 3] in torso lengths, with the camera's axes; the hips are at 0 in the first frame
    json         as of motion, and `real`: for each frame which part of the square its picture covers, null if all of it;
                 absent if that is so for all frames

The pose maps of a clip follow from `clip.npy` (`tasks.dataset.pose_map`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from tasks import paths
from tasks.common import files, motion
from tasks.common.errors import DataError
from tasks.config.params import Params
from tasks.config.video import PictureClips
from tasks.dataset import clips
from tasks.dataset.clips import ANIMATION, Clip, Extra, Track
from tasks.dataset.crop import crop, real_part, square
from tasks.dataset.frames import FRAMES, encode
from tasks.dataset.padding import REAL
from tasks.extract import parts, video
from tasks.extract.findings import Kind
from tasks.extract.source_files import Refusal, open_regular

_FILM = f"{ANIMATION}-film-"


def run(params: Params, root: Path) -> None:
    """Write `data/video/`. Raises DataError if there is no clip, or a video was changed after extraction."""
    settings = params.video.clips
    refused: Counter[str] = Counter()
    found = [
        clip
        for track in [*_filmed(root), *clips.extracted(params, root, refused, (Kind.VIDEO,))]
        for clip in clips.cut(track, settings, refused, forward=False)
    ]
    if not found:
        raise DataError(
            "There are no moving pictures to learn from: no film, and no video with a person for "
            f"{settings.frames / settings.rate:.1f} seconds."
        )
    about = {"size": settings.size, "margin": params.curate.margin}
    pictures = partial(_pictures, root, parts.SourcePaths(root, params.raw), settings, params.curate.margin)
    clips.write(params, root, paths.VIDEO_CLIPS, found, settings, refused, about, pictures)


def _filmed(root: Path) -> Iterator[Track]:
    about = files.read_json(root / paths.FILM / "clips.json")
    joints = _array(root, "joints.npy")
    times = np.arange(joints.shape[1]) / about["rate"]
    for i, clip in enumerate(about["clips"]):
        poses = np.asarray(joints[i], np.float64)
        yield Track(ANIMATION, f"{_FILM}{i:05d}", clip["category"], 0, times, poses, np.ones(len(times)), True)


def _array(root: Path, name: str) -> np.ndarray:
    path = root / paths.FILM / name
    with files.reading(path):
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _pictures(
    root: Path, place: Callable[[str], Path], settings: PictureClips, margin: float, own: list[Clip]
) -> Iterator[Extra]:
    """The frames of each clip. A video is opened once for consecutive clips of it."""
    film = _array(root, FRAMES)
    for source, same in groupby(own, key=lambda clip: clip.track.source):
        if source.startswith(_FILM):
            for _ in same:
                yield {FRAMES: encode(film[int(source.removeprefix(_FILM))])}, {}
        else:
            yield from _from_video(place(source), list(same), settings, margin)


def _from_video(path: Path, own: list[Clip], settings: PictureClips, margin: float) -> list[Extra]:
    """The frames of clips of one video."""
    wanted: list[tuple[float, int, int]] = []  # time, clip, frame
    places = []
    for number, clip in enumerate(own):
        track = clip.track
        assert track.landmarks is not None
        times = np.minimum(clip.start + np.arange(settings.frames) / settings.rate, track.times.max())
        ascending, first = np.unique(track.times, return_index=True)
        pixels = motion.resampled(track.landmarks[first], ascending, times)
        hips = motion.middle_of_hips(pixels)
        x0, y0, side = square(pixels - hips[:, None], margin)
        places.append(
            np.column_stack([np.round(hips + np.array([x0, y0])), np.full(len(hips), side)]).astype(int).tolist()
        )
        wanted += [(float(time), number, frame) for frame, time in enumerate(times)]
    wanted.sort()
    frames = np.zeros((len(own), settings.frames, settings.size, settings.size, 3), np.uint8)
    real: list[list[Any]] = [[None] * settings.frames for _ in own]
    try:
        with open_regular(path) as file:
            decoded = video.at(file, [time for time, _, _ in wanted])
            for (_, number, frame), shown in zip(wanted, decoded, strict=True):
                x, y, side = places[number][frame]
                frames[number, frame] = crop(shown.picture, x, y, side, settings.size)
                height, width = shown.picture.shape[:2]
                real[number][frame] = real_part(height, width, x, y, side)
    except Refusal as refusal:
        raise DataError(
            f"{path} can no longer be read ({refusal.reason}: {refusal.detail}); run the extract stage."
        ) from refusal
    return [
        ({FRAMES: encode(one)}, {REAL: parts_of} if any(part is not None for part in parts_of) else {})
        for one, parts_of in zip(frames, real, strict=True)
    ]
