"""The gate for users' files: which files are sources, and how a file becomes an RGB picture or a refusal.

No input is trusted. Links are never followed, opening a special file never blocks, a picture that claims an absurd size is
refused before it is decoded, and each refusal has one `Reason`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import stat
import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO

import numpy as np
import pillow_heif
from PIL import Image, UnidentifiedImageError

from tasks.common.errors import UserError
from tasks.extract.findings import Reason
from tasks.extract.native_log import native_log_set_aside

# The only decoders that get to see a user's bytes. Pillow has many more, and some of them start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "GIF", "BMP", "TIFF")

MAX_PIXELS = 2**30 // 4 // 3  # Pillow's own limit: 89 million pixels, a quarter of a gigabyte of RGB

LABELS = "labels.csv"
SIDE_FILES = frozenset({"SOURCE.txt", LABELS, "Thumbs.db", "desktop.ini"})
JOINTS_SUFFIX = ".joints.json"  # the true joints beside a rendered picture

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


class Refusal(Exception):
    """A file that cannot be used: a reason of the closed list, and details in words."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Source:
    """One file of a part: its path relative to the part's folder, and its category.

    `path` opens the file; if it is not valid UTF-8 it contains surrogates. `name` is its printable form.
    """

    path: str
    category: str

    @property
    def name(self) -> str:
        """The path as valid Unicode; invalid bytes are written as \\xNN."""
        return printable(self.path)


def is_aside(name: str) -> bool:
    """Whether a file or folder of this name is not a source: it is hidden or a known side file."""
    return name.startswith(".") or name in SIDE_FILES or name.endswith(JOINTS_SUFFIX)


def printable(path: str) -> str:
    """A file name as valid Unicode; invalid bytes are written as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def scan(folder: Path) -> list[Source]:
    """All sources below the folder, in order of their relative path.

    Hidden files and folders and known side files are ignored. Links, special files and folders that cannot be listed are
    sources; opening them gives a refusal. The category comes from `labels.csv` (see `_labels`) or else is the first
    sub-folder; a file directly in the folder gets the folder's own name. Raises UserError if the folder is missing or
    empty, or if its labels cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"The folder of pictures {folder} does not exist.")
    labels = _labels(folder / LABELS)
    own_name = printable(folder.resolve().name)
    sources = []
    folders = [""]
    while folders:
        prefix = folders.pop()
        try:
            with os.scandir(folder / prefix) as listing:
                entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in listing]
        except OSError:
            sources.append(prefix)
            continue
        for name, is_folder in entries:
            if is_aside(name):
                continue
            path = f"{prefix}/{name}" if prefix else name
            (folders if is_folder else sources).append(path)
    if not sources:
        raise UserError(f"The folder of pictures {folder} holds no file.")
    return [
        Source(path, labels.get(path) or (printable(path.split("/")[0]) if "/" in path else own_name))
        for path in sorted(sources)
    ]


def _labels(path: Path) -> dict[str, str]:
    """The category of each file that `labels.csv` lists; empty if there is no such file.

    The first line names the columns. `file` is a path relative to the folder, with forward slashes. The category is in the
    column `category`, or in the column after `file` if there is no column of that name.
    """
    try:
        with open_regular(path) as file:
            rows = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
            names = [name.strip() for name in next(rows, [])]
            file_column = names.index("file")
            category_column = names.index("category") if "category" in names else file_column + 1
            if category_column >= len(names):
                raise ValueError("no column after 'file'")
            return {
                row[file_column].strip(): row[category_column].strip()
                for row in rows
                if len(row) > max(file_column, category_column)
            }
    except Refusal as refusal:
        if not os.path.lexists(path):
            return {}
        raise UserError(f"{path} cannot be read ({refusal.detail}).") from refusal
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} must have a line of column names with 'file' and 'category' ({error}).") from error


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. Raises Refusal if it is a link or not a regular file, or cannot be opened.

    A name that is not valid UTF-8 is refused too, because no table could hold it.
    """
    if printable(str(path)) != str(path):
        raise Refusal(Reason.UNREADABLE, "its name is not valid UTF-8")
    # Without O_NONBLOCK, opening a pipe that nobody writes to would wait forever.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        detail = "a symbolic link; links are not followed" if path.is_symlink() else str(error.strerror)
        raise Refusal(Reason.UNREADABLE, detail) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Refusal(Reason.UNREADABLE, "not a regular file")
    return os.fdopen(descriptor, "rb")


def content_key(file: BufferedReader) -> str:
    """The first 16 hexadecimal digits of the sha256 of the file's bytes; the file is left at its beginning."""
    file.seek(0)
    try:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Refusal(Reason.UNREADABLE, str(error.strerror)) from error
    file.seek(0)
    return digest[:16]


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
