"""The stage and the command: what is measured on held-out people, and what is said of new pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import paths
from tasks.common.errors import DataError, UserError
from tasks.common.files import read_json
from tasks.config.params import load
from tasks.dataset.shards import ShardDataset
from tasks.recognise import recognise, stage
from tasks.recognise.recogniser import State
from tasks.registry import lineage
from tests.support.workspaces import figure, picture, write_params, write_shards


def _run(root: Path, **changes: Any) -> dict[str, Any]:
    write_params(root, recognition__steps=30, **changes)
    write_shards(root, train=100, val=40, test=20)
    stage.run(load(root / paths.PARAMS), root)
    return dict(read_json(root / paths.RECOGNITION / "recognition.json"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recognised")
    _run(root)
    return root


def test_held_out_people_are_judged(root: Path) -> None:
    about = read_json(root / paths.RECOGNITION / "recognition.json")
    metrics = about["metrics"]
    for view in ("landmarks", "pixels"):
        counts = np.array(about["confusion"][view])
        assert counts.shape == (2, 4) and counts.sum() == metrics[f"{view}.people"] == 60
        named = counts[:, :2].sum() / 60
        assert metrics[f"{view}.answered"] == pytest.approx(named)
        if named:
            assert metrics[f"{view}.accuracy_answered"] == pytest.approx(np.trace(counts[:, :2]) / counts[:, :2].sum())
        assert metrics[f"{view}.accuracy_low"] < metrics[f"{view}.accuracy"] < metrics[f"{view}.accuracy_high"]
        assert (root / paths.RECOGNITION / f"{view}.png").is_file()
    assert metrics["landmarks.accuracy"] > 0.6  # calm and wild figures overlap


def test_the_people_it_was_trained_on_are_on_record(root: Path) -> None:
    keys = read_json(root / paths.RECOGNISER / lineage.FILE)["keys"]
    assert keys == sorted(ShardDataset(root / paths.SHARDS, "train").keys)


def test_what_the_command_says(root: Path) -> None:
    trained = recognise.load(root)
    poses = np.stack([figure(np.random.default_rng(i), i % 2) for i in range(4)])
    landmarks = poses[..., :2] / 5 + 0.5
    said = recognise.people(trained, picture(poses[0], 64), landmarks, poses)
    assert [set(person) for person in said] == [{"landmarks", "pixels"}] * 4
    assert all(named.category in ("calm", "wild") and 0.5 <= named.confidence <= 1 for named in said[0].values())
    assert str(recognise.Named(State.UNKNOWN, "calm", 0.9)) == "unknown"
    assert str(recognise.Named(State.UNSURE, "calm", 0.5)) == "unsure: calm 50%"


def test_without_training_the_stage_says_why(tmp_path: Path) -> None:
    about = _run(tmp_path, recognition__train=False)
    assert set(about["absent"]) == {"landmarks", "pixels"} and not about["metrics"]
    with pytest.raises(UserError):
        recognise.load(tmp_path)


def test_pictures_that_do_not_exist_are_refused(root: Path) -> None:
    with pytest.raises(UserError):
        list(recognise._files(root / "nowhere"))
    (root / "empty").mkdir()
    with pytest.raises(DataError):
        list(recognise._files(root / "empty"))
