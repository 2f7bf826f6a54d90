"""A second opinion about who is in a picture: MoveNet finds people that MediaPipe's detector misses, and doubts others.

For everybody whom MoveNet sees, MediaPipe reads the landmarks in a square around the hips that MoveNet names, turned so that
the torso is upright, as BlazePose does with its own detections (Bazarevsky et al. 2020). A person counts if both networks put
the limbs at about the same places. This catches exchanged sides, joints of two people in one pose, and things that are not
people.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from tasks.common.skeleton import INDEX, LIMBS
from tasks.extract.landmarker import Person
from tasks.extract.movenet import JOINTS, Guess
from tasks.extract.second_pass import Seen, seen

SURE = 0.1  # score from which a guess of MoveNet counts
CLEAR = 0.2  # score from which one of its joints counts
ENOUGH = 4  # limb joints that have to be clear
AROUND = 1.3  # half a side of the square, as a multiple of the distance from the hips to the farthest joint
SHORTEST = 1.6  # this distance in torso lengths, at least: of people whose legs are not seen
SIDE = 256  # pixels of the landmark network's input

Detect = Callable[[np.ndarray], list[Person]]
_LIMBS = [i for i, landmark in enumerate(JOINTS) if landmark in LIMBS]
_AT = {landmark: i for i, landmark in enumerate(JOINTS)}
_SHOULDERS, _HIPS = ([_AT[INDEX[f"{side}_{joint}"]] for side in ("left", "right")] for joint in ("shoulder", "hip"))


@dataclass(frozen=True)
class _Square:
    """A square in a picture: its middle and half a side in pixels, and the clockwise turn of its upward side in radians."""

    middle: np.ndarray
    half: float
    turn: float

    @property
    def axes(self) -> np.ndarray:
        """The directions of its x and y in the picture, as columns."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        return np.array([[cos, -sin], [sin, cos]])


def search(
    picture: np.ndarray, persons: list[Person], guesses: list[Guess], read: Detect, agreement: float, most: int
) -> list[Person]:
    """The persons with whom a guess agrees, and after them new ones, the surest first; at most `most`.

    `persons`: found in the picture, uint8 `[h, w, 3]`; they are not changed. `read` returns the person, if any, in a square
    picture with the hips in the middle. `agreement`: mean distance between the limbs that both networks may put them apart, in
    torso lengths of the larger person.
    """
    height, width = picture.shape[:2]
    sure = [guess for guess in guesses if guess.score >= SURE]
    kept = [seen(person, width, height) for person in persons]
    kept = [one for one in kept if any(_agree(one, guess, agreement) for guess in sure)]
    for guess in sure:
        if len(kept) >= most:
            break
        if any(_agree(one, guess, agreement) for one in kept):
            continue
        for person in _look(picture, _around(guess), read):
            new = seen(person, width, height)
            if _agree(new, guess, agreement) and not any(new.same(other) for other in kept):
                kept.append(new)
    return [one.person for one in kept[:most]]


def _agree(one: Seen, guess: Guess, agreement: float) -> bool:
    """Whether both networks put the limbs that MoveNet sees clearly at about the same places."""
    clear = [i for i in _LIMBS if guess.joints[i, 2] > CLEAR]
    if len(clear) < ENOUGH:
        return False
    torso = max(one.torso, float(np.linalg.norm(_middle(guess, _SHOULDERS) - _middle(guess, _HIPS))), 1e-6)
    distance = np.linalg.norm(one.pixels[[JOINTS[i] for i in clear]] - guess.joints[clear, :2], axis=1)
    return bool(distance.mean() <= agreement * torso)


def _middle(guess: Guess, joints: list[int]) -> np.ndarray:
    middle: np.ndarray = guess.joints[joints, :2].mean(axis=0)
    return middle


def _around(guess: Guess) -> _Square:
    """The square around the hips that MoveNet names."""
    hips, up = _middle(guess, _HIPS), _middle(guess, _SHOULDERS) - _middle(guess, _HIPS)
    clear = guess.joints[:, 2] > CLEAR
    distance = np.linalg.norm(guess.joints[clear, :2] - hips, axis=1)
    reach = max(float(distance.max(initial=1.0)), SHORTEST * float(np.linalg.norm(up)))
    return _Square(hips, AROUND * reach, float(np.arctan2(up[0], -up[1])))


def _look(picture: np.ndarray, square: _Square, read: Detect) -> list[Person]:
    """The persons in a square, with landmarks of the whole picture; what lies outside it is black."""
    scale = 2 * square.half / SIDE  # pixels of the picture in one of the square
    matrix = square.axes * scale
    offset = square.middle - matrix @ [SIDE / 2, SIDE / 2]
    rows = (*matrix[0], offset[0], *matrix[1], offset[1])
    part = Image.fromarray(picture).transform((SIDE, SIDE), Image.Transform.AFFINE, rows, Image.Resampling.BICUBIC)
    height, width = picture.shape[:2]
    persons = []
    for person in read(np.asarray(part)):
        landmarks, world = person.landmarks.copy(), person.world.copy()
        landmarks[:, :2] = (landmarks[:, :2] * SIDE @ matrix.T + offset) / [width, height]
        landmarks[:, 2] *= scale * SIDE / width  # depth has the scale of x
        world[:, :2] = world[:, :2] @ square.axes.T
        persons.append(replace(person, landmarks=landmarks, world=world))
    return persons
