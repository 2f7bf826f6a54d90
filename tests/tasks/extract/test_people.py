"""Sharpness and exposure depend on the person's box alone, not on its size."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tasks.extract.people import scores
from tasks.synthetic import stage as mannequin


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, np.ndarray]:
    drawn = mannequin.picture(seed=0, index=0, size=256)
    landmarks = np.array(drawn.truth["image"]) / 256
    return drawn.image, landmarks


def blurred(picture: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def test_blur_lowers_the_sharpness_and_leaves_the_exposure(scene: tuple[np.ndarray, np.ndarray]) -> None:
    picture, landmarks = scene
    values = [scores(blurred(picture, radius), landmarks) for radius in (0, 1, 2, 4)]
    sharpness = [value["sharpness"] for value in values]
    assert all(a > 2 * b for a, b in pairwise(sharpness))
    assert values[3]["exposure"] == pytest.approx(values[0]["exposure"], abs=0.01)


def test_sharpness_does_not_depend_on_the_size(scene: tuple[np.ndarray, np.ndarray]) -> None:
    picture, landmarks = scene
    large = np.asarray(Image.fromarray(picture).resize((1024, 1024), Image.Resampling.LANCZOS))
    assert scores(large, landmarks)["sharpness"] == pytest.approx(scores(picture, landmarks)["sharpness"], rel=0.3)


def test_exposure_is_the_mean_grey_of_the_box(scene: tuple[np.ndarray, np.ndarray]) -> None:
    picture, landmarks = scene
    assert scores(np.full_like(picture, 51), landmarks) == {"sharpness": 0.0, "exposure": pytest.approx(0.2)}
    around = picture.copy()
    x, y = landmarks[:, 0] * 256, landmarks[:, 1] * 256
    around[: max(0, int(y.min()) - 3)] = 255
    around[:, : max(0, int(x.min()) - 3)] = 0
    assert scores(around, landmarks) == scores(picture, landmarks)


@pytest.mark.parametrize("shift", [-2.0, 0.999, 1.0, 5.0])
def test_a_person_outside_the_picture_has_finite_scores(scene: tuple[np.ndarray, np.ndarray], shift: int) -> None:
    picture, landmarks = scene
    values = scores(picture, landmarks + shift)
    assert np.isfinite(list(values.values())).all()
