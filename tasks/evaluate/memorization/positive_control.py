"""The positive control: disguised copies of training items that are planted in every run and that the copy test has to find.

The planted copies are judged beside the samples and never counted among them. A picture is disguised at the size in which it is
stored, and then reduced like every other picture. The disguises take turns; their strengths are drawn uniformly.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tasks.common import skeleton

POSE_NOISE = 0.005  # standard deviation of every coordinate of a mirrored or turned copy, in torso lengths
ROTATION = (1.0, 5.0)  # degrees, either way
CUT = (0.02, 0.1)  # of each side
BRIGHTNESS = (0.7, 1.4)  # factor
WHITE_BALANCE = 0.15  # largest change of the gain of red and of blue
JPEG_QUALITY = 20
NOISE = 10.0  # standard deviation, of 255
BLUR = 0.012  # standard deviation, of the shorter side

Disguise = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # of one item


class Planted(NamedTuple):
    """Planted copies: the items, the row in the training set of each original, and the name of each disguise."""

    items: np.ndarray
    original: np.ndarray  # int64 [n]
    disguise: list[str]


# (how many, random generator) -> copies
Planter = Callable[[int, np.random.Generator], Planted]


def _mirror(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return picture[:, ::-1]


def _rotate(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """About the centre; what comes into view repeats the border."""
    height, width = picture.shape[:2]
    border = max(height, width) // 8 + 1
    wide = Image.fromarray(np.pad(picture, ((border, border), (border, border), (0, 0)), mode="edge"))
    angle = rng.uniform(*ROTATION) * rng.choice([-1, 1])
    turned = wide.rotate(float(angle), Image.Resampling.BICUBIC)
    return np.asarray(turned.crop((border, border, border + width, border + height)))


def _crop(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A part of the picture, enlarged to its size."""
    height, width = picture.shape[:2]
    cut = rng.uniform(*CUT)
    left, top = rng.uniform(0, cut, 2)
    box = (left * width, top * height, (left + 1 - cut) * width, (top + 1 - cut) * height)
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC, box=box))


def _jpeg(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(stream).convert("RGB"))


def _scaled(picture: np.ndarray, gain: np.ndarray | float) -> np.ndarray:
    return np.clip(np.rint(picture * gain), 0, 255).astype(np.uint8)


def _brightness(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    low, high = BRIGHTNESS
    return _scaled(picture, np.exp(rng.uniform(np.log(low), np.log(high))))


def _white_balance(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    red, blue = rng.uniform(1 - WHITE_BALANCE, 1 + WHITE_BALANCE, 2)
    return _scaled(picture, np.array([red, 1, blue]))


def _noise(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(np.rint(picture + rng.normal(0, NOISE, picture.shape)), 0, 255).astype(np.uint8)


def _blur(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(BLUR * min(picture.shape[:2]))))


def _watermark(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half-transparent white words across the picture."""
    image = Image.fromarray(picture).convert("RGBA")
    layer = Image.new("RGBA", image.size, (255, 255, 255, 0))
    font = ImageFont.load_default(max(8, image.height * 0.12))
    place = (image.width * rng.uniform(0.05, 0.2), image.height * rng.uniform(0.2, 0.7))
    ImageDraw.Draw(layer).text(place, "sample", (255, 255, 255, 128), font)
    return np.asarray(Image.alpha_composite(image, layer).convert("RGB"))


PICTURE_DISGUISES: dict[str, Disguise] = {
    "mirrored": _mirror,
    "rotated by 1 to 5 degrees": _rotate,
    "cropped by 2 to 10% and enlarged": _crop,
    "JPEG quality 20": _jpeg,
    "brightness x0.7 to 1.4": _brightness,
    "white balance": _white_balance,
    "noise of 10/255": _noise,
    "blurred": _blur,
    "watermark": _watermark,
}


def _moved(scale: float) -> Disguise:
    def move(pose: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return pose + rng.normal(0, scale, pose.shape)

    return move


def _mirrored_pose(pose: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _moved(POSE_NOISE)(skeleton.mirror(pose[None])[0], rng)


def _turned_pose(pose: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned about the vertical by any angle."""
    angle = rng.uniform(-np.pi, np.pi)
    cosine, sine = np.cos(angle), np.sin(angle)
    return _moved(POSE_NOISE)(pose @ np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]]), rng)


POSE_DISGUISES: dict[str, Disguise] = {
    "joints moved by 0.005 torso": _moved(0.005),
    "joints moved by 0.01 torso": _moved(0.01),
    "mirrored": _mirrored_pose,
    "turned about the vertical": _turned_pose,
}


def _planted(
    disguises: dict[str, Disguise], total: int, count: int, item: Callable[[int], np.ndarray], rng: np.random.Generator
) -> Planted:
    """`count` copies of `total` training items, of different ones if there are enough; the disguises take turns."""
    original = rng.choice(total, count, replace=count > total)
    names = [name for name, _ in zip(cycle(disguises), range(count), strict=False)]
    copies = [disguises[name](item(int(row)), rng) for name, row in zip(names, original, strict=True)]
    return Planted(np.stack(copies), original, names)


def poses(train: np.ndarray) -> Planter:
    """Plants copies of poses `[n, 33, 3]`."""

    def planter(count: int, rng: np.random.Generator) -> Planted:
        planted = _planted(POSE_DISGUISES, len(train), count, lambda row: train[row], rng)
        return planted._replace(items=planted.items.astype(np.float32))

    return planter


def pictures(total: int, picture: Callable[[int], np.ndarray], reduce: Callable[[np.ndarray], np.ndarray]) -> Planter:
    """Plants copies of `total` pictures.

    `picture(row)`: a training picture as it is stored, uint8 `[height, width, 3]`; `reduce`: from such a picture to an
    item of the copy test.
    """
    disguises: dict[str, Disguise] = {
        name: partial(_reduced, disguise, reduce) for name, disguise in PICTURE_DISGUISES.items()
    }

    def planter(count: int, rng: np.random.Generator) -> Planted:
        return _planted(disguises, total, count, picture, rng)

    return planter


def _reduced(
    disguise: Disguise, reduce: Callable[[np.ndarray], np.ndarray], picture: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    return reduce(np.ascontiguousarray(disguise(picture, rng)))
