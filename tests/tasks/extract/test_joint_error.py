"""The joint error: closed forms and planted errors."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from tasks.common.skeleton import LANDMARKS, LIMBS, MIRROR, torso_length
from tasks.extract.findings import Kind
from tasks.extract.joint_error import measure
from tasks.extract.poses_table import Poses

N, WIDTH, HEIGHT = 4, 200, 100


@pytest.fixture
def truth() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [n, 33, 2] and metres [n, 33, 3]."""
    rng = np.random.default_rng(0)
    return rng.uniform(10, 90, (N, 33, 2)), rng.normal([0, 0, 4], 1, (N, 33, 3))


def measured(
    folder: Path, truth: tuple[np.ndarray, np.ndarray], pixels: np.ndarray, world: np.ndarray
) -> dict[str, float]:
    for i in range(N):
        order = np.random.default_rng(i).permutation(33)  # a truth file may list the names in any order
        text = {
            "names": [LANDMARKS[j] for j in order],
            "image": truth[0][i][order].tolist(),
            "world": truth[1][i][order].tolist(),
        }
        (folder / f"{i}.joints.json").write_text(json.dumps(text))
    landmarks = np.zeros((N, 33, 5), np.float32)
    landmarks[..., :2] = pixels / [WIDTH, HEIGHT]
    result = measure(poses(landmarks, world.astype(np.float32)), folder)
    assert result is not None and result["persons"] == N
    return result


def poses(landmarks: np.ndarray, world: np.ndarray) -> Poses:
    n = len(landmarks)
    return Poses(
        key=[str(i) for i in range(n)],
        source=[f"{i}.png" for i in range(n)],
        source_kind=[Kind.PICTURE] * n,
        category=["a"] * n,
        frame=np.zeros(n, np.int32),
        timestamp_s=np.zeros(n),
        person=np.zeros(n, np.int32),
        track=np.full(n, -1, np.int32),
        size=np.tile(np.array([WIDTH, HEIGHT], np.int32), (n, 1)),
        bbox=np.zeros((n, 4), np.float32),
        landmarks=landmarks,
        world=world,
        limb_visibility=np.ones(n, np.float32),
        person_pixels=np.zeros(n, np.float32),
        truncation=np.zeros(n, np.float32),
        sharpness=np.zeros(n, np.float32),
        exposure=np.zeros(n, np.float32),
        fingerprint=np.zeros((n, 256), np.int8),
        thumbnail=np.zeros((n, 48, 48), np.uint8),
    )


def test_translation_and_scale_in_space_are_no_error(tmp_path: Path, truth: tuple[np.ndarray, np.ndarray]) -> None:
    result = measured(tmp_path, truth, truth[0], 0.37 * truth[1] + [5, 6, 7])
    assert result["pixels_mean"] == pytest.approx(0, abs=1e-4)
    assert result["metres_mean"] == pytest.approx(0, abs=1e-5)
    assert result["within_0.2"] == 1 and result["swapped"] == 0


def test_a_shift_is_measured_in_pixels_and_torsos(tmp_path: Path, truth: tuple[np.ndarray, np.ndarray]) -> None:
    result = measured(tmp_path, truth, truth[0] + [3, 4], truth[1])
    assert result["pixels_mean"] == pytest.approx(5, rel=1e-4)
    assert result["pixels_median"] == pytest.approx(5, rel=1e-4)
    assert result["torsos_mean"] == pytest.approx((5 / torso_length(truth[0])).mean(), rel=1e-4)


def test_exchanged_sides_count_as_swapped(tmp_path: Path, truth: tuple[np.ndarray, np.ndarray]) -> None:
    pixels = truth[0].copy()
    pixels[0] = pixels[0, MIRROR]
    assert measured(tmp_path, truth, pixels, truth[1])["swapped"] == 1 / N


def test_one_wrong_joint_contributes_a_twelfth(tmp_path: Path, truth: tuple[np.ndarray, np.ndarray]) -> None:
    pixels = truth[0].copy()
    pixels[:, LIMBS[2]] += [0, 1000]
    result = measured(tmp_path, truth, pixels, truth[1])
    assert result["pixels_mean"] == pytest.approx(1000 / 12, rel=1e-4)
    assert result["within_0.5"] == pytest.approx(11 / 12)


def test_without_truth_files_there_is_no_measurement(tmp_path: Path) -> None:
    assert measure(poses(np.zeros((N, 33, 5), np.float32), np.zeros((N, 33, 3), np.float32)), tmp_path) is None


_IMPOSSIBLE = {"names": list(LANDMARKS), "image": [[0.0, 0.0]] * 33, "world": [[0.0, 0.0, 0.0]] * 33}


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"names": [], "image": [], "world": []}', '{"names": 3}', json.dumps(_IMPOSSIBLE),
        json.dumps(_IMPOSSIBLE).replace("0.0", "NaN"),
    ],
)  # fmt: skip
def test_a_truth_file_that_cannot_be_used_is_named_and_the_others_count(
    tmp_path: Path, text: str, truth: tuple[np.ndarray, np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    """Another program's file may have this name: it does not stop the extraction of its part."""
    assert measured(tmp_path, truth, *truth)["persons"] == N
    (tmp_path / "0.joints.json").write_text(text)
    landmarks = np.zeros((N, 33, 5), np.float32)
    logger = logging.getLogger("tasks.extract.joint_error")
    logger.addHandler(caplog.handler)
    try:
        errors = measure(poses(landmarks, truth[1].astype(np.float32)), tmp_path)
    finally:
        logger.removeHandler(caplog.handler)
    assert errors is not None and errors["persons"] == N - 1 and all(map(np.isfinite, errors.values()))
    assert "0.joints.json does not hold true joints" in caplog.text
