"""Procedural pictures of figures, and the ways in which a copy of a picture may be disguised."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from tasks.evaluate.memorization.invariances import PICTURE_SIDE

DRAWN = 64  # pixels
LIMBS = ((0, 1), (1, 2), (2, 3), (1, 4), (4, 5), (0, 6), (6, 7), (0, 8), (8, 9), (1, 10))


def _joints(rng: np.random.Generator) -> np.ndarray:
    """Ten joints in the unit square: hips, chest, both arms, both legs, head."""
    hips = np.array([0.5, 0.55]) + rng.normal(0, 0.04, 2)
    lean = rng.normal(0, 0.25)
    chest = hips + 0.24 * np.array([np.sin(lean), -np.cos(lean)])
    joints = [hips, chest]
    for start in (chest, chest):
        a, b = rng.uniform(-np.pi, np.pi, 2)
        elbow = start + 0.14 * np.array([np.cos(a), np.sin(a)])
        joints += [elbow, elbow + 0.13 * np.array([np.cos(a + b / 2), np.sin(a + b / 2)])]
    for side in (-1, 1):
        a = np.pi / 2 + side * rng.uniform(0, 0.8)
        b = a + rng.normal(0, 0.3)
        knee = hips + 0.17 * np.array([np.cos(a), np.sin(a)])
        joints += [knee, knee + 0.17 * np.array([np.cos(b), np.sin(b)])]
    joints.append(chest + 0.09 * np.array([np.sin(lean), -np.cos(lean)]))
    return np.array(joints)


def _background(rng: np.random.Generator) -> Image.Image:
    """Smooth random colours."""
    coarse = rng.integers(60, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((DRAWN, DRAWN), Image.Resampling.BICUBIC)


def figure(seed: int, background_seed: int | None = None) -> Image.Image:
    """A 64 x 64 picture of a figure. Pose and colours follow from the seed; the background may come from another seed."""
    rng = np.random.default_rng([1, seed])
    joints = _joints(rng) * DRAWN
    colours = [tuple(int(c) for c in rng.integers(0, 256, 3)) for _ in range(4)]
    picture = _background(np.random.default_rng([2, seed if background_seed is None else background_seed]))
    draw = ImageDraw.Draw(picture)
    for limb, (a, b) in enumerate(LIMBS):
        draw.line([tuple(joints[a]), tuple(joints[b])], fill=colours[limb // 3], width=6)
    x, y = joints[10]
    draw.ellipse([x - 6, y - 6, x + 6, y + 6], fill=colours[3])
    return picture


def _cropped(part: float) -> Callable[[Image.Image, int], Image.Image]:
    def crop(picture: Image.Image, seed: int) -> Image.Image:
        edge = part * DRAWN
        return picture.resize((DRAWN, DRAWN), Image.Resampling.BICUBIC, box=(edge, edge, DRAWN - edge, DRAWN - edge))

    return crop


def _jpeg(picture: Image.Image, seed: int) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=30)
    return Image.open(stream).convert("RGB")


def _noisy(picture: Image.Image, seed: int) -> Image.Image:
    noise = np.random.default_rng([3, seed]).normal(0, 8, (DRAWN, DRAWN, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def _shifted(picture: Image.Image, seed: int) -> Image.Image:
    return Image.fromarray(np.pad(np.asarray(picture), ((0, 0), (4, 0), (0, 0)), mode="edge")[:, :DRAWN])


def _hue(picture: Image.Image, seed: int) -> Image.Image:
    hsv = np.asarray(picture.convert("HSV")).copy()
    hsv[..., 0] += 40  # of 256, wraps around
    return Image.fromarray(hsv, "HSV").convert("RGB")


DISGUISES: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "exact": lambda picture, seed: picture,
    "mirror": lambda picture, seed: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "noise sd 8": _noisy,
    "jpeg 30": _jpeg,
    "blur": lambda picture, seed: picture.resize((24, 24), Image.Resampling.BOX).resize(
        (DRAWN, DRAWN), Image.Resampling.BICUBIC
    ),
    "shift 4 px": _shifted,
    "crop 5%": _cropped(0.05),
    "crop 10%": _cropped(0.10),
    "brightness 1.2": lambda picture, seed: ImageEnhance.Brightness(picture).enhance(1.2),
    "hue +40": _hue,
    "softened": lambda picture, seed: picture.filter(ImageFilter.GaussianBlur(1)),
}


def compared(picture: Image.Image) -> np.ndarray:
    """The picture as the test compares it: uint8 `[64, 64, 3]`."""
    return np.asarray(picture.resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BOX))


def compared_array(picture: np.ndarray) -> np.ndarray:
    """`compared` of a picture uint8 `[64, 64, 3]`."""
    return compared(Image.fromarray(picture))


def figures(seeds: range) -> np.ndarray:
    """Fresh pictures as the test compares them: uint8 `[n, 64, 64, 3]`."""
    return np.stack([compared(figure(seed)) for seed in seeds])


def copies(seeds: list[int], disguise: str) -> np.ndarray:
    """Disguised copies of the pictures with these seeds, as the test compares them."""
    if disguise == "other background":
        return np.stack([compared(figure(seed, seed + 10_000_000)) for seed in seeds])
    return np.stack([compared(DISGUISES[disguise](figure(seed), seed)) for seed in seeds])
