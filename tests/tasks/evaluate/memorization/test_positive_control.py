"""Planted copies: each disguise changes a picture and leaves it recognisable, and originals are drawn evenly."""

import numpy as np
import pytest

from tasks.common import skeleton
from tasks.evaluate.memorization import positive_control
from tasks.evaluate.memorization.positive_control import PICTURE_DISGUISES, POSE_DISGUISES
from tests.support.photos import photo


@pytest.mark.parametrize("name", PICTURE_DISGUISES)
def test_a_disguise_changes_a_picture_but_not_its_size(name: str) -> None:
    picture = photo(1)
    copy = PICTURE_DISGUISES[name](picture, np.random.default_rng(0))
    assert copy.shape == picture.shape and copy.dtype == np.uint8
    seen = np.ascontiguousarray(copy[:, ::-1]) if name == "mirrored" else copy
    correlation = np.corrcoef(seen.ravel().astype(float), picture.ravel().astype(float))[0, 1]
    assert correlation > (0.75 if "rotated" in name or "cropped" in name else 0.9)
    assert name == "mirrored" or (copy != picture).any()


def test_the_strength_of_a_disguise_is_within_its_limits() -> None:
    flat = np.full((40, 40, 3), 100, np.uint8)
    rng = np.random.default_rng(0)
    bright = [PICTURE_DISGUISES["brightness x0.7 to 1.4"](flat, rng).mean() for _ in range(200)]
    assert 70 <= min(bright) < 75 and 133 < max(bright) <= 140
    noisy = PICTURE_DISGUISES["noise of 10/255"](flat, rng)
    assert noisy.std() == pytest.approx(10, rel=0.1)


def test_different_originals_are_planted_in_turn() -> None:
    planter = positive_control.pictures(30, photo, lambda picture: picture[::8, ::8])
    planted = planter(27, np.random.default_rng(0))
    assert len(set(planted.original)) == 27 and planted.items.shape == (27, 9, 12, 3)
    assert [planted.disguise.count(name) for name in PICTURE_DISGUISES] == [3] * 9
    again = planter(27, np.random.default_rng(0))
    assert (again.items == planted.items).all()
    assert len(planter(50, np.random.default_rng(0)).items) == 50  # more than there are pictures


def test_planted_poses_are_poses_near_their_originals() -> None:
    train = np.random.default_rng(0).normal(size=(50, 33, 3)).astype(np.float32)
    planted = positive_control.poses(train)(40, np.random.default_rng(1))
    assert set(planted.disguise) == set(POSE_DISGUISES)
    for item, row, name in zip(planted.items, planted.original, planted.disguise, strict=True):
        original = skeleton.mirror(train[row][None])[0] if name == "mirrored" else train[row]
        if name == "turned about the vertical":  # heights and distances between joints stay
            assert item[:, 1] == pytest.approx(original[:, 1], abs=0.03)
            lengths = [np.linalg.norm(pose[3] - pose[20]) for pose in (item, original)]
            assert lengths[0] == pytest.approx(lengths[1], abs=0.03)
        else:
            assert np.abs(item - original).max() < 0.05
