"""Reads videos as pictures with a time. The only module that runs FFmpeg (through PyAV).

The container format is recognised by the file's first bytes, and exactly that demuxer is requested by name. FFmpeg also knows
formats (playlists, concatenations) that open other files or the network; these never get to see a user's bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from math import floor

import av
import numpy as np

from tasks.extract.decode import DECODER_ERRORS, Refusal, check_size
from tasks.extract.findings import Reason

_QUICKTIME = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})  # first atoms of mp4 and mov
_PICTURES = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis"}
)  # HEIF brands


@dataclass(frozen=True)
class Frame:
    """One frame of a video: its number in decoding order from 0, its time in seconds, its picture (RGB uint8 `[h, w, 3]`)."""

    number: int
    time: float
    picture: np.ndarray


def container(head: bytes) -> str | None:
    """The name of FFmpeg's demuxer for a file that starts with `head` (16 bytes); None if the file is not a video."""
    if head[4:8] in _QUICKTIME:
        return None if head[4:12] in {b"ftyp" + brand for brand in _PICTURES} else "mov"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    return "matroska" if head[:4] == b"\x1a\x45\xdf\xa3" else None  # mkv and webm


def sampled(file: BufferedReader, rate: float, min_side: int) -> Iterator[Frame]:
    """The first frame at or after each multiple of 1 / `rate` seconds, upright and with square pixels.

    Raises Refusal where the video cannot be read any further; the frames yielded before are valid.
    """
    due = 0.0
    for number, time, render in _decoded(file, min_side):
        if time >= due - 1e-6:
            due = (floor(time * rate + 1e-6) + 1) / rate
            yield Frame(number, time, render())


def numbered(file: BufferedReader, numbers: Iterable[int]) -> Iterator[Frame]:
    """The frames with these ascending numbers. Raises Refusal if the video ends before the last of them."""
    wanted = iter(numbers)
    number = next(wanted, None)
    for at, time, render in _decoded(file, 1):
        if at == number:
            yield Frame(at, time, render())
            number = next(wanted, None)
        if number is None:
            return
    raise Refusal(Reason.DAMAGED, f"it has no frame {number}")


def _decoded(file: BufferedReader, min_side: int) -> Iterator[tuple[int, float, Callable[[], np.ndarray]]]:
    """Every frame's number, its time in seconds since the first frame, and a function that converts it to a picture."""
    file.seek(0)
    name = container(file.read(16))
    file.seek(0)
    with _refusing(), av.open(file, "r", format=name) as opened:
        if not opened.streams.video:
            raise Refusal(Reason.DAMAGED, "a video file without a video stream")
        stream = opened.streams.video[0]
        # One thread: every core already has its own worker process.
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        check_size(stream.codec_context.width, stream.codec_context.height, min_side)
        rate, aspect = float(stream.average_rate or 25), float(stream.sample_aspect_ratio or 1)
        first = None
        for number, frame in enumerate(opened.decode(stream)):
            check_size(frame.width, frame.height, min_side)  # it may change within the stream
            seconds = number / rate if frame.time is None else frame.time
            first = seconds if first is None else first
            yield number, seconds - first, partial(_rgb, frame, aspect)


def _rgb(frame: av.VideoFrame, aspect: float) -> np.ndarray:
    """The frame as a picture, upright and with square pixels; `aspect` is the width of a pixel divided by its height."""
    width = max(1, round(frame.width * aspect)) if 0.25 < aspect < 4 else frame.width
    with _refusing():
        picture = frame.reformat(width=width, format="rgb24").to_ndarray()
    return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what FFmpeg raises on damaged files into a Refusal."""
    try:
        yield
    except (av.FFmpegError, *DECODER_ERRORS) as error:
        raise Refusal(Reason.DAMAGED, f"{type(error).__name__}: {error}") from error
