"""The second opinion: whom MoveNet sees is found, upright or not, and whom both networks see differently does not count."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.common.skeleton import LIMBS, MIRROR
from tasks.extract import movenet, second_opinion
from tasks.extract.finder import finder
from tasks.extract.findings import Opinion, Settings
from tasks.extract.landmarker import Landmarker, Person, kept_offline
from tasks.extract.movenet import JOINTS, Guess
from tasks.synthetic import stage as mannequin
from tests.support.evaluation_workspace import standing
from tests.support.project import PROJECT

MODEL = PROJECT / "models/pose_landmarker_full.task"
GREY = np.full((400, 400, 3), 128, np.uint8)
AGREEMENT = 0.35


@pytest.fixture(scope="module")
def centred() -> Iterator[Landmarker]:
    with kept_offline(), Landmarker(MODEL, centred=True) as landmarker:
        yield landmarker


def person(x: float, y: float, height: float) -> Person:
    """A standing person of this height around (x, y), as fractions of a square picture."""
    pose = standing()
    pose = (pose - pose.mean(axis=0)) / np.ptp(pose[:, 1]) * height + [x, y, 0]
    landmarks = np.concatenate([pose, np.full((33, 2), 0.9)], axis=1).astype(np.float32)
    return Person(landmarks, pose.astype(np.float32))


def drawn(index: int) -> tuple[np.ndarray, np.ndarray]:
    """A mannequin of 224 x 224 pixels and its true landmarks in pixels `[33, 2]`."""
    picture = mannequin.picture(seed=0, index=index, size=224)
    return picture.image, np.array(picture.truth["image"], np.float64)


def guess(pixels: np.ndarray, score: float = 0.5, clear: float = 0.8) -> Guess:
    """The guess that names these landmarks, in pixels `[33, 2]`."""
    return Guess(np.concatenate([pixels[JOINTS, :2], np.full((17, 1), clear)], axis=1), score)


def of(one: Person, **scores: float) -> Guess:
    return guess(one.landmarks[:, :2].astype(np.float64) * 400, **scores)


def nobody(_: np.ndarray) -> list[Person]:
    return []


def test_a_person_counts_if_both_networks_agree() -> None:
    one = person(0.5, 0.5, 0.6)
    exchanged = Guess(of(one).joints[[JOINTS.index(MIRROR[i]) for i in JOINTS]], 0.5)
    for guesses, count in (
        ([of(one)], 1),
        ([of(person(0.9, 0.5, 0.6)), of(one)], 1),
        ([], 0),
        ([of(person(0.9, 0.5, 0.6))], 0),
        ([exchanged], 0),
        ([of(one, score=0.05)], 0),
        ([of(one, clear=0.1)], 0),
    ):
        found = second_opinion.search(GREY, [one], guesses, nobody, AGREEMENT, most=4)
        assert len(found) == count and all(other is one for other in found)


def test_new_persons_come_last_and_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    known, new, other = person(0.3, 0.5, 0.6), person(0.7, 0.5, 0.6), person(0.72, 0.5, 0.6)
    looks = iter([[new], [other], [new]])
    monkeypatch.setattr(second_opinion, "_look", lambda *_: next(looks))
    guesses = [of(new), of(known), of(other)]
    assert second_opinion.search(GREY, [known], guesses[:2], nobody, AGREEMENT, most=4) == [known, new]
    monkeypatch.setattr(second_opinion, "_look", lambda *_: [other])
    assert second_opinion.search(GREY, [new], [of(new), of(other)], nobody, 0.01, most=4) == [new]
    assert second_opinion.search(GREY, [known], guesses, nobody, AGREEMENT, most=1) == [known]


@pytest.mark.parametrize("degrees", [0, 70, -120, 180])
def test_a_small_person_is_read_in_any_direction(centred: Landmarker, degrees: int) -> None:
    image, joints = drawn(index=3)
    (upright,) = second_opinion.search(image, [], [guess(joints)], centred.detect, AGREEMENT, most=1)
    wall = np.full((600, 900, 3), 128, np.uint8)
    wall[200:340, 500:640] = np.asarray(Image.fromarray(image).resize((140, 140)).rotate(-degrees))
    turn = np.deg2rad(degrees)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    truth = (joints / 224 * 140 - 70) @ matrix.T + [570, 270]
    (found,) = second_opinion.search(wall, [], [guess(truth)], centred.detect, AGREEMENT, most=4)
    limbs = list(LIMBS)
    pixels = found.landmarks[limbs, :2] * [900, 600]
    assert np.linalg.norm(pixels - truth[limbs], axis=1).mean() < 8
    turned = upright.world[limbs, :2] @ matrix.T
    assert np.linalg.norm(found.world[limbs, :2] - turned, axis=1).mean() < 0.12


def test_without_a_person_there_is_nothing_to_read(centred: Landmarker) -> None:
    assert centred.detect(GREY) == []


def test_the_finder_asks_movenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, joints = drawn(index=1)
    guesses: list[Guess] = []

    class Network:
        def __init__(self, path: Path, sha256: str, side: int) -> None:
            assert (path, sha256, side) == (tmp_path / "movenet.zip", "a" * 64, 256)

        def detect(self, picture: np.ndarray) -> list[Guess]:
            return guesses

    monkeypatch.setattr(movenet, "MoveNet", Network)
    opinion = Opinion(str(tmp_path / "movenet.zip"), "a" * 64, 256, AGREEMENT)
    settings = Settings(0.5, 64, 4, 4.0, 0.15, 0, opinion)
    with kept_offline(), finder(MODEL, settings) as find, finder(MODEL, Settings(0.5, 64, 4, 4.0, 0.15)) as alone:
        assert find(image) == []
        guesses.append(guess(joints))
        (both,), (one,) = find(image), alone(image)
        assert both.landmarks.tobytes() == one.landmarks.tobytes() and both.world.tobytes() == one.world.tobytes()


def test_without_a_second_opinion_workers_do_not_load_torch() -> None:
    code = "import sys, tasks.extract.extractor; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
