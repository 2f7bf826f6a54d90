"""Reads videos as pictures with a time. The only module that runs FFmpeg (through PyAV).

The container format is recognised by the file's first bytes, and exactly that demuxer is requested by name. FFmpeg also knows
formats (playlists, concatenations) that open other files or the network; these never get to see a user's bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from math import floor

import av
import numpy as np

from tasks.extract.decode import DECODER_ERRORS, check_size
from tasks.extract.findings import Reason
from tasks.extract.source_files import Refusal

CONTAINERS = "MP4, MOV, 3GP, AVI, MKV, WebM, MPEG-TS (MTS, M2TS), MPEG-PS (MPG, VOB), WMV, FLV, OGV, MXF"
HEAD = 512  # bytes by which a container is recognised

_QUICKTIME = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})  # first atoms of mp4 and mov
# HEIF brands.
_PICTURES = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis"})

_MAGIC = {
    b"\x1a\x45\xdf\xa3": "matroska",  # mkv and webm
    b"\0\0\1\xba": "mpeg",  # program stream
    b"\0\0\1\xb3": "mpegvideo",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",  # wmv
    b"FLV\1": "flv",
    b"OggS": "ogg",
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01": "mxf",
}


_MAX_ATOMS = 10_000


@dataclass(frozen=True)
class Frame:
    """One frame of a video: its number in decoding order from 0, its time in seconds, its picture (RGB uint8 `[h, w, 3]`)."""

    number: int
    time: float
    picture: np.ndarray


def container(head: bytes) -> str | None:
    """The name of FFmpeg's demuxer for a file that starts with `head` (HEAD bytes); None if the file is not a video."""
    if head[4:8] in _QUICKTIME:
        return None if head[4:12] in {b"ftyp" + brand for brand in _PICTURES} else "mov"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    for first, packet in ((0, 188), (4, 192)):  # every packet of a transport stream starts with a sync byte
        if head[first::packet][:3] == b"GGG":
            return "mpegts"
    return next((demuxer for magic, demuxer in _MAGIC.items() if head.startswith(magic)), None)


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


def at(file: BufferedReader, times: Iterable[float]) -> Iterator[Frame]:
    """The first frame at or after each of these ascending times, in seconds. Raises Refusal if the video ends before."""
    wanted = iter(times)
    due = next(wanted, None)
    for number, time, render in _decoded(file, 1):
        frame = None
        while due is not None and time >= due - 1e-6:
            frame = frame or Frame(number, time, render())
            yield frame
            due = next(wanted, None)
        if due is None:
            return
    raise Refusal(Reason.DAMAGED, f"it has no frame at {due} seconds")


def _decoded(file: BufferedReader, min_side: int) -> Iterator[tuple[int, float, Callable[[], np.ndarray]]]:
    """Every frame's number, its time in seconds since the first frame, and a function that converts it to a picture."""
    file.seek(0)
    name = container(file.read(HEAD))
    if name is None:
        raise Refusal(Reason.NOT_A_PICTURE, f"no video in a known container ({CONTAINERS})")
    if name == "mov" and not _has_index(file):
        raise Refusal(
            Reason.DAMAGED, "its index (the moov atom) is missing: the recording or a copy of it was interrupted"
        )
    file.seek(0)
    with _refusing(), av.open(file, "r", format=name) as opened:
        if not opened.streams.video:
            raise Refusal(Reason.DAMAGED, "a video file without a video stream")
        stream = opened.streams.video[0]
        # One thread: every core already has its own worker process.
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        if stream.codec_context.width and stream.codec_context.height:  # else only the frames know
            check_size(stream.codec_context.width, stream.codec_context.height, min_side)
        clock, aspect = Clock(float(stream.average_rate or 25)), float(stream.sample_aspect_ratio or 1)
        for number, frame in enumerate(opened.decode(stream)):
            check_size(frame.width, frame.height, min_side)  # it may change within the stream
            yield number, clock.seconds(number, frame.time), partial(_rgb, frame, aspect)


class Clock:
    """The time of each frame since the first one, from time stamps that may be missing, negative or jump back.

    A frame without a time stamp follows the frame before it at the stream's frame rate. So does a frame whose time stamp lies
    before it, and the clock goes on from there; a step back of at most two frames counts as none.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._offset: float | None = None  # time stamp of second 0
        self._number, self._seconds = 0, 0.0  # of the last frame with a time stamp, or of the first frame
        self._last = 0.0

    def seconds(self, number: int, stamp: float | None) -> float:
        """The seconds of frame `number` with this time stamp; called for every frame in order."""
        expected = self._seconds + (number - self._number) / self._rate
        if stamp is None:
            self._last = max(expected, self._last)
            return self._last
        if self._offset is None or stamp - self._offset < self._last - 2 / self._rate:
            self._offset = stamp - expected
            seconds = expected
        else:
            seconds = stamp - self._offset
        self._number, self._seconds = number, max(seconds, self._last)
        self._last = self._seconds
        return self._last


def _has_index(file: BufferedReader) -> bool:
    """Whether a QuickTime or MP4 file has its index, by the atoms at its top level."""
    position, end = 0, os.fstat(file.fileno()).st_size
    for _ in range(_MAX_ATOMS):
        if position >= end:
            return False
        file.seek(position)
        head = file.read(16)
        if len(head) < 8:
            return False
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if kind == b"moov":
            return True
        if size == 1:  # the real size follows
            size = int.from_bytes(head[8:16], "big")
        if size < 8:  # 0: the last atom; others are damaged
            return False
        position += size
    return True  # FFmpeg may decide


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
    except av.FFmpegError as error:
        raise Refusal(Reason.DAMAGED, error.strerror or str(error)) from error
    except DECODER_ERRORS as error:
        raise Refusal(Reason.DAMAGED, f"{type(error).__name__}: {error}") from error
