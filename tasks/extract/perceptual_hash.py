"""A picture's fingerprint: 256 low spatial frequencies that identify copies of it, also after re-encoding and resizing.

The picture is converted to grey and reduced to 32 x 32. Its orthonormal DCT-II F(u, v) is kept for u, v < 16 and multiplied
by sqrt(u^2 + v^2). The spectra of natural pictures fall like 1 / frequency, so this makes all 256 numbers about equally
large; without it, floor and walls would dominate over the person in front of them. The brightness F(0, 0) drops out. The
contrast drops out too, since only directions are compared.

The signs of the 256 numbers are a perceptual hash (pHash, Zauner 2010, with four times its bits). A mirror image has the same
F except for the sign of the odd horizontal frequencies, so mirror images can be found without a second fingerprint.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 32  # pixels of the reduced picture
FREQUENCIES = 16  # in each direction
LENGTH = FREQUENCIES**2

_cell = np.pi * (2 * np.arange(SIDE) + 1) / (2 * SIDE)
_DCT = np.cos(np.outer(np.arange(FREQUENCIES), _cell)) * np.sqrt(2 / SIDE)
_DCT[0] /= np.sqrt(2)
_WEIGHT = np.hypot(*np.mgrid[:FREQUENCIES, :FREQUENCIES])
_MIRROR = np.tile(np.where(np.arange(FREQUENCIES) % 2, -1, 1), FREQUENCIES).astype(np.int8)


def grey(picture: np.ndarray) -> np.ndarray:
    """The luma (ITU-R 601) of an RGB picture, uint8 `[height, width, 3]`, as uint8 `[height, width]`.

    A grey picture is returned unchanged.
    """
    return picture if picture.ndim == 2 else np.asarray(Image.fromarray(picture).convert("L"))


def fingerprint(picture: np.ndarray) -> np.ndarray:
    """The fingerprint, int8 `[256]` with the vertical frequency first, of an RGB or grey uint8 picture.

    Scaled so that the largest absolute value is 127; zeros if the picture has only one colour.
    """
    image = Image.fromarray(grey(picture)).resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3)
    spectrum = _WEIGHT * (_DCT @ np.asarray(image, np.float64) @ _DCT.T)
    largest = np.abs(spectrum).max()
    scaled: np.ndarray = np.rint(spectrum.ravel() * (127 / largest if largest > 1e-6 else 0))
    return scaled.astype(np.int8)


def mirrored(fingerprints: np.ndarray) -> np.ndarray:
    """The fingerprints `[..., 256]` of the mirror images."""
    return fingerprints * _MIRROR


def bits(fingerprints: np.ndarray) -> np.ndarray:
    """The perceptual hashes, uint8 `[n, 32]`, of fingerprints `[n, 256]`: one bit for the sign of each number."""
    return np.packbits(fingerprints > 0, axis=1)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine similarities `[n]` of fingerprints `[n, 256]`, row by row: 1 for equal pictures, 0 for a picture of one colour."""
    x, y = a.astype(np.float32), b.astype(np.float32)
    length = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    similarity: np.ndarray = np.divide((x * y).sum(axis=1), length, out=np.zeros(len(x), np.float32), where=length > 0)
    return similarity
