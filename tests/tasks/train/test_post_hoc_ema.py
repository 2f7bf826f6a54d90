"""Averages of the weights whose width is chosen after the training."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_core.training import ema
from diffusion_core.training.lr_schedule import TrainConfig
from diffusion_core.training.trainer import Trainer
from tasks.common import checkpoint, files
from tasks.common.errors import DataError
from tasks.train import early_stopping, post_hoc_ema
from tasks.train.state import TrainingFolder
from tests.support.training import mlflow_runs, outputs, train_here, workspace
from tests.support.workspaces import write_params


def test_post_hoc_averages_are_those_that_would_have_been_tracked(tmp_path: Path) -> None:
    """Weights on a random walk; averages of widths 0.05 and 0.1 are stored, one of width 0.08 is tracked."""
    walk = torch.randn(400, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(0)
    kept = {width: ema.Average({"w": walk[0]}, ema.power(width)) for width in (0.05, 0.08, 0.1)}
    for step, weights in enumerate(walk, 1):
        for width, running in kept.items():
            running.update({"w": weights}, 10 * step, 10)
            if width != 0.08 and step % 20 == 0:
                name = f"power_{width:g}-{10 * step:012d}.safetensors"
                checkpoint.save(tmp_path / name, running.weights, {"average": f"power_{width:g}", "images": 10 * step})
    tracked = kept[0.08].weights["w"]
    assert np.allclose(post_hoc_ema.weights(tmp_path, 0.08)["w"], tracked, atol=0.02 * float(walk.std()))
    earlier = post_hoc_ema.weights(tmp_path, 0.08, images=2000)["w"]
    assert not np.allclose(earlier, tracked, atol=0.02 * float(walk.std()))


def test_what_all_snapshots_have_in_common_does_not_change(tmp_path: Path) -> None:
    """The least-squares shares of these few snapshots sum to 0.8; a weight that never moved must stay where it is."""
    for nimg in (1000, 2000):
        for width in (0.05, 0.1):
            name = post_hoc_ema.snapshot_file(post_hoc_ema.average_name(width), nimg)
            checkpoint.save(
                tmp_path / name, {"w": torch.full((3,), 2.0)}, {"average": f"power_{width}", "images": nimg}
            )
    average = post_hoc_ema.compute(tmp_path, [0.05, 0.1], [1000, 2000], 0.25)
    assert average.snapshots == 4 and average.error > 0.1
    assert torch.allclose(average.weights["w"], torch.full((3,), 2.0))


def test_snapshots_are_taken_where_a_multiple_is_crossed_and_at_the_end() -> None:
    config = TrainConfig(images=1000, batch=30, batch_growth=((300, 70),))
    assert post_hoc_ema.snapshot_times(config, 200, 1000) == [210, 440, 650, 860, 1000]
    assert post_hoc_ema.snapshot_times(config, 200, 440) == [210, 440]
    assert post_hoc_ema.snapshot_times(config, 5000, 1000) == [1000]


SMALL = {"poses__images": 512, "poses__checkpoint_images": 128, "poses__watch_images": 512}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training whose model is the average of a width that is not tracked."""
    root = workspace(tmp_path_factory.mktemp("kept"), **SMALL, poses__keep={"ema": 0.07})
    train_here(root)
    return root


def _model(root: Path) -> dict[str, Tensor]:
    tensors, _ = checkpoint.load(root / "artifacts/poses/model.safetensors")
    return {name: value for name, value in tensors.items() if name.startswith("weights.")}


def _distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return sum(float((one[name] - other[name]).square().sum()) for name in one) ** 0.5


def test_the_model_is_the_average_that_would_have_been_tracked(kept: Path, tmp_path: Path) -> None:
    root = workspace(tmp_path, **SMALL, poses__power_averages=[0.05, 0.07, 0.1], poses__keep="last")
    train_here(root)
    tracked = {}
    for width in (0.05, 0.07, 0.1):
        path = root / "artifacts/poses/snapshots" / post_hoc_ema.snapshot_file(f"power_{width}", 512)
        tracked[width] = {f"weights.{name}": value for name, value in checkpoint.load(path)[0].items()}
    nearest = min(_distance(tracked[0.07], tracked[width]) for width in (0.05, 0.1))
    assert _distance(_model(kept), tracked[0.07]) < 0.05 * nearest
    assert _distance(_model(kept), _model(root)) > 0.1 * nearest  # which is the average of the other kind

    told = files.read_json(kept / "artifacts/poses/training.json")
    assert told["kept"] == "The weights are their average of relative width 0.07 at image 512."
    computed = told["computed_average"]
    assert (computed["width"], computed["snapshots"]) == (0.07, 32) and 0 < computed["error"] < 0.01
    assert computed["evaluation"]["images"] == 512
    assert computed["evaluation"]["val"] != told["levels"][-1]["val"]
    assert not (kept / "artifacts/poses/snapshots").exists()  # nobody asked for them


def test_interrupted_between_snapshots_the_model_has_the_same_bits(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = workspace(tmp_path, **SMALL, poses__keep={"ema": 0.07})
    save = TrainingFolder.save_snapshot

    def interrupted(folder: TrainingFolder, average: str, weights: Mapping[str, Tensor], nimg: int) -> None:
        save(folder, average, weights, nimg)
        if nimg >= 320:  # the last checkpoint is that of 256, and the other average is not written
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingFolder, "save_snapshot", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_here(root)
    train_here(root)
    assert outputs(root) == outputs(kept)


def test_another_width_needs_no_training(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    shutil.copytree(kept, root)

    def never(trainer: Trainer) -> Any:
        raise AssertionError("it trains")

    monkeypatch.setattr(Trainer, "step", never)
    write_params(root, **SMALL, poses__keep={"ema": 0.12})
    train_here(root)
    assert _distance(_model(root), _model(kept)) > 0
    kept_widths = sorted(run.data.params["poses.keep.ema"] for run in mlflow_runs(root))
    assert kept_widths == ["0.07", "0.12"]
    write_params(root, **SMALL, poses__keep={"ema": 0.07})
    train_here(root)
    assert outputs(root) == outputs(kept)
    lost = sorted(root.glob(".contrapposto/training/poses/*/snapshots/*.safetensors"))[3]
    lost.unlink()
    with pytest.raises(DataError, match=f"{lost.name} does not exist"):
        train_here(root)


def test_an_average_is_computed_where_early_stopping_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"poses__watch_images": 256, "poses__snapshot_images": 100, "poses__power_averages": [0.05]}
    root = workspace(tmp_path, **{**SMALL, **changes}, poses__keep={"ema": 0.05})
    monkeypatch.setattr(early_stopping, "stop_reason", lambda evaluations, stop, sigmas: "Enough.")
    train_here(root)
    told = files.read_json(root / "artifacts/poses/training.json")
    assert told["stopped"] == "Enough." and told["computed_average"]["snapshots"] == 3
    names = sorted(path.name for path in (root / "artifacts/poses/snapshots").iterdir())
    assert names == [post_hoc_ema.snapshot_file("power_0.05", nimg) for nimg in (128, 224, 256)]
    final = checkpoint.load(root / "artifacts/poses/snapshots" / names[-1])[0]
    assert _distance(_model(root), {f"weights.{name}": value for name, value in final.items()}) < 1e-5
