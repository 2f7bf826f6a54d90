"""A second look at pictures in which people are small: the detector misses them at the size at which it sees a picture.

The picture is cut into overlapping tiles, which are enlarged and searched. Whoever is found in a tile is looked at once more,
alone and enlarged, and counts only if both looks agree. That keeps out false people, which depend on the frame. A picture in
which the first look found a large person is not searched again, so that pictures of one person cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from tasks.common.skeleton import LIMBS, torso_length
from tasks.extract.landmarker import Person

LARGE = 0.55  # longer side of a person as a share of the picture's shorter side
OVERLAP = 0.24  # tiles are larger by this share than they would be without overlap
ENLARGED = 320  # pixels of the longer side of a tile; the detector itself sees 224
AROUND = 1.5  # the square of the third look as a multiple of the person's limbs
SAME = 0.3  # intersection over union of the boxes of limbs, from which two persons are one
NEAR = 0.5  # torso lengths between the limbs of two persons, up to which they are one
AGREE = 0.3  # torso lengths between the limbs in both looks
VISIBLE = 0.6  # mean visibility of the limbs

Detect = Callable[[np.ndarray], list[Person]]


@dataclass(frozen=True)
class Seen:
    """A person, and the joints in pixels of the whole picture `[33, 2]`."""

    person: Person
    pixels: np.ndarray
    torso: float

    @property
    def limbs(self) -> np.ndarray:
        """The limb joints, `[12, 2]`."""
        limbs: np.ndarray = self.pixels[list(LIMBS)]
        return limbs

    @property
    def box(self) -> np.ndarray:
        """Left, top, right, bottom of the limbs, in pixels."""
        return np.concatenate([self.limbs.min(axis=0), self.limbs.max(axis=0)])

    @property
    def visibility(self) -> float:
        """Mean of the limbs' visibility."""
        return float(self.person.landmarks[list(LIMBS), 3].mean())

    def apart(self, other: Seen) -> float:
        """Mean distance of the limbs in torso lengths of the larger person."""
        distance = np.linalg.norm(self.limbs - other.limbs, axis=1).mean()
        return float(distance / max(self.torso, other.torso, 1e-6))

    def overlaps(self, other: Seen) -> bool:
        """Whether the boxes of the limbs overlap by SAME."""
        a, b = self.box, other.box
        inner = np.prod((np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0))
        union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inner
        return bool(inner >= SAME * union)

    def same(self, other: Seen) -> bool:
        """Whether both are one person."""
        return self.overlaps(other) or self.apart(other) <= NEAR


def needed(picture: np.ndarray, persons: list[Person]) -> bool:
    """Whether none of the persons found in a picture `[h, w, 3]` is large."""
    height, width = picture.shape[:2]
    longer = [float(np.ptp(p.landmarks[:, :2] * [width, height], axis=0).max()) for p in persons]
    return bool(max(longer, default=0.0) < LARGE * min(height, width))


def search(picture: np.ndarray, persons: list[Person], detect: Detect, tiles: int, most: int) -> list[Person]:
    """The persons of the first look at a picture uint8 `[h, w, 3]`, and after them new ones, the surest first.

    `tiles`: along each side; `most`: persons in all. The persons given are returned unchanged.
    """
    if not needed(picture, persons):
        return persons
    height, width = picture.shape[:2]
    kept = [seen(person, width, height) for person in persons]
    confirmed = []
    for box in _tiles(width, height, tiles):
        for person in _look(picture, box, detect):
            once = seen(person, width, height)
            again = [seen(other, width, height) for other in _look(picture, _around(once), detect)]
            fitting = [other for other in again if other.overlaps(once) and other.apart(once) <= AGREE]
            if fitting:
                best = min(fitting, key=once.apart)
                if best.visibility >= VISIBLE:
                    confirmed.append((best.visibility - AGREE * best.apart(once), best))
    for _, candidate in sorted(confirmed, key=lambda pair: -pair[0]):
        if not any(candidate.same(other) for other in kept):
            kept.append(candidate)
    return [one.person for one in kept[: max(most, len(persons))]]


def seen(person: Person, width: int, height: int) -> Seen:
    """A person in a picture of this size."""
    pixels = person.landmarks[:, :2].astype(np.float64) * [width, height]
    return Seen(person, pixels, float(torso_length(pixels)))


def _tiles(width: int, height: int, count: int) -> list[tuple[int, int, int, int]]:
    """Overlapping boxes (left, top, right, bottom) that cover a picture, `count` along each side."""
    share = (1 + OVERLAP) / count
    starts = np.linspace(0, 1 - share, count)
    return [
        (round(x * width), round(y * height), round((x + share) * width), round((y + share) * height))
        for y in starts
        for x in starts
    ]


def _around(one: Seen) -> tuple[int, int, int, int]:
    """The square around a person's limbs."""
    low, high = one.box[:2], one.box[2:]
    middle, half = (low + high) / 2, float((high - low).max()) * AROUND / 2
    left, top = np.round(middle - half).astype(int)
    side = max(2, round(2 * half))
    return int(left), int(top), int(left) + side, int(top) + side


def _look(picture: np.ndarray, box: tuple[int, int, int, int], detect: Detect) -> list[Person]:
    """The persons in a part of a picture, which is enlarged or reduced to ENLARGED pixels; what lies outside is black."""
    left, top, right, bottom = box
    part = Image.fromarray(picture).crop(box)
    scale = ENLARGED / max(part.size)
    size = max(1, round(part.width * scale)), max(1, round(part.height * scale))
    height, width = picture.shape[:2]
    share = np.array([(right - left) / width, (bottom - top) / height], np.float32)
    offset = np.array([left / width, top / height], np.float32)
    persons = []
    for person in detect(np.asarray(part.resize(size, Image.Resampling.BICUBIC))):
        landmarks = person.landmarks.copy()
        landmarks[:, :2] = landmarks[:, :2] * share + offset
        landmarks[:, 2] *= share[0]  # depth has the scale of x
        persons.append(replace(person, landmarks=landmarks))
    return persons
