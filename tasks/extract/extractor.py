"""The findings of one file: a pure function of its bytes, the parameters and the model.

They do not depend on the file's name, category or neighbours, so each file is extracted only once: its findings are cached
under the digest of its bytes (see `cache`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tasks.common.pool import heartbeat
from tasks.common.thumbnail import SIDE, thumbnail
from tasks.extract import bvh, mocap, video
from tasks.extract.content_keys import read_key
from tasks.extract.decode import MAX_PIXELS, decode
from tasks.extract.finder import finder
from tasks.extract.findings import Finding, Findings, Kind, Reason, Refused, Settings
from tasks.extract.landmarker import Landmarker, Person, kept_offline
from tasks.extract.people import scores
from tasks.extract.perceptual_hash import LENGTH, fingerprint, grey
from tasks.extract.source_files import Refusal, behind_dvc_link, open_regular
from tasks.extract.tracks import Movement, Tracks

_SMALL = 2**20  # pixels: only one larger picture is in memory at a time


@dataclass
class Subject:
    """A file on its way through the steps. After the last step `findings` are complete, unless the file is `known`."""

    file: BufferedReader | None = None  # open while there is something left to read
    key: str | None = None
    stamp: str | None = None  # for remembering the key (see `content_keys`)
    known: bool = False  # the cache has its findings
    picture: np.ndarray | None = None
    luma: np.ndarray | None = None  # the picture in grey
    persons: list[Person] = field(default_factory=list)
    findings: Findings = field(default_factory=lambda: Findings(Kind.PICTURE))

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def refuse(self, refusal: Refusal) -> None:
        """End the file with a refusal. A video that breaks off keeps the frames before that point."""
        findings = self.findings
        frames = [f.frame for f in findings.persons] + [r.frame for r in findings.refused if r.frame is not None]
        findings.refused.append(Refused(max(frames) + 1 if frames else None, refusal.reason, refusal.detail))
        self.picture = self.luma = None
        self.close()


@contextmanager
def extractor(
    folder: Path, model: Path, settings: Settings, known: Callable[[str], bool], cache: Path | None = None
) -> Iterator[tuple[Callable[[Any], Subject], ...]]:
    """The steps from a path below `folder` to its Subject; `known(key)` is whether the findings of a key are cached.
    `cache`: links into this folder are followed (see `source_files.dvc_cache`).

    The work is split into steps because the network's six megabytes fill the processor's caches: decoding several pictures in
    a row is faster than alternating decoding and detection (see `tasks.common.pool`). Videos, motion captures and large
    pictures are processed completely in `find`.
    """

    def opened(path: str) -> Subject:
        subject = Subject()
        try:
            subject.file = open_regular(behind_dvc_link(folder / path, cache))
            if hasattr(os, "posix_fadvise"):  # let a slow disk read several files at once
                with suppress(OSError):  # not every file system supports it
                    os.posix_fadvise(subject.file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        except Refusal as refusal:
            subject.refuse(refusal)
        return subject

    def step(work: Callable[[Subject], None]) -> Callable[[Subject], Subject]:
        def done(subject: Subject) -> Subject:
            try:
                work(subject)
            except Refusal as refusal:
                subject.refuse(refusal)
            return subject

        return done

    def read(subject: Subject) -> None:
        if (file := subject.file) is None:
            return
        subject.key, subject.stamp = read_key(file)
        subject.known = known(subject.key)
        head = file.read(video.HEAD)
        file.seek(0)
        if subject.known:
            subject.close()
        elif head.startswith(bvh.MAGIC):
            subject.findings.kind = Kind.MOCAP
        elif video.container(head) is not None:
            subject.findings.kind = Kind.VIDEO
        else:
            try:
                _decode(subject, settings, _SMALL)
            except Refusal as refusal:
                if refusal.reason is Reason.NOT_A_PICTURE:
                    detail = f"{refusal.detail}; no video in a known container ({video.CONTAINERS}); no BVH"
                    raise Refusal(refusal.reason, detail) from refusal
                if refusal.reason is not Reason.TOO_LARGE:
                    raise

    def find(subject: Subject) -> None:
        if subject.file is not None:
            match subject.findings.kind:
                case Kind.MOCAP:
                    _from_mocap(subject.file, settings, subject.findings)
                case Kind.VIDEO:
                    _from_video(subject.file, model, settings, subject.findings)
                case Kind.PICTURE:
                    _decode(subject, settings, MAX_PIXELS)
            subject.close()
        if (picture := subject.picture) is not None:
            subject.persons = find_persons(picture)
            if not subject.persons:
                raise Refusal(Reason.NO_PERSON, _pixels(picture))
            if picture.shape[0] * picture.shape[1] > _SMALL:
                measure(subject)

    def measure(subject: Subject) -> None:
        if subject.luma is not None:
            persons = subject.persons
            _add(subject.findings, subject.luma, 0, 0.0, persons, [-1] * len(persons))
            subject.picture = subject.luma = None

    with kept_offline(), finder(model, settings) as find_persons:
        yield opened, step(read), step(find), step(measure)


def _decode(subject: Subject, settings: Settings, most_pixels: int) -> None:
    assert subject.file is not None
    subject.picture = decode(subject.file, settings.min_side, most_pixels)
    subject.luma = grey(subject.picture)
    subject.close()


def _pixels(picture: np.ndarray) -> str:
    return f"in {picture.shape[1]} x {picture.shape[0]} pixels"


def _from_video(file: BufferedReader, model: Path, settings: Settings, findings: Findings) -> None:
    frames = video.sampled(file, settings.video_rate, settings.min_side)
    if (first := next(frames, None)) is None:
        raise Refusal(Reason.DAMAGED, "a video without a frame")
    tracks, movement = Tracks(), Movement(settings.pose_change)
    last = -1  # milliseconds
    # A landmarker in VIDEO mode keeps state, so each video needs its own.
    with Landmarker(model, settings.min_confidence, settings.max_people, video=True) as landmarker:
        for frame in chain([first], frames):
            heartbeat()
            last = max(last + 1, round(frame.time * 1000))
            persons = landmarker.detect(frame.picture, last)
            height, width = frame.picture.shape[:2]
            person_tracks = tracks.follow(frame.time, persons, width, height)
            if not persons:
                findings.refused.append(Refused(frame.number, Reason.NO_PERSON, _pixels(frame.picture)))
            elif not movement.shows({t: p.world for t, p in zip(person_tracks, persons, strict=True)}):
                findings.refused.append(_still(frame.number, settings))
            else:
                luma = grey(frame.picture)
                _add(findings, luma, frame.number, frame.time, persons, person_tracks)


def _from_mocap(file: BufferedReader, settings: Settings, findings: Findings) -> None:
    motion = bvh.read(file)
    step = max(1, round(1 / (settings.video_rate * motion.frame_time)))
    frames = np.arange(0, len(motion.values), step)
    poses, known = mocap.landmarks(motion, frames)
    landmarks = np.zeros((33, 5), np.float32)
    landmarks[known, 3:] = 1
    movement = Movement(settings.pose_change)
    for number, world in zip(frames.tolist(), poses, strict=True):
        if not movement.shows({0: world}):
            findings.refused.append(_still(number, settings))
            continue
        findings.persons.append(
            Finding(
                frame=number,
                timestamp_s=number * motion.frame_time,
                person=0,
                track=0,
                width=0,
                height=0,
                landmarks=landmarks,
                world=world,
                sharpness=float("nan"),
                exposure=float("nan"),
                fingerprint=np.zeros(LENGTH, np.int8),
                thumbnail=np.zeros((SIDE, SIDE), np.uint8),
            )
        )


def _still(number: int, settings: Settings) -> Refused:
    return Refused(number, Reason.SAME_POSE, f"nobody moved by {settings.pose_change} torso lengths")


def _add(
    findings: Findings,
    luma: np.ndarray,
    number: int,
    seconds: float,
    persons: list[Person],
    tracks: list[int],
) -> None:
    hashed, small = fingerprint(luma), thumbnail(luma)
    for index, (person, track) in enumerate(zip(persons, tracks, strict=True)):
        findings.persons.append(
            Finding(
                frame=number,
                timestamp_s=seconds,
                person=index,
                track=track,
                width=luma.shape[1],
                height=luma.shape[0],
                landmarks=person.landmarks,
                world=person.world,
                **scores(luma, person.landmarks),
                fingerprint=hashed,
                thumbnail=small,
            )
        )
