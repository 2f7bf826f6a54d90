"""Decodes picture files: a file becomes an RGB picture or a refusal.

No input is trusted: a picture that claims an absurd size is refused before it is decoded, and each refusal has one `Reason`.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import pillow_heif
from PIL import Image, UnidentifiedImageError

from tasks.extract.findings import Reason
from tasks.extract.native_log import native_log_set_aside
from tasks.extract.source_files import Refusal, open_regular

# The only decoders that get to see a user's bytes. Pillow has many more, and some of them start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "GIF", "BMP", "TIFF")

MAX_PIXELS = 2**30 // 4 // 3  # Pillow's own limit: 89 million pixels, a quarter of a gigabyte of RGB

# What decoders raise on damaged files.
DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError,
    RuntimeError, AssertionError, ZeroDivisionError, struct.error, zlib.error,
)  # fmt: skip

pillow_heif.register_heif_opener(thumbnails=False)

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # the transposition that undoes each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(path: Path, min_side: int = 1) -> np.ndarray:
    """The picture in the file, upright, RGB uint8 `[height, width, 3]`; its first frame if it has several.

    Raises Refusal like `decode` and `open_regular`.
    """
    with open_regular(path) as file:
        return decode(file, min_side)


def decode(file: IO[bytes], min_side: int = 1, most_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The picture in an open file, upright, RGB uint8 `[height, width, 3]`.

    EXIF orientation is applied, transparency is laid over white, deeper samples are reduced to 8 bits. Raises Refusal if the
    file is not a picture or is damaged, if its shorter side is below `min_side`, or if it claims more than `most_pixels`
    (at most MAX_PIXELS).
    """
    file.seek(0)
    with warnings.catch_warnings(), native_log_set_aside():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=FORMATS) as image:
                check_size(*image.size, min_side, most_pixels)
                image.load()
                upright = _UPRIGHT.get(_orientation(image))
                rgb = _to_rgb(image)
                return np.asarray(rgb.transpose(upright) if upright is not None else rgb)
        except UnidentifiedImageError as error:
            file.seek(0)
            if not file.read(1):
                raise Refusal(Reason.DAMAGED, "the file is empty") from error
            raise Refusal(Reason.NOT_A_PICTURE, f"none of {', '.join(FORMATS)}") from error
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise _too_large(MAX_PIXELS) from error
        except DECODER_ERRORS as error:
            raise Refusal(Reason.DAMAGED, f"{type(error).__name__}: {error}") from error


def check_size(width: int, height: int, min_side: int, most_pixels: int = MAX_PIXELS) -> None:
    """Raise Refusal if a picture of this size must not be decoded."""
    if width * height > most_pixels:
        raise _too_large(most_pixels)
    if min(width, height) < min_side:
        detail = f"{width} x {height} pixels; the shorter side must be at least {min_side}"
        raise Refusal(Reason.TOO_SMALL, detail)


def _too_large(most_pixels: int) -> Refusal:
    return Refusal(Reason.TOO_LARGE, f"claims more than {most_pixels} pixels")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1..8; 1 (upright) if the EXIF data cannot be read, as in picture viewers."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except DECODER_ERRORS:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """The loaded picture as 8-bit RGB."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        # 32-bit samples have no nominal white: map the darkest to black and the brightest to white.
        samples = np.array(image, dtype=np.float32)
        np.nan_to_num(samples, copy=False).clip(-1e30, 1e30, out=samples)
        samples -= samples.min()
        samples *= 255 / max(float(samples.max()), 1e-12)
        return Image.fromarray(np.rint(samples, out=samples).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
