"""The second look: small people are found where they are, large ones keep their bits, and both looks have to agree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tasks.extract import second_pass
from tasks.extract.extractor import extractor
from tasks.extract.findings import Settings
from tasks.extract.landmarker import Landmarker, Person, kept_offline
from tasks.synthetic import stage as mannequin
from tests.support.evaluation_workspace import standing
from tests.support.photos import write
from tests.support.project import PROJECT

MODEL = PROJECT / "models/pose_landmarker_full.task"
GREY = np.full((400, 600, 3), 128, np.uint8)


@pytest.fixture(scope="module")
def landmarker() -> Iterator[Landmarker]:
    with kept_offline(), Landmarker(MODEL, num_poses=4) as landmarker:
        yield landmarker


def small(x: int, y: int, side: int = 140) -> np.ndarray:
    """A grey wall of 900 x 600 pixels with a small mannequin whose picture begins at (x, y)."""
    from PIL import Image

    wall = np.full((600, 900, 3), 128, np.uint8)
    figure = Image.fromarray(mannequin.picture(seed=0, index=3, size=224).image).resize((side, side))
    wall[y : y + side, x : x + side] = np.asarray(figure)
    return wall


def test_a_small_person_is_found_where_it_is(landmarker: Landmarker) -> None:
    picture = small(120, 60)
    assert landmarker.detect(picture) == []
    (person,) = second_pass.search(picture, [], landmarker.detect, tiles=2, most=4)
    pixels = person.landmarks[:, :2] * [900, 600]
    truth = landmarker.detect(mannequin.picture(seed=0, index=3, size=224).image)[0].landmarks[:, :2] * 140 + [120, 60]
    assert np.linalg.norm(pixels - truth, axis=1).mean() < 8


def test_a_large_person_keeps_its_bits_and_costs_nothing(tmp_path: Path) -> None:
    write(tmp_path, {"large.png": mannequin.picture(seed=0, index=1, size=224).image})
    found = []
    for tiles in (0, 2):
        settings = Settings(0.5, 64, 4, 4.0, 0.15, tiles)
        with extractor(tmp_path, MODEL, settings, lambda key: False) as steps:
            subject = "large.png"
            for step in steps:
                subject = step(subject)
            found.append(subject.findings.persons[0])  # type: ignore[attr-defined]
    assert found[0].landmarks.tobytes() == found[1].landmarks.tobytes()
    assert found[0].world.tobytes() == found[1].world.tobytes()

    def never(picture: np.ndarray) -> list[Person]:
        raise AssertionError("looked at again")

    large = [person(0.5, 0.5, 0.9)]
    assert second_pass.search(GREY, large, never, 2, 4) is large


def person(x: float, y: float, height: float, visibility: float = 0.9) -> Person:
    """A standing person of this height around (x, y), as fractions of a square picture."""
    pose = standing()
    pose = (pose - pose.mean(axis=0)) / np.ptp(pose[:, 1]) * height + [x, y, 0]
    landmarks = np.concatenate([pose, np.full((33, 2), visibility)], axis=1).astype(np.float32)
    return Person(landmarks, pose.astype(np.float32))


def looking(monkeypatch: pytest.MonkeyPatch, *looks: list[Person]) -> None:
    """Let the looks at parts of a picture have these results, one after another; places are those in the whole picture."""
    results = iter(looks)
    monkeypatch.setattr(second_pass, "_look", lambda *_: next(results))


def nobody(_: np.ndarray) -> list[Person]:
    return []


@pytest.mark.parametrize(
    ("again", "count"),
    [
        ([person(0.31, 0.3, 0.2)], 1),  # both looks agree
        ([person(0.31, 0.3, 0.2, visibility=0.3)], 0),  # hardly visible
        ([person(0.4, 0.3, 0.2)], 0),  # elsewhere
        ([person(0.3, 0.3, 0.32)], 0),  # of another size
        ([], 0),  # gone
    ],
)
def test_both_looks_have_to_agree(again: list[Person], count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    looking(monkeypatch, [], [person(0.3, 0.3, 0.2)], again, [], [])
    assert len(second_pass.search(GREY, [], nobody, 2, 4)) == count


def test_nobody_is_counted_twice_and_the_known_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    known, new = person(0.5, 0.5, 0.3), person(0.2, 0.3, 0.2)
    seen_twice = [[person(0.5, 0.5, 0.29)], [person(0.5, 0.5, 0.29)]]
    looking(monkeypatch, *seen_twice, [new], [new], [new], [new], [])
    found = second_pass.search(GREY, [known], nobody, 2, 4)
    assert found[0] is known and found[1:] == [new]


def test_no_more_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [[person(x, 0.5, 0.2)] for x in (0.1, 0.4, 0.7)]
    looking(monkeypatch, some[0], some[0], some[1], some[1], some[2], some[2], [])
    assert len(second_pass.search(GREY, [], nobody, 2, 2)) == 2


def test_the_tiles_cover_the_picture_and_overlap() -> None:
    covered = np.zeros((40, 60), int)
    for left, top, right, bottom in second_pass._tiles(60, 40, 3):
        assert 0 <= left < right <= 60 and 0 <= top < bottom <= 40
        covered[top:bottom, left:right] += 1
    assert covered.min() >= 1 and covered.max() > 1
