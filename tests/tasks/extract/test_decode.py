"""Decoding: every file becomes the right picture or a refusal with the right reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.extract.decode import decode
from tasks.extract.findings import Reason
from tasks.extract.source_files import Refusal

ORIENTATION = 0x0112
# For each EXIF orientation, how a camera that was held that way lays an upright picture down in the file.
LAID_DOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.fixture(scope="module")
def colours() -> np.ndarray:
    """A smooth picture of 90 x 120 pixels that no rotation or reflection maps to itself."""
    y, x = np.mgrid[0:90, 0:120]
    return np.stack([x * 2, y * 2.5, 128 + 0.5 * x - y], axis=-1).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    stream.seek(0)
    return stream


def refusal(content: bytes, min_side: int = 16) -> Reason:
    with pytest.raises(Refusal) as caught:
        decode(io.BytesIO(content), min_side)
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize(
    ("kind", "options", "error"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 8),
        ("HEIF", {"quality": 95}, 8),
        ("HEIF", {"quality": -1, "chroma": 444}, 3),
        ("JPEG", {"quality": 95}, 4),
        ("JPEG", {"quality": 95, "progressive": True}, 4),
    ],
)
def test_each_format_gives_the_picture(colours: np.ndarray, kind: str, options: dict[str, Any], error: float) -> None:
    picture = decode(encoded(Image.fromarray(colours), kind, **options))
    assert picture.dtype == np.uint8 and picture.shape == colours.shape
    assert np.abs(picture.astype(int) - colours).max() <= error


@pytest.mark.parametrize("orientation", LAID_DOWN)
@pytest.mark.parametrize(("kind", "error"), [("PNG", 0), ("TIFF", 0), ("WEBP", 0), ("JPEG", 8)])
def test_exif_orientation_is_undone(colours: np.ndarray, kind: str, error: float, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(np.ascontiguousarray(LAID_DOWN[orientation](colours)))
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = decode(encoded(stored, kind, exif=exif, **options))
    assert picture.shape == colours.shape
    assert np.abs(picture.astype(int) - colours).max() <= error


def test_a_picture_with_broken_exif_is_decoded(colours: np.ndarray) -> None:
    assert decode(encoded(Image.fromarray(colours), "JPEG", exif=b"Exif\0\0MM\0\x2ajunk")).shape == colours.shape


def test_transparency_lies_over_white(colours: np.ndarray) -> None:
    alpha = np.zeros((90, 120, 1), np.uint8)
    alpha[:, 60:] = 255
    picture = decode(encoded(Image.fromarray(np.concatenate([colours, alpha], axis=-1)), "PNG"))
    assert (picture[:, :60] == 255).all() and np.array_equal(picture[:, 60:], colours[:, 60:])


def test_transparent_palette_entry_lies_over_white() -> None:
    image = Image.fromarray(np.repeat([[0, 1]], 20, axis=0).repeat(10, axis=1).astype(np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    picture = decode(encoded(image, "PNG", transparency=0))
    assert (picture[:, :10] == 255).all() and (picture[:, 10:] == [200, 100, 50]).all()


def test_sixteen_bits_become_eight() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    picture = decode(encoded(Image.fromarray(ramp), "PNG"))
    assert picture.shape == (64, 64, 3)
    assert np.array_equal(picture[..., 1], ramp >> 8)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_samples_without_a_nominal_range_span_black_to_white(dtype: type) -> None:
    ramp: np.ndarray = np.linspace(-5000, 90000, 64 * 64).reshape(64, 64).astype(dtype)
    picture = decode(encoded(Image.fromarray(ramp), "TIFF"))
    assert picture.min() == 0 and picture.max() == 255 and (np.diff(picture[:, 0, 0].astype(int)) >= 0).all()


def test_cmyk_keeps_its_colours(colours: np.ndarray) -> None:
    picture = decode(encoded(Image.fromarray(colours).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(picture.astype(int) - colours).mean() < 4


def test_grey_and_two_level_pictures_become_rgb(colours: np.ndarray) -> None:
    grey = Image.fromarray(colours).convert("L")
    for image in (grey, grey.convert("1")):
        picture = decode(encoded(image, "PNG"))
        assert np.array_equal(picture, np.asarray(image.convert("RGB")))


def test_a_gif_gives_its_first_frame() -> None:
    first, second = Image.new("RGB", (40, 40), (255, 0, 0)), Image.new("RGB", (40, 40), (0, 0, 255))
    picture = decode(encoded(first, "GIF", save_all=True, append_images=[second], duration=50))
    assert (picture == [255, 0, 0]).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "HEIF", "GIF", "BMP", "TIFF"])
def test_a_truncated_picture_is_damaged(colours: np.ndarray, kind: str) -> None:
    content = encoded(Image.fromarray(colours), kind).getvalue()
    assert refusal(content[: len(content) * 3 // 5]) == Reason.DAMAGED


def test_files_that_are_not_pictures_are_refused(tmp_path: Path) -> None:
    assert refusal(b"") == Reason.DAMAGED
    assert refusal(b"\0" * 1000) == Reason.NOT_A_PICTURE
    assert refusal(b"not a picture, whatever its name says") == Reason.NOT_A_PICTURE
    # PostScript is a language; Pillow would start Ghostscript for it.
    assert refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n") == Reason.NOT_A_PICTURE


def test_a_picture_is_too_small_by_its_shorter_side(colours: np.ndarray) -> None:
    content = encoded(Image.fromarray(colours), "PNG").getvalue()
    assert decode(io.BytesIO(content), 90).shape == colours.shape
    assert refusal(content, 91) == Reason.TOO_SMALL


def png(width: int, height: int, idat: bytes) -> bytes:
    """A grey PNG that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_500, 50_000])
def test_a_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    assert refusal(png(side, side, zlib.compress(bytes(10_000_000)))) == Reason.TOO_LARGE


def test_random_damage_gives_a_picture_or_a_refusal(colours: np.ndarray, capfd: pytest.CaptureFixture[str]) -> None:
    """5,000 mutants: whatever a decoder raises on them is turned into a refusal, and nothing is printed."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(colours)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    seeds = [encoded(image, kind, exif=exif).getvalue() for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
    seeds += [encoded(image.quantize(), kind).getvalue() for kind in ("GIF", "PNG", "BMP")]
    seeds += [encoded(image, "TIFF", compression=c).getvalue() for c in ("tiff_lzw", "tiff_deflate", "jpeg")]
    refused = kept = 0
    for i in range(5000):
        mutant = bytearray(seeds[i % len(seeds)])
        if rng.random() < 0.3:
            del mutant[rng.integers(len(mutant)) :]
        reach = min(len(mutant), int(rng.choice([64, 400, 10**6])))
        for place in rng.integers(0, reach, size=int(rng.choice([1, 5, 40])) if reach else 0):
            mutant[place] = rng.integers(256)
        try:
            picture = decode(io.BytesIO(bytes(mutant)), 16)
            assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
            kept += 1
        except Refusal:
            refused += 1
    assert refused > 1000 and kept > 100
    assert capfd.readouterr().err == ""
