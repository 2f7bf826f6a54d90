"""Small parts to extract, and the extract stage run on them."""

from __future__ import annotations

import json
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from tasks.config import params
from tasks.config.params import Params
from tasks.extract import pose_bundle
from tasks.extract import stage as extract
from tasks.synthetic import stage as mannequin
from tests.support.project import PROJECT

MODEL = PROJECT / pose_bundle.BUNDLE
CODECS = {
    "mp4": "h264", "mov": "h264", "avi": "mpeg4", "mkv": "h264", "webm": "libvpx", "3gp": "h264", "ts": "h264", "m2ts": "h264",
    "mts": "h264", "mpg": "mpeg2video", "vob": "mpeg2video", "wmv": "wmv2", "flv": "flv1", "ogv": "libvpx",
    "mxf": "mpeg2video",
}  # fmt: skip
FORMATS = {"m2ts": "mpegts", "mts": "mpegts"}  # where FFmpeg does not know the extension


def extraction_params(folder: Path, **extraction: Any) -> Params:
    """The project's parameters with the folder as the only part, named like it."""
    values = params.load(PROJECT / "params.yaml").model_dump()
    values["raw"] = {"folder": None, "parts": {folder.name: str(folder)}}
    values["extract"] |= {"model": str(MODEL), "workers": 1, **extraction}
    return Params.model_validate(values)


def run_extraction(folder: Path, root: Path, **extraction: Any) -> None:
    """Extract the folder as the only part of the workspace `root`."""
    extract.run(extraction_params(folder, **extraction), root, folder.name)


def outputs(root: Path, part: str = "heap") -> dict[str, bytes]:
    """The output files of the stage, by name."""
    return {path.name: path.read_bytes() for path in (root / "data/poses" / part).iterdir()}


def draw_figures(folder: Path, count: int) -> None:
    """Draw pictures of the mannequin into category folders, with their true joints."""
    for index in range(count):
        drawn = mannequin.picture(seed=0, index=index, size=192)
        path = folder / str(drawn.truth["category"]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.image).save(path)
        path.with_suffix(".joints.json").write_text(json.dumps(drawn.truth))


def png_bomb() -> bytes:
    """A PNG of a few hundred bytes that claims 50,000 x 50,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for chunk in (header, b"IDAT" + zlib.compress(bytes(100_000)), b"IEND"):
        content += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return content


def write_video(path: Path, pictures: list[np.ndarray], rate: int = 10, rotation: int = 0, aspect: int = 1) -> Path:
    """Write a video of the pictures, uint8 `[height, width, 3]`."""
    extension = path.suffix[1:].lower()
    options = {"mpegts_m2ts_mode": "1"} if extension in FORMATS else {}
    with av.open(str(path), "w", format=FORMATS.get(extension), options=options) as container:
        stream = container.add_stream(CODECS[extension], rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *pictures[0].shape[:2], "yuv420p", 4_000_000
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        if rotation:
            stream.set_display_rotation(rotation)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))))
        container.mux(stream.encode(None))
    return path
