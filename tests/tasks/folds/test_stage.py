"""`train --folds`: everything is trained on, each example is held out once, and a kill changes nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tasks.__main__ import main
from tasks.common import checkpoint, files
from tasks.common.errors import UserError
from tasks.config.params import load
from tasks.dataset.shards import ShardDataset
from tasks.evaluate.memorization.copy_test import Verdict
from tasks.folds import judging, stage, trainings
from tasks.folds.judging import Judged
from tasks.train import launch
from tests.support.project import PROJECT
from tests.support.training import workspace

SHORT = {
    "poses__images": 256, "poses__checkpoint_images": 128, "poses__cooldown_images": 128, "folds__evaluations_ratio": 4.0,
    "memorization__needed_samples": 30, "memorization__planted": 100, "memorization__needed_groups": 60,
}  # fmt: skip
NAMES = [f"poses_{kind}_fold_{fold}_of_3" for kind in ("without", "only") for fold in (1, 2, 3)]


def _results(root: Path) -> dict[str, object]:
    folder = root / "reports/folds/poses"
    weights = load_file(root / "artifacts/poses_all/model.safetensors")
    told = files.read_json(folder / "folds.json")
    return {"weights": {name: value.tobytes() for name, value in weights.items()}, "told": told}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = workspace(tmp_path_factory.mktemp("folds"), **SHORT)
    assert main(["train", "poses", "--folds", "3", "--root", str(root)]) == 0
    return root


def test_a_short_training_is_evaluated_on_its_grid_with_the_other_folds_held_out(tmp_path: Path) -> None:
    root = workspace(tmp_path, **{**SHORT, "folds__evaluations_ratio": 2.0})
    params = load(root / "params.yaml")
    data = stage.everything(params, root, "poses", 3)
    with launch.device() as device:
        curve = trainings.short(params, root, "poses", params.poses, data, 1, True, device)
    # 256 images * 30 / 90 after a warm-up of 21, each evaluation at twice the images of the one before, in whole batches
    assert curve.n == 30 and curve.images == [32, 64, 96]
    model = root / ".contrapposto/folds/poses/poses_only_fold_2_of_3"
    keys = set(files.read_json(model / "trained_on.json")["keys"])
    assert keys == {key for key, fold in zip(data.dataset.keys, data.fold, strict=True) if fold == 1}
    for inside in (True, False):
        sides = [set(some.keys) for some in data.sides(1, inside)]
        assert sides[0] == keys if inside else sides[1] == keys
        assert not sides[0] & sides[1] and sides[0] | sides[1] == set(data.dataset.keys)


@pytest.mark.slow
def test_each_example_is_held_out_once_and_trained_on_at_last(root: Path) -> None:
    everything = set(ShardDataset(root / "data/shards", "train", "val", "test").keys)
    seen = {}
    for name in NAMES:
        path = root / ".contrapposto/folds/poses" / name / "trained_on.json"
        seen[name] = set(files.read_json(path)["keys"])
    for one, other in ((NAMES[k], NAMES[k + 3]) for k in range(3)):
        assert not seen[one] & seen[other] and seen[one] | seen[other] == everything
    assert set().union(*(seen[name] for name in NAMES[3:])) == everything
    assert set(files.read_json(root / "artifacts/poses_all/trained_on.json")["keys"]) == everything
    assert not (root / "artifacts/poses").exists()  # the pipeline's own model is left alone


@pytest.mark.slow
def test_the_report_says_what_was_found(root: Path) -> None:
    told = files.read_json(root / "reports/folds/poses/folds.json")
    assert [row["training"] for row in told["trainings"]] == NAMES
    assert [row["n"] for row in told["trainings"]] == [60] * 3 + [30] * 3
    assert [row["images"][-1] for row in told["trainings"]][:3] == [192] * 3  # 256 images * 60 / 90, in whole batches
    assert [row["metrics"]["heldout"] for row in told["certificates"]] == [30, 30, 30, 0]
    assert told["verdict"] in {verdict.value for verdict in Verdict} and told["images"] == 256
    assert checkpoint.about(root / "artifacts/poses_all/model.safetensors")["images"] == 256
    page = (root / "reports/folds/poses/folds.html").read_text()
    assert told["sentence"] in page and page.count("data:image/png") == 3 and "http" not in page.split("</style>")[1]
    samples = ShardDataset(root / "samples/poses_all", "samples")
    assert len(samples) == 24


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_bits(root: Path, tmp_path: Path) -> None:
    other = workspace(tmp_path / "killed", **SHORT)
    command = [sys.executable, "-m", "tasks", "train", "poses", "--folds", "3", "--root", str(other)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    for name in ("poses_without_fold_2_of_3", "poses_only_fold_1_of_3", "poses_all"):
        with (other / "log.txt").open("ab") as log:
            child = subprocess.Popen(
                command, cwd=other, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        while not list(other.glob(f".contrapposto/training/{name}/*/checkpoint-*")):
            assert child.poll() is None, (other / "log.txt").read_text()
            time.sleep(0.005)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(60)
        assert not (other / "reports/folds/poses").exists()
    assert main(["train", "poses", "--folds", "3", "--root", str(other)]) == 0
    assert _results(other) == _results(root)


@pytest.mark.slow
def test_pictures_are_trained_and_judged_on_folds_as_poses_are(tmp_path: Path) -> None:
    root = workspace(tmp_path, **{key.replace("poses", "pictures"): value for key, value in SHORT.items()})
    assert main(["train", "pictures", "--folds", "3", "--root", str(root)]) == 0
    told = files.read_json(root / "reports/folds/pictures/folds.json")
    assert [row["n"] for row in told["trainings"]] == [60] * 3 + [30] * 3
    assert [row["metrics"]["heldout"] for row in told["certificates"]] == [30, 30, 30, 0]
    assert {"aligned.intrinsic_dimension", "pixels.intrinsic_dimension"} <= told["certificates"][0]["metrics"].keys()
    everything = set(ShardDataset(root / "data/shards", "train", "val", "test").keys)
    assert set(files.read_json(root / "artifacts/pictures_all/trained_on.json")["keys"]) == everything
    samples = ShardDataset(root / "samples/pictures_all", "samples")
    assert len(samples) == 24 and samples.picture(0).shape == (16, 16, 3)
    assert (root / "reports/folds/pictures/folds.html").read_text().count("data:image/png") == 3


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    root = workspace(tmp_path, **SHORT)
    params = load(root / "params.yaml")
    for model, folds in (("poses", "2"), ("poses", "11"), ("poses", "x"), ("codec", "3")):
        with pytest.raises(UserError):
            stage.run(params, root, model, folds)
    warm = params.model_copy(update={"poses": params.poses.model_copy(update={"start": "0" * 64})})
    with pytest.raises(UserError):
        stage.run(warm, root, "poses", "3")
    assert main(["sample", "poses", "--folds", "3", "--root", str(root)]) == 2
    assert not (root / ".contrapposto/training").exists()


def test_the_worst_verdict_is_that_of_all() -> None:
    def judged(*verdicts: Verdict) -> list[Judged]:
        return [Judged("", verdict, "", {}) for verdict in verdicts]

    assert judging.overall(judged(Verdict.CLEAN, Verdict.CLEAN)) is Verdict.CLEAN
    assert judging.overall(judged(Verdict.CLEAN, Verdict.LOW_POWER, Verdict.TOO_FEW)) is Verdict.LOW_POWER
    assert judging.overall(judged(Verdict.TOO_FEW, Verdict.COPIES)) is Verdict.COPIES
