"""What one file holds: a pure function of its bytes, the parameters and the model.

So a file is extracted once in its life: its findings are kept under the digest of its bytes (see `findings`), and
neither its name, its category nor its neighbours play a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from itertools import chain
from pathlib import Path

import numpy as np

from tasks.extraction import bvh, mocap, video
from tasks.extraction.findings import Finding, Findings, Kind, Reason, Refused, Settings
from tasks.extraction.fingerprint import LENGTH, fingerprint
from tasks.extraction.ingest import Refusal, content_key, decode, open_regular
from tasks.extraction.landmarker import Landmarker, Person, keep_offline
from tasks.extraction.people import scores
from tasks.extraction.tracks import Movement, Tracks
from tasks.pool import sign_of_life


@contextmanager
def extractor(folder: Path, model: Path, settings: Settings) -> Iterator[Callable[[tuple[str, str]], Findings]]:
    """The function from (path below `folder`, key of its content) to its findings, with the landmarker that it needs."""
    keep_offline()
    with Landmarker(model, settings.min_confidence, settings.max_people) as landmarker:

        def extract(item: tuple[str, str]) -> Findings:
            path, key = item
            findings = Findings(Kind.PICTURE)
            try:
                with open_regular(folder / path) as file:
                    if content_key(file) != key:
                        raise Refusal(Reason.UNREADABLE, "it changed while it was read")
                    head = file.read(16)
                    file.seek(0)
                    if head.startswith(bvh.MAGIC):
                        findings.kind = Kind.MOCAP
                        _from_mocap(file, settings, findings)
                    elif video.container(head) is not None:
                        findings.kind = Kind.VIDEO
                        _from_video(file, model, settings, findings)
                    else:
                        _from_picture(decode(file, settings.min_side), landmarker, findings)
            except Refusal as refusal:
                # A video that breaks off keeps what came before; its end is one refusal more.
                seen = [f.frame for f in findings.found] + [r.frame for r in findings.refused if r.frame is not None]
                after = max(seen) + 1 if seen else None
                findings.refused.append(Refused(after, refusal.reason, refusal.detail))
            return findings

        yield extract


def _from_picture(picture: np.ndarray, landmarker: Landmarker, findings: Findings) -> None:
    hashed = fingerprint(picture)  # before the landmarker has filled the processor's cache with its network
    persons = landmarker.detect(picture)
    if not persons:
        raise Refusal(Reason.NO_PERSON, f"in {picture.shape[1]} x {picture.shape[0]} pixels")
    _add(findings, picture, hashed, 0, 0.0, persons, [-1] * len(persons))


def _from_video(file: BufferedReader, model: Path, settings: Settings, findings: Findings) -> None:
    frames = video.sampled(file, settings.video_rate, settings.min_side)
    if (first := next(frames, None)) is None:
        raise Refusal(Reason.DAMAGED, "a video without a frame")
    tracks, movement = Tracks(), Movement(settings.pose_change)
    last = -1  # milliseconds
    # One for each video, since it remembers what it saw.
    with Landmarker(model, settings.min_confidence, settings.max_people, video=True) as landmarker:
        for frame in chain([first], frames):
            sign_of_life()
            last = max(last + 1, round(frame.time * 1000))
            persons = landmarker.detect(frame.picture, last)
            height, width = frame.picture.shape[:2]
            who = tracks.follow(frame.time, persons, width, height)
            if not persons:
                detail = f"in {width} x {height} pixels"
                findings.refused.append(Refused(frame.number, Reason.NO_PERSON, detail))
            elif not movement.shows({t: p.world for t, p in zip(who, persons, strict=True)}):
                findings.refused.append(_still(frame.number, settings))
            else:
                _add(findings, frame.picture, fingerprint(frame.picture), frame.number, frame.time, persons, who)


def _from_mocap(file: BufferedReader, settings: Settings, findings: Findings) -> None:
    motion = bvh.read(file)
    step = max(1, round(1 / (settings.video_rate * motion.frame_time)))
    frames = np.arange(0, len(motion.values), step)
    poses, known = mocap.landmarks(motion, frames)
    seen = np.zeros((33, 5), np.float32)
    seen[known, 3:] = 1
    movement = Movement(settings.pose_change)
    for number, world in zip(frames.tolist(), poses, strict=True):
        if not movement.shows({0: world}):
            findings.refused.append(_still(number, settings))
            continue
        findings.found.append(
            Finding(
                frame=number,
                timestamp_s=number * motion.frame_time,
                person=0,
                track=0,
                width=0,
                height=0,
                landmarks=seen,
                world=world,
                sharpness=float("nan"),
                exposure=float("nan"),
                fingerprint=np.zeros(LENGTH, np.int8),
            )
        )


def _still(number: int, settings: Settings) -> Refused:
    return Refused(number, Reason.SAME_POSE, f"nobody moved by {settings.pose_change} torso lengths")


def _add(
    findings: Findings,
    picture: np.ndarray,
    hashed: np.ndarray,
    number: int,
    seconds: float,
    persons: list[Person],
    tracks: list[int],
) -> None:
    for index, (person, track) in enumerate(zip(persons, tracks, strict=True)):
        findings.found.append(
            Finding(
                frame=number,
                timestamp_s=seconds,
                person=index,
                track=track,
                width=picture.shape[1],
                height=picture.shape[0],
                landmarks=person.landmarks,
                world=person.world,
                **scores(picture, person.landmarks),
                fingerprint=hashed,
            )
        )
