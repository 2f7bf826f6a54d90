"""The certificate of real models: COPIES where thirty people were learned by heart, CLEAN for the default models."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.common.files import read_json
from tasks.config.params import load
from tasks.evaluate import membership_inference
from tasks.evaluate.memorization import stage as memorization
from tasks.sample import stage as sample
from tasks.train import stage as train
from tests.support.evaluation_workspace import make
from tests.support.project import PROJECT
from tests.support.workspaces import write_params


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_model_trained_long_on_thirty_people_is_caught(tmp_path: Path) -> None:
    make(tmp_path, 21, 6, 3, 1, 1)
    path = write_params(
        tmp_path,
        poses__width=64,
        poses__depth=3,
        poses__images=80_000,
        poses__batch=64,
        poses__learning_rate=2e-3,
        poses__ema_halflife_images=2000,
        poses__warmup_images=1000,
        poses__checkpoint_images=20_000,
        poses__mirror=False,
        poses__keep="last",  # the best weights on held-out examples would be those before it memorized
        sample__poses__count=200,
        sample__poses__steps=18,
        sample__poses__batch=200,
    )
    params = load(path)
    for model in ("poses", "pictures"):
        train.run(params, tmp_path, model)
        sample.run(params, tmp_path, model)
    memorization.run(params, tmp_path)
    found = read_json(tmp_path / "reports/memorization/memorization.json")
    assert found["verdicts"]["poses"] == "COPIES", found["models"]["poses"]["sentence"]
    assert found["metrics"]["poses.originals_hit_in_train"] > 10
    assert found["verdicts"]["pictures"] == "TOO-FEW"  # trained for a moment only: nothing is learned, nor copied
    membership_inference.run(params, tmp_path)
    gap = read_json(tmp_path / "reports/membership_inference/membership_inference.json")["models"]["poses"]
    assert gap["alarm"], gap["sentence"]


@pytest.mark.slow
@pytest.mark.timeout(5000)
def test_the_default_models_are_clean(tmp_path: Path) -> None:
    """The pipeline as it comes, up to the certificate: ten minutes on two idle cores."""
    shutil.copyfile(PROJECT / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "models").symlink_to(PROJECT / "models")
    stages = [
        "mannequin",
        *(f"extract {part}" for part in load(tmp_path / "params.yaml").raw.parts),
        "curate",
        "shard",
        "train poses",
        "train codec",
        "train pictures",
        "sample poses",
        "sample pictures",
    ]
    for stage in (*stages, "pose_accuracy", "memorization"):
        command = [sys.executable, "-m", "tasks", *stage.split(), "--root", str(tmp_path)]
        subprocess.run(command, cwd=PROJECT, check=True)
    found = read_json(tmp_path / "reports/memorization/memorization.json")
    for model in ("poses", "pictures"):
        assert found["verdicts"][model] == "CLEAN", found["models"][model]["sentence"]
        assert found["metrics"][f"{model}.power"] >= 0.9
