"""What one file holds: a pure function of its bytes, the parameters and the model.

So a file is extracted once in its life: its findings are kept under the digest of its bytes (see `store`), and
neither its name, its category nor its neighbours play a part.
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

from tasks.common.pool import sign_of_life
from tasks.extract import bvh, mocap, video
from tasks.extract.content_keys import read_key
from tasks.extract.decode import MAX_PIXELS, Refusal, decode, open_regular
from tasks.extract.findings import Finding, Findings, Kind, Reason, Refused, Settings
from tasks.extract.landmarker import Landmarker, Person, kept_offline
from tasks.extract.people import scores
from tasks.extract.perceptual_hash import LENGTH, fingerprint, grey
from tasks.extract.tracks import Movement, Tracks

_SMALL = 2**20  # pixels: of larger pictures there is only one in memory at a time


@dataclass
class Subject:
    """A file on its way through the steps. After the last one `findings` are complete, unless it was `known` already."""

    file: BufferedReader | None = None  # open as long as there is something to read
    key: str | None = None
    stamp: str | None = None  # by which the key may be remembered (see `keys`)
    known: bool = False
    picture: np.ndarray | None = None
    luma: np.ndarray | None = None  # the picture in grey
    fingerprint: np.ndarray | None = None
    persons: list[Person] = field(default_factory=list)
    findings: Findings = field(default_factory=lambda: Findings(Kind.PICTURE))

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def refuse(self, refusal: Refusal) -> None:
        """A video that breaks off keeps what came before; its end is one refusal more."""
        there = self.findings
        seen = [f.frame for f in there.found] + [r.frame for r in there.refused if r.frame is not None]
        there.refused.append(Refused(max(seen) + 1 if seen else None, refusal.reason, refusal.detail))
        self.picture = self.luma = None
        self.close()


@contextmanager
def extractor(
    folder: Path, model: Path, settings: Settings, known: Callable[[str], bool]
) -> Iterator[tuple[Callable[[Any], Subject], ...]]:
    """The steps from a path below `folder` to its Subject; `known` says of which keys nobody needs to hear again.

    Steps, because after the network's six megabytes nothing else is left in the processor's caches, and a picture is decoded
    sooner after another picture (see `tasks.common.pool`). Videos, motion captures and large pictures go through all in `find`.
    """

    def opened(path: str) -> Subject:
        subject = Subject()
        try:
            subject.file = open_regular(folder / path)
            if hasattr(os, "posix_fadvise"):  # a slow disk is to bring several at once
                with suppress(OSError):  # not every file system takes advice
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
        head = file.read(16)
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
            subject.persons = landmarker.detect(picture)
            if not subject.persons:
                raise Refusal(Reason.NO_PERSON, _pixels(picture))
            if picture.shape[0] * picture.shape[1] > _SMALL:
                measure(subject)

    def measure(subject: Subject) -> None:
        if subject.luma is not None and subject.fingerprint is not None:
            persons = subject.persons
            _add(subject.findings, subject.luma, subject.fingerprint, 0, 0.0, persons, [-1] * len(persons))
            subject.picture = subject.luma = None

    with kept_offline(), Landmarker(model, settings.min_confidence, settings.max_people) as landmarker:
        yield opened, step(read), step(find), step(measure)


def _decode(subject: Subject, settings: Settings, most_pixels: int) -> None:
    assert subject.file is not None
    subject.picture = decode(subject.file, settings.min_side, most_pixels)
    subject.luma = grey(subject.picture)
    subject.fingerprint = fingerprint(subject.luma)
    subject.close()


def _pixels(picture: np.ndarray) -> str:
    return f"in {picture.shape[1]} x {picture.shape[0]} pixels"


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
                findings.refused.append(Refused(frame.number, Reason.NO_PERSON, _pixels(frame.picture)))
            elif not movement.shows({t: p.world for t, p in zip(who, persons, strict=True)}):
                findings.refused.append(_still(frame.number, settings))
            else:
                luma = grey(frame.picture)
                _add(findings, luma, fingerprint(luma), frame.number, frame.time, persons, who)


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
    luma: np.ndarray,
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
                width=luma.shape[1],
                height=luma.shape[0],
                landmarks=person.landmarks,
                world=person.world,
                **scores(luma, person.landmarks),
                fingerprint=hashed,
            )
        )
