"""Five people: nothing can be measured, every stage says so, and none of them fails."""

from pathlib import Path

import pytest

from tasks import paths
from tasks.common import files
from tasks.config.params import load
from tasks.evaluate import fidelity, membership_inference, pose_accuracy
from tasks.evaluate.memorization import stage as memorization
from tasks.registry import promote
from tasks.sample import stage as sample
from tests.support.project import PROJECT
from tests.support.workspaces import write_awake, write_params, write_shards


@pytest.mark.parametrize(
    ("val", "test"), [(0, 0), pytest.param(0, 1, marks=pytest.mark.slow), pytest.param(1, 1, marks=pytest.mark.slow)]
)
def test_stages_after_training_say_why_there_is_no_number(val: int, test: int, tmp_path: Path) -> None:
    params = load(write_params(tmp_path, extract__model=str(PROJECT / "models/pose_landmarker_full.task")))
    write_shards(tmp_path, train=4, val=val, test=test)
    for name in paths.MODELS:
        write_awake(tmp_path, name)
        sample.run(params, tmp_path, name)
    for stage in (pose_accuracy, memorization, membership_inference, fidelity, promote):
        stage.run(params, tmp_path)
    verdicts = files.read_json(tmp_path / "reports/memorization/memorization.json")["verdicts"]
    assert set(verdicts.values()) == {"TOO-FEW"}
    absent = files.read_json(tmp_path / "reports/fidelity/fidelity.json")["absent"]
    reason = absent.get("poses.frechet_pose_distance") or absent["poses"]
    assert "198" in reason if val + test else "held-out" in reason
    gaps = files.read_json(tmp_path / "reports/membership_inference/membership_inference.json")["models"]
    assert all(not gap["alarm"] for gap in gaps.values())
    assert files.read_json(tmp_path / "reports/promote/promote.json")["promote"] is False
