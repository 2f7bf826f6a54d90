import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.common.errors import DataError, UserError
from tasks.config.params import Params, load
from tasks.dataset import shards
from tasks.dataset.shards import ShardDataset
from tasks.evaluate.memorization import stage as memorization
from tasks.evaluate.memorization.positive_control import PICTURE_DISGUISES
from tasks.report import explain
from tests.support.evaluation_workspace import make, poses
from tests.support.project import PROJECT


@pytest.fixture(scope="module")
def params() -> Params:
    defaults = load(PROJECT / "params.yaml")
    return defaults.model_copy(
        update={"memorization": defaults.memorization.model_copy(update={"needed_samples": 39, "planted": 36})}
    )


def report(root: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((root / "reports/memorization/memorization.json").read_text())
    return report


def test_clean_samples_and_copies_are_told_apart(
    tmp_path: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, 150, 30, 20, 100, 40, copied=0)
    memorization.run(params, tmp_path)
    clean = report(tmp_path)
    assert clean["verdicts"] == {"poses": "CLEAN", "pictures": "CLEAN", "pose_reuse": "CLEAN"}
    assert clean["metrics"]["pictures.power"] >= 0.95 and clean["metrics"]["poses.power"] >= 0.8
    assert {row["disguise"] for row in clean["models"]["pictures"]["power"]} == set(PICTURE_DISGUISES)
    assert clean["metrics"]["pictures.share_bound"] == pytest.approx(0.09, abs=0.01)  # of 40 samples

    make(tmp_path, 150, 30, 20, 100, 40, copied=3, copied_on_demand=5)
    memorization.run(params, tmp_path)
    copied = report(tmp_path)
    # What is read in the pictures are fresh poses: copying pictures is not mistaken for reusing poses.
    expected = {"poses": "COPIES", "pictures": "COPIES", "pose_reuse": "CLEAN", "train_conditions": "COPIES"}
    assert copied["verdicts"] == expected
    assert copied["metrics"]["train_conditions.copies_fraction"] == 1.0 > copied["metrics"]["pictures.copies_fraction"]
    for model, view in (("poses", "as is"), ("pictures", "mirror")):
        top = copied["models"][model]["samples"][:3]
        assert {row["nearest"] for row in top} == {f"train{i:05d}" for i in range(3)}
        assert all(row["listed"] and row["view"] == view for row in top)
        assert copied["metrics"][f"{model}.copies"] in (3, 4, 5)  # at most two false discoveries
        for figure in (f"{model}_closest.png", f"{model}_ratios.png"):
            with Image.open(tmp_path / "reports/memorization" / figure) as image:
                assert image.width > 400
    assert not (tmp_path / "reports/memorization.tmp").exists()

    explain.run(params, tmp_path, "picture00001")
    output = capsys.readouterr().out
    assert "pictures: p =" in output and "on the list of copies" in output
    assert "nearest: train00001, stand, from train00001.png" in output
    assert "pose reuse: p =" in output and "not on the list" in output
    assert (tmp_path / "reports/explain/picture00001.png").is_file()
    explain.run(params, tmp_path, "picture00039")
    assert "pose reuse: not judged" in capsys.readouterr().out
    explain.run(params, tmp_path, "demanded00002")
    output = capsys.readouterr().out
    assert "asked to show the pose of train00000" in output and "nearest: train00002" in output
    with pytest.raises(UserError, match="There is no sample 'nobody'"):
        explain.run(params, tmp_path, "nobody")


@pytest.mark.parametrize(
    ("train", "val", "test", "samples"), [(15, 3, 2, 20), (2, 1, 1, 5), (15, 0, 0, 5), (15, 3, 2, 1), (15, 3, 2, 0)]
)
def test_too_little_data_is_a_verdict(
    tmp_path: Path, params: Params, train: int, val: int, test: int, samples: int
) -> None:
    make(tmp_path, train, max(val, 1), max(test, 1), samples, samples)
    if not val:
        empty_heldout(tmp_path)
    memorization.run(params, tmp_path)
    written = report(tmp_path)
    assert set(written["verdicts"].values()) == {"TOO-FEW"}
    assert all(entry["sentence"].endswith(".") for entry in written["models"].values())


def empty_heldout(root: Path) -> None:
    train = ShardDataset(root / "data/shards", "train")
    rows = [
        (key, {name: train.read(i, name) for name in ("png", "pose.npy", "json")}) for i, key in enumerate(train.keys)
    ]
    shards.write(root / "data/shards", {"train": rows, "val": [], "test": []}, 1000, train.about)


def test_missing_samples_are_a_data_error(tmp_path: Path, params: Params) -> None:
    with pytest.raises(DataError, match="have not run"):
        memorization.run(params, tmp_path)
    assert not (tmp_path / "reports").exists()


def write_poses(root: Path, poses: list[np.ndarray]) -> None:
    rows = [
        (f"p{i}", {"pose.npy": shards.encode_pose(pose), "json": shards.encode_json({"category": "stand"})})
        for i, pose in enumerate(poses)
    ]
    shards.write(root / "samples/poses", {"samples": rows}, 10, {})


def test_bad_samples_are_an_error_not_a_verdict(tmp_path: Path, params: Params) -> None:
    make(tmp_path, 15, 3, 2, 5, 5)
    broken = list(poses(5, 0))
    broken[3][7, 1] = np.nan
    write_poses(tmp_path, broken)
    with pytest.raises(DataError, match=r"^Generated poses: 1 of 5 rows are not finite, the first is row 3\.$"):
        memorization.run(params, tmp_path)

    broken[3] = np.zeros((17, 3))
    write_poses(tmp_path, broken)
    with pytest.raises(DataError, match=r"the pose of 'p3' has the shape \(17, 3\) and not \(33, 3\)\.$"):
        memorization.run(params, tmp_path)

    write_poses(tmp_path, list(poses(5, 0)))
    with (tmp_path / "samples/poses/samples.jsonl").open("a") as index:
        index.write('["p2",{}]\n')
    with pytest.raises(DataError, match=r"samples\.jsonl is damaged"):
        memorization.run(params, tmp_path)
    assert not (tmp_path / "reports").exists() or not list((tmp_path / "reports").rglob("*.json"))


def test_an_empty_training_set_is_a_verdict(tmp_path: Path, params: Params) -> None:
    make(tmp_path, 0, 3, 2, 5, 5)
    memorization.run(params, tmp_path)
    assert report(tmp_path)["models"]["poses"]["sentence"] == (
        "Nothing can be said about copied poses: there are no training items."
    )
