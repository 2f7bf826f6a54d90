import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_workspace import make, poses
from PIL import Image

from tasks import explain, memorization
from tasks.dataset import shards
from tasks.errors import DataError, UserError
from tasks.params import Params, load


@pytest.fixture(scope="module")
def params() -> Params:
    return load(Path(__file__).parents[1] / "params.yaml")


def report(root: Path) -> dict:
    return json.loads((root / "reports/memorization/memorization.json").read_text())


def test_clean_samples_and_copies_are_told_apart(
    tmp_path: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, 150, 30, 20, 100, 40, copied=0)
    memorization.run(params, tmp_path)
    clean = report(tmp_path)
    assert clean["verdicts"] == {"poses": "CLEAN", "pictures": "CLEAN", "pose_reuse": "CLEAN"}
    assert clean["metrics"]["pictures.planted_found"] >= 1

    make(tmp_path, 150, 30, 20, 100, 40, copied=3)
    memorization.run(params, tmp_path)
    copied = report(tmp_path)
    # The conditions of the picture samples were fresh, so that copying pictures is not mistaken for reusing poses.
    assert copied["verdicts"] == {"poses": "COPIES", "pictures": "COPIES", "pose_reuse": "CLEAN"}
    for model, view in (("poses", "as is"), ("pictures", "mirror")):
        top = copied["models"][model]["samples"][:3]
        assert {row["nearest"] for row in top} == {f"train{i:05d}" for i in range(3)}
        assert all(row["listed"] and row["view"] == view for row in top)
        assert copied["metrics"][f"{model}.copies"] in (3, 4)  # at most one false discovery
        for figure in (f"{model}_closest.png", f"{model}_ratios.png"):
            with Image.open(tmp_path / "reports/memorization" / figure) as image:
                assert image.width > 400
    assert not (tmp_path / "reports/memorization.tmp").exists()

    explain.run(params, tmp_path, "picture00001")
    told = capsys.readouterr().out
    assert "pictures: p =" in told and "on the list of copies" in told
    assert "nearest: train00001, stand, from train00001.png" in told
    assert "pose reuse: p =" in told and "not on the list" in told
    assert (tmp_path / "reports/explain/picture00001.png").is_file()
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
    found = report(tmp_path)
    assert set(found["verdicts"].values()) == {"TOO-FEW"}
    assert all(entry["sentence"].endswith(".") for entry in found["models"].values())


def empty_heldout(root: Path) -> None:
    path = root / "data/shards/index.json"
    index = json.loads(path.read_text())
    index["samples"] |= {"val": [], "test": []}
    path.write_text(json.dumps(index))


def test_missing_samples_are_the_users_to_mend(tmp_path: Path, params: Params) -> None:
    with pytest.raises(DataError, match="not a shard folder"):
        memorization.run(params, tmp_path)
    assert not (tmp_path / "reports").exists()


def test_samples_that_are_not_finite_are_an_error_not_a_verdict(tmp_path: Path, params: Params) -> None:
    make(tmp_path, 15, 3, 2, 5, 5)
    broken = poses(5, 0)
    broken[3, 7, 1] = np.nan
    rows = [
        (f"p{i}", {"pose.npy": shards.encode_pose(pose), "json": shards.encode_json({"category": "stand"})})
        for i, pose in enumerate(broken)
    ]
    shards.write(tmp_path / "samples/poses", {"samples": rows}, 10, {})
    with pytest.raises(DataError, match="Generated poses: 1 of 5 rows are not finite, the first is row 3"):
        memorization.run(params, tmp_path)
    assert not (tmp_path / "reports/memorization").exists()
