"""Training: interrupted equals uninterrupted, and the number of processes changes nothing but rounding."""

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from diffusion_core.training.trainer import Trainer
from tasks import paths
from tasks.common import checkpoint, files
from tasks.common.errors import DataError, UserError
from tasks.config.params import Poses, load
from tasks.dataset import shards
from tasks.dataset.shard_index import SplitIndex
from tasks.dataset.shards import ShardDataset
from tasks.models import modality
from tasks.models.inputs import Examples
from tasks.models.modality import Model
from tasks.train import early_stopping, launch
from tasks.train import stage as train
from tasks.train.evaluation import SIGMAS
from tests.support.training import (
    checkpoints,
    log_text,
    metric_steps,
    mlflow_client,
    mlflow_runs,
    outputs,
    start_training,
    train_here,
    workspace,
)
from tests.support.workspaces import write_params


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = workspace(tmp_path_factory.mktemp("whole"))
    train_here(root)
    return root


def test_the_loss_falls(uninterrupted: Path) -> None:
    curve = [loss for _, loss in files.read_json(uninterrupted / "artifacts/poses/training.json")["loss"]]
    assert np.mean(curve[-8:]) < 0.95 * np.mean(curve[:4])


@pytest.mark.parametrize("signum", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_killed_and_run_again_gives_the_same_bits_and_one_run(
    signum: signal.Signals, uninterrupted: Path, tmp_path: Path
) -> None:
    root = workspace(tmp_path / "killed")
    child = start_training(root)
    while not checkpoints(root):
        assert child.poll() is None, log_text(root)
        time.sleep(0.005)
    time.sleep(0.05)
    os.killpg(child.pid, signum)
    assert child.wait(60) == (-signal.SIGKILL if signum == signal.SIGKILL else launch.STOPPED)
    meta = checkpoint.about(checkpoints(root)[-1])
    assert 0 < meta["trainer"]["nimg"] < 2048
    if signum == signal.SIGTERM:  # it saved where it stood, not only where it would have anyway
        assert meta["trainer"]["nimg"] > meta["history"]["evaluations"][-1]["images"]
    train_here(root)
    assert f"resuming from image {meta['trainer']['nimg']:,}" in log_text(root)
    assert outputs(root) == outputs(uninterrupted)
    steps = metric_steps(root)
    assert steps == metric_steps(uninterrupted)
    assert all(steps[name] == sorted(set(steps[name])) for name in steps)
    assert steps["loss"] == [64 * (i + 1) for i in range(32)]


def test_checkpoints_are_rotated_and_the_best_weights_become_the_model(uninterrupted: Path) -> None:
    assert [path.stem.partition("-")[2].lstrip("0") for path in checkpoints(uninterrupted)] == ["1792", "2048"]
    told = files.read_json(uninterrupted / "artifacts/poses/training.json")
    scores = [early_stopping.relative_loss(told["sigmas"], row["val"]) for row in told["levels"]]
    best = told["levels"][int(np.argmin(scores))]["images"]
    assert checkpoint.about(uninterrupted / "artifacts/poses/model.safetensors")["images"] == best
    assert told["kept"] == f"The weights are those of image {best}: the lowest denoising loss on held-out examples."
    assert told["stopped"] == "All 2048 images were seen."


def test_evaluations_reach_mlflow(uninterrupted: Path) -> None:
    steps = metric_steps(uninterrupted)
    evaluated = [256 * (i + 1) for i in range(8)]
    levels = [f"{what}.sigma_{sigma}" for what in ("loss_gap", "loss_gap_auc") for sigma in SIGMAS]
    speed = [f"speed.{name}" for name in ("images_per_second", "flops_utilisation", "loader_wait")]
    for name in [*levels, *speed, "denoising_loss.train.sigma_0.1", "denoising_loss.val.sigma_0.1", "gradient.noise"]:
        assert steps[name] == evaluated, name
    client, run = mlflow_client(uninterrupted), mlflow_runs(uninterrupted)[0]
    assert 0 < run.data.metrics["speed.flops_utilisation"] < 1 and run.data.metrics["speed.loader_wait"] < 0.2
    pictures = [artifact.path for artifact in client.list_artifacts(run.info.run_id, "samples")]
    assert pictures == [f"samples/{nimg:012d}.png" for nimg in evaluated]


def test_other_parameters_are_another_training_and_say_so(uninterrupted: Path, tmp_path: Path) -> None:
    root = tmp_path / "other"
    shutil.copytree(uninterrupted, root)
    write_params(root, poses__learning_rate=1e-3, poses__images=256)
    before = checkpoints(root)[-1]
    train_here(root)
    assert "the previous training was a different one: images was 2048 and is 256 now, " in log_text(root)
    assert "learning_rate was 0.003 and is 0.001 now. Its state stays in" in log_text(root)
    assert before.is_file()
    with pytest.raises(UserError, match="is the checkpoint of another training: images was 2048 and is 256 now, "):
        train_here(root, str(before))  # named by the user it is refused
    write_params(root)  # and going back finds it
    train_here(root)
    assert outputs(root) == outputs(uninterrupted)


def test_a_damaged_checkpoint_is_passed_over(uninterrupted: Path, tmp_path: Path) -> None:
    root = tmp_path / "damaged"
    shutil.copytree(uninterrupted, root)
    shutil.rmtree(root / "artifacts")
    last = checkpoints(root)[-1]
    last.write_bytes(last.read_bytes()[:-100])
    train_here(root)
    assert "or it is damaged" in log_text(root) and "resuming from image 1,792" in log_text(root)
    assert outputs(root) == outputs(uninterrupted)


def test_reading_from_the_shards_ahead_changes_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    """With no memory for examples the same ones come from two processes that read them ahead."""
    root = tmp_path / "ahead"
    shutil.copytree(uninterrupted, root)
    write_params(root, poses__memory_gb=0.0, poses__workers=2, poses__images=512)
    train_here(root)
    held, read = (files.read_json(r / "artifacts/poses/training.json") for r in (uninterrupted, root))
    assert read["loss"] == held["loss"][:8]
    assert [row["noise_scale"] for row in read["levels"]] == [row["noise_scale"] for row in held["levels"][:2]]


def test_a_sample_that_is_not_a_number_is_named(tmp_path: Path) -> None:
    root = workspace(tmp_path / "planted")
    data = ShardDataset(root / "data/shards", "train")
    broken = data.poses()
    broken[7, 4, 1] = np.nan
    key, members = SplitIndex(root / "data/shards", "train", len(data)).row(7)
    offset, size = members["pose.npy"]
    with (root / "data/shards/train-000000.tar").open("r+b") as file:
        file.seek(offset)
        file.write(shards.encode_pose(broken[7]))
    assert size == len(shards.encode_pose(broken[7]))
    with pytest.raises(DataError, match=f"The shards hold samples with values that are not finite: {key}."):
        train_here(root)


def test_divergence_while_training_names_the_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN that comes into one picture's tensor after it was read: the run stops at the first batch that has it."""
    root = workspace(tmp_path / "planted", pictures__images=256)
    key = ShardDataset(root / "data/shards", "train").keys[7]

    def plant(trainer: Trainer, model: Model, examples: Examples, persons: int) -> None:
        examples.x0[7, 1, 3, 5] = float("nan")

    monkeypatch.setattr(train, "_announce", plant)  # the last thing before the first step
    with pytest.raises(DataError, match=f"pictures: the loss is not finite at image .*, for {key}\\. Either"):
        train.run(load(root / "params.yaml"), root, "pictures")
    assert all(run.info.status == "FAILED" for run in mlflow_runs(root))


def test_a_model_can_start_with_the_weights_of_another(uninterrupted: Path, tmp_path: Path) -> None:
    champion = paths.model_sha256(uninterrupted, "poses")
    root = workspace(tmp_path / "warm", poses__start=champion, poses__images=64)
    kept = root / ".contrapposto/models" / champion
    kept.mkdir(parents=True)
    shutil.copy(uninterrupted / "artifacts/poses/model.safetensors", kept)
    train_here(root)
    warm, cold = (files.read_json(r / "artifacts/poses/training.json") for r in (root, uninterrupted))
    assert warm["levels"][0]["train"][3] < 0.97 * cold["levels"][0]["train"][3]
    write_params(root, poses__start=champion, poses__images=64, poses__width=32)
    with pytest.raises(UserError, match=r"is another kind of network: net\."):
        train_here(root)
    write_params(root, poses__start="0" * 64)
    with pytest.raises(DataError, match=f"There is no model {'0' * 64} to start with"):
        train_here(root)


@pytest.mark.slow
def test_two_ranks_end_with_their_launcher_and_one_goes_on(tmp_path: Path) -> None:
    # bf16, which some processors multiply, rounds by more than the tolerances below.
    exact = {"poses__cpu": {"precision": "fp32"}}
    whole = workspace(tmp_path / "whole", **exact)
    train_here(whole)
    root = workspace(tmp_path / "ranks", poses__ranks=2, **exact)
    child = start_training(root)
    while not checkpoints(root):
        assert child.poll() is None, log_text(root)
        time.sleep(0.005)
    family = psutil.Process(child.pid).children(recursive=True)
    assert len(family) >= 3  # torchrun and two ranks
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    write_params(root, poses__ranks=1, **exact)
    train_here(root)
    assert "resuming from image" in log_text(root)
    one, two = (files.read_json(r / "artifacts/poses/training.json") for r in (whole, root))
    assert [n for n, _ in one["loss"]] == [n for n, _ in two["loss"]]
    assert np.allclose([loss for _, loss in one["loss"]], [loss for _, loss in two["loss"]], rtol=1e-3)
    weights = [checkpoint.load(r / "artifacts/poses/model.safetensors")[0] for r in (whole, root)]
    for name, value in weights[0].items():
        assert np.allclose(value, weights[1][name], atol=2e-3), name


def test_a_category_of_held_out_examples_alone_is_not_in_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = workspace(tmp_path)
    splits = {}
    for split in ("train", "val"):
        dataset = ShardDataset(root / "data/shards", split)
        extra = {"category": "rare"} if split == "val" else {}
        splits[split] = [
            (key, {"pose.npy": dataset.read(i, "pose.npy"), "json": shards.encode_json({**dataset.meta(i), **extra})})
            for i, key in enumerate(dataset.keys)
        ]
    shards.write(root / "data/shards", splits, 50, {**dataset.about, "categories": ["calm", "rare", "wild"]})
    built: list[list[str]] = []

    def build(name: str, config: Poses, categories: list[str], *_: Any) -> None:
        built.append(categories)
        raise KeyboardInterrupt

    monkeypatch.setattr(modality, "build", build)
    params = load(root / "params.yaml")
    with pytest.raises(KeyboardInterrupt):
        train._train(params, root, "poses", params.poses, torch.device("cpu"), None)
    assert built == [["calm", "wild"]]
