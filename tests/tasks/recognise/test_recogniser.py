"""The recogniser: right, calibrated, silent about strangers, and the same after saving."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tasks.common.errors import DataError
from tasks.common.skeleton import mirror
from tasks.config.recognition import Recognition
from tasks.recognise import features, recogniser
from tasks.recognise.recogniser import Recogniser, State
from tests.support.evaluation_workspace import standing

SETTINGS = Recognition(steps=60, calibration=0.3)


def people(raised: float, count: int, seed: int) -> np.ndarray:
    """Standing persons whose arms are raised by this many torso lengths: float32 `[n, 33, 3]`."""
    poses = np.tile(standing(), (count, 1, 1))
    poses[:, 13:23, 1] -= raised
    poses += np.random.default_rng(seed).normal(0, 0.05, poses.shape)
    return poses.astype(np.float32)


@pytest.fixture(scope="module")
def trained() -> Recogniser:
    poses = np.concatenate([people(0.0, 120, 1), people(0.6, 120, 2)])
    labels = np.repeat([0, 1], 120)
    view = recogniser.fit(features.of_poses(poses), labels, np.arange(240), 2, SETTINGS)
    return Recogniser(["down", "up"], 0.1, 0.6, {"landmarks": view})


def test_known_people_are_named_and_strangers_are_not(trained: Recogniser) -> None:
    new = features.of_poses(np.concatenate([people(0.0, 50, 3), people(0.6, 50, 4)]))
    answers = trained.answers("landmarks", new)
    assert (answers.category == np.repeat([0, 1], 50)).mean() > 0.97
    assert answers.states.count(State.KNOWN) > 85
    upside_down = people(0.0, 20, 5) * [1, -1, 1]
    strangers = trained.answers("landmarks", features.of_poses(upside_down.astype(np.float32)))
    assert strangers.states.count(State.UNKNOWN) >= 18


def test_between_two_categories_it_is_less_sure(trained: Recogniser) -> None:
    between = trained.answers("landmarks", features.of_poses(people(0.3, 50, 6)))
    named = trained.answers("landmarks", features.of_poses(people(0.0, 50, 7)))
    assert between.confidence.mean() < named.confidence.mean() - 0.02


def test_states_follow_from_confidence_and_distance() -> None:
    answers = recogniser.Answers(np.array([[3.0, 0], [0.1, 0], [3, 0]]), np.array([1.0, 1, 3]), 2.0, 0.6)
    assert answers.states == [State.KNOWN, State.UNSURE, State.UNKNOWN]
    assert answers.known.tolist() == [True, False, False]


def test_a_mirror_image_is_recognised_alike(trained: Recogniser) -> None:
    poses = people(0.6, 10, 8)
    poses[:, 13] += 0.4  # one elbow only
    one, other = (trained.answers("landmarks", features.of_poses(some)) for some in (poses, mirror(poses)))
    np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)
    np.testing.assert_allclose(one.distance, other.distance, atol=1e-4)


def test_the_mirrored_gradients_are_those_of_the_mirrored_picture() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, features.SIDE, features.SIDE, 3)).astype(np.uint8)
    as_is, flipped = features.of_pictures(pictures), features.of_pictures(pictures[:, :, ::-1])
    np.testing.assert_allclose(as_is[:, 1], flipped[:, 0], atol=1e-4)
    assert np.abs(as_is[:, 0] - as_is[:, 1]).max() > 0.1


def test_the_same_data_give_the_same_bits_and_groups_stay_together() -> None:
    poses = features.of_poses(np.concatenate([people(0.0, 40, 1), people(0.6, 40, 2)]))
    labels, groups = np.repeat([0, 1], 40), np.arange(80) // 4
    one, again = (recogniser.fit(poses, labels, groups, 2, Recognition(steps=3)) for _ in range(2))
    assert all((a == b).all() for a, b in zip(one.layers, again.layers, strict=True))
    held_back = recogniser._calibration_part(groups, Recognition())
    assert held_back.reshape(-1, 4).all(axis=1).sum() * 4 == held_back.sum() == 20


def test_the_limit_keeps_what_it_promises() -> None:
    rng = np.random.default_rng(0)
    exceeded = [rng.normal() > recogniser.conformal_limit(rng.normal(size=99), 0.1) for _ in range(4000)]
    assert np.mean(exceeded) == pytest.approx(0.1, abs=0.015)
    assert recogniser.conformal_limit(np.zeros(8), 0.1) == math.inf  # too few to promise anything


def test_a_saved_recogniser_answers_alike(trained: Recogniser, tmp_path: Path) -> None:
    recogniser.save(tmp_path / "model.safetensors", trained, {})
    loaded = recogniser.load(tmp_path / "model.safetensors")
    new = features.of_poses(people(0.0, 5, 9))
    one, other = (some.answers("landmarks", new) for some in (trained, loaded))
    assert (one.logits == other.logits).all() and one.radius == other.radius
    assert loaded.categories == ["down", "up"]


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError):
        recogniser.load(tmp_path / "model.safetensors")
