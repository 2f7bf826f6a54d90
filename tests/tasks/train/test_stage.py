"""Training: interrupted equals uninterrupted, and the number of processes changes nothing but rounding."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from mlflow import MlflowClient

from diffusion_core.training.trainer import Trainer
from tasks import paths
from tasks.common import checkpoint, files, log
from tasks.common.code_digest import code_files
from tasks.common.errors import DataError, UserError
from tasks.config.optimisation import Stop
from tasks.config.params import Poses, load
from tasks.dataset import shards
from tasks.dataset.pose_map import pose_map
from tasks.dataset.shards import ShardDataset
from tasks.models import conditioning, modality
from tasks.models.modality import Examples, Model
from tasks.train import early_stopping, launch, run_fingerprint
from tasks.train import stage as train
from tasks.train.data import ExampleDataset, digest, from_shards, in_memory
from tasks.train.evaluation import SIGMAS
from tasks.train.run_fingerprint import RunFingerprint
from tests.support.imports import OBSERVERS, closure
from tests.support.project import PROJECT
from tests.support.workspaces import write_params, write_shards


def _checkpoints(root: Path, model: str = "poses") -> list[Path]:
    """The checkpoints of all trainings in a workspace, oldest first."""
    return sorted(root.glob(f".contrapposto/training/{model}/*/checkpoint-*.safetensors"), key=lambda path: path.name)


def _start(root: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tasks", "train", "poses", *arguments, "--root", str(root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    log = (root / "log.txt").open("ab")
    return subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True)


def _train(root: Path, *arguments: str) -> None:
    """Train in this process, which spares the imports; what is printed goes to the log."""
    log.to_stdout()
    torch.set_num_threads(1)  # as many as the processes of `_start` have: sums depend on it
    with (root / "log.txt").open("a") as file, redirect_stdout(file):
        train.run(load(root / "params.yaml"), root, "poses", *arguments)


def _log(root: Path) -> str:
    return (root / "log.txt").read_text()


def _workspace(root: Path, **changes: object) -> Path:
    write_params(root, **changes)
    write_shards(root)
    return root


def _outputs(root: Path) -> tuple[bytes, bytes]:
    folder = root / "artifacts/poses"
    return (folder / "model.safetensors").read_bytes(), (folder / "training.json").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = _workspace(tmp_path_factory.mktemp("whole"))
    _train(root)
    return root


def _client(root: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def _runs(root: Path) -> list[Any]:
    return list(_client(root).search_runs([e.experiment_id for e in _client(root).search_experiments()]))


def _metric_steps(root: Path) -> dict[str, list[int]]:
    runs, client = _runs(root), _client(root)
    assert len(runs) == 1 and runs[0].info.status == "FINISHED"
    return {key: [m.step for m in client.get_metric_history(runs[0].info.run_id, key)] for key in runs[0].data.metrics}


def test_the_loss_falls(uninterrupted: Path) -> None:
    curve = [loss for _, loss in files.read_json(uninterrupted / "artifacts/poses/training.json")["loss"]]
    assert np.mean(curve[-8:]) < 0.95 * np.mean(curve[:4])


@pytest.mark.parametrize("signum", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_killed_and_run_again_gives_the_same_bits_and_one_run(
    signum: signal.Signals, uninterrupted: Path, tmp_path: Path
) -> None:
    root = _workspace(tmp_path / "killed")
    child = _start(root)
    while not _checkpoints(root):
        assert child.poll() is None, _log(root)
        time.sleep(0.005)
    time.sleep(0.05)
    os.killpg(child.pid, signum)
    assert child.wait(60) == (-signal.SIGKILL if signum == signal.SIGKILL else launch.STOPPED)
    meta = checkpoint.about(_checkpoints(root)[-1])
    assert 0 < meta["trainer"]["nimg"] < 2048
    if signum == signal.SIGTERM:  # it saved where it stood, not only where it would have anyway
        assert meta["trainer"]["nimg"] > meta["history"]["levels"][-1]["images"]
    _train(root)
    assert f"resuming from image {meta['trainer']['nimg']:,}" in _log(root)
    assert _outputs(root) == _outputs(uninterrupted)
    steps = _metric_steps(root)
    assert steps == _metric_steps(uninterrupted)
    assert all(steps[name] == sorted(set(steps[name])) for name in steps)
    assert steps["loss"] == [64 * (i + 1) for i in range(32)]


def test_checkpoints_are_rotated_and_the_best_weights_become_the_model(uninterrupted: Path) -> None:
    assert [path.stem.partition("-")[2].lstrip("0") for path in _checkpoints(uninterrupted)] == ["1792", "2048"]
    told = files.read_json(uninterrupted / "artifacts/poses/training.json")
    scores = [early_stopping.relative_loss(told["sigmas"], row["val"]) for row in told["levels"]]
    best = told["levels"][int(np.argmin(scores))]["images"]
    assert checkpoint.about(uninterrupted / "artifacts/poses/model.safetensors")["images"] == best
    assert told["kept"] == f"The weights are those of image {best}: the lowest denoising loss on held-out examples."
    assert told["stopped"] == "All 2048 images were seen."


def test_evaluations_reach_mlflow(uninterrupted: Path) -> None:
    steps = _metric_steps(uninterrupted)
    evaluated = [256 * (i + 1) for i in range(8)]
    levels = [f"{what}.sigma_{sigma}" for what in ("loss_gap", "loss_gap_auc") for sigma in SIGMAS]
    speed = [f"speed.{name}" for name in ("images_per_second", "flops_utilisation", "loader_wait")]
    for name in [*levels, *speed, "denoising_loss.train.sigma_0.1", "denoising_loss.val.sigma_0.1", "gradient.noise"]:
        assert steps[name] == evaluated, name
    client, run = _client(uninterrupted), _runs(uninterrupted)[0]
    assert 0 < run.data.metrics["speed.flops_utilisation"] < 1 and run.data.metrics["speed.loader_wait"] < 0.2
    pictures = [artifact.path for artifact in client.list_artifacts(run.info.run_id, "samples")]
    assert pictures == [f"samples/{nimg:012d}.png" for nimg in evaluated]


def test_other_parameters_are_another_training_and_say_so(uninterrupted: Path, tmp_path: Path) -> None:
    root = tmp_path / "other"
    shutil.copytree(uninterrupted, root)
    write_params(root, poses__learning_rate=1e-3, poses__images=256)
    before = _checkpoints(root)[-1]
    _train(root)
    assert "the previous training was a different one: images was 2048 and is 256 now, " in _log(root)
    assert "learning_rate was 0.003 and is 0.001 now. Its state stays in" in _log(root)
    assert before.is_file()
    with pytest.raises(UserError, match="is the checkpoint of another training: images was 2048 and is 256 now, "):
        _train(root, str(before))  # named by the user it is refused
    write_params(root)  # and going back finds it
    _train(root)
    assert _outputs(root) == _outputs(uninterrupted)


def test_a_damaged_checkpoint_is_passed_over(uninterrupted: Path, tmp_path: Path) -> None:
    root = tmp_path / "damaged"
    shutil.copytree(uninterrupted, root)
    shutil.rmtree(root / "artifacts")
    last = _checkpoints(root)[-1]
    last.write_bytes(last.read_bytes()[:-100])
    _train(root)
    assert "or it is damaged" in _log(root) and "resuming from image 1,792" in _log(root)
    assert _outputs(root) == _outputs(uninterrupted)


def _fingerprint(config: Poses, x0: torch.Tensor, cond: dict[str, torch.Tensor]) -> RunFingerprint:
    return run_fingerprint.of(config, digest(Examples(x0, cond)), held_out="none")


def test_the_fingerprint_covers_parameters_and_examples_but_not_the_number_of_ranks() -> None:
    config = load(PROJECT / "params.yaml").poses
    x0, cond = torch.zeros(4, 33, 3), {"vec:category": torch.eye(4)}
    first = _fingerprint(config, x0, cond)
    assert _fingerprint(config, x0.clone(), dict(cond)) == first
    assert _fingerprint(config.model_copy(update={"ranks": 4, "sharded": True, "microbatch": 8}), x0, cond) == first
    moved = x0.clone()
    moved[3, 32, 2] = 1e-7
    other = {"vec:category": torch.eye(4)[[0, 1, 3, 2]]}
    changed = config.model_copy(update={"learning_rate": 2e-3, "stop": Stop(converged=True)})
    others = [
        _fingerprint(config, moved, cond),
        _fingerprint(config, x0, other),
        _fingerprint(changed, x0, cond),
    ]
    assert len({run_fingerprint.digest(one) for one in [first, *others]}) == 4
    assert run_fingerprint.difference(first, others[0]) == "the training examples changed"
    assert run_fingerprint.difference(first, others[2]) == (
        "learning_rate was 0.002 and is 0.001 now, stop.converged was true and is false now"
    )


@pytest.mark.parametrize("where", ["memory", "shards"])
def test_changed_conditioning_is_another_training(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shards are the same, but the network is shown something else."""
    root = _workspace(tmp_path)
    config = load(root / "params.yaml").pictures
    train_split = ShardDataset(root / "data/shards", "train")
    dataset = ExampleDataset(train_split, config, ["calm", "wild"])

    def identity() -> str:
        return (in_memory(dataset, False, False) if where == "memory" else from_shards(dataset, False)).digest

    before = identity()
    assert identity() == before
    monkeypatch.setattr(conditioning, "pose_map", lambda *arguments: pose_map(*arguments) ** 2)
    assert identity() != before


def test_the_fingerprint_covers_the_code_that_decides_the_weights() -> None:
    """All that the training stage imports, apart from the checking of parameters and the handling of files and processes."""
    irrelevant = (
        "tasks/config/", "tasks/paths.py", "tasks/common/checkpoint.py", "tasks/common/code_digest.py",
        "tasks/common/errors.py", "tasks/common/files.py", "tasks/common/machine.py", "tasks/common/process.py",
    )  # fmt: skip
    imported = closure(PROJECT / "tasks/train/stage.py", PROJECT, OBSERVERS)
    names = {path.relative_to(PROJECT).as_posix() for path in imported}
    covered = {path.relative_to(PROJECT).as_posix() for path in code_files(run_fingerprint.CODE)}
    assert {"tasks/dataset/pose_map.py", "tasks/dataset/crop.py", "tasks/common/skeleton.py"} <= covered
    assert {name for name in names - covered if not name.startswith((*irrelevant, *OBSERVERS))} == set()


def test_held_out_examples_decide_which_weights_are_kept() -> None:
    config = load(PROJECT / "params.yaml").poses
    assert run_fingerprint.of(config, "a", "b") != run_fingerprint.of(config, "a", "c")


def test_reading_from_the_shards_ahead_changes_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    """With no memory for examples the same ones come from two processes that read them ahead."""
    root = tmp_path / "ahead"
    shutil.copytree(uninterrupted, root)
    write_params(root, poses__memory_gb=0.0, poses__workers=2, poses__images=512)
    _train(root)
    held, read = (files.read_json(r / "artifacts/poses/training.json") for r in (uninterrupted, root))
    assert read["loss"] == held["loss"][:8]
    assert [row["noise_scale"] for row in read["levels"]] == [row["noise_scale"] for row in held["levels"][:2]]


def test_a_sample_that_is_not_a_number_is_named(tmp_path: Path) -> None:
    root = _workspace(tmp_path / "planted")
    data = ShardDataset(root / "data/shards", "train")
    broken = data.poses()
    broken[7, 4, 1] = np.nan
    key, number, members = data._rows[7]
    offset, size = members["pose.npy"]
    with (root / "data/shards" / data.shards[number]["name"]).open("r+b") as file:
        file.seek(offset)
        file.write(shards.encode_pose(broken[7]))
    assert size == len(shards.encode_pose(broken[7]))
    with pytest.raises(DataError, match=f"The shards hold samples with values that are not finite: {key}."):
        _train(root)


def test_divergence_while_training_names_the_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN that comes into one picture's tensor after it was read: the run stops at the first batch that has it."""
    root = _workspace(tmp_path / "planted", pictures__images=256)
    key = ShardDataset(root / "data/shards", "train").keys[7]

    def plant(trainer: Trainer, model: Model, examples: Examples, persons: int) -> None:
        examples.x0[7, 1, 3, 5] = float("nan")

    monkeypatch.setattr(train, "_announce", plant)  # the last thing before the first step
    with pytest.raises(DataError, match=f"pictures: the loss is not finite at image .*, for {key}\\. Either"):
        train.run(load(root / "params.yaml"), root, "pictures")
    assert all(run.info.status == "FAILED" for run in _runs(root))


def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(tmp_path: Path) -> None:
    """A real one: a file system of a few pages where that is allowed, the limit of file sizes elsewhere."""
    code = (
        "import pathlib, resource, signal, sys, torch\n"
        "from tasks.common import checkpoint\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "checkpoint.save(path / 'checkpoint-1.safetensors', {'a': torch.ones(1000)}, {'n': 1})\n"
        "if sys.argv[2] == 'limit':\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "try: checkpoint.save(path / 'checkpoint-2.safetensors', {'a': torch.ones(100_000)}, {'n': 2})\n"
        "except checkpoint.NotWritten as error: print(error)\n"
        "print(checkpoint.load(path / 'checkpoint-1.safetensors')[1], sorted(p.name for p in path.iterdir()))\n"
    )
    small = tmp_path / "small"
    small.mkdir()
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True).returncode == 0
    )
    try:
        command = [sys.executable, "-c", code, str(small), "full" if mounted else "limit"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=PROJECT)
    finally:
        if mounted:
            subprocess.run(["umount", small], check=True)
    said, left = done.stdout.splitlines()
    why = "the disk is full" if mounted else "File too large"
    assert said.startswith(f"{small}/checkpoint-2.safetensors was not written: ") and why in said, done.stderr
    assert said.endswith("checkpoint-1.safetensors is intact.")
    assert left == "{'n': 1} ['checkpoint-1.safetensors']"


def test_a_model_can_start_with_the_weights_of_another(uninterrupted: Path, tmp_path: Path) -> None:
    champion = paths.model_sha256(uninterrupted, "poses")
    root = _workspace(tmp_path / "warm", poses__start=champion, poses__images=64)
    kept = root / ".contrapposto/models" / champion
    kept.mkdir(parents=True)
    shutil.copy(uninterrupted / "artifacts/poses/model.safetensors", kept)
    _train(root)
    warm, cold = (files.read_json(r / "artifacts/poses/training.json") for r in (root, uninterrupted))
    assert warm["levels"][0]["train"][3] < 0.97 * cold["levels"][0]["train"][3]
    write_params(root, poses__start=champion, poses__images=64, poses__width=32)
    with pytest.raises(UserError, match=r"is another kind of network: net\."):
        _train(root)
    write_params(root, poses__start="0" * 64)
    with pytest.raises(DataError, match=f"There is no model {'0' * 64} to start with"):
        _train(root)


def test_two_ranks_end_with_their_launcher_and_one_goes_on(tmp_path: Path) -> None:
    # bf16, which some processors multiply, rounds by more than the tolerances below.
    exact = {"poses__cpu": {"precision": "fp32"}}
    whole = _workspace(tmp_path / "whole", **exact)
    _train(whole)
    root = _workspace(tmp_path / "ranks", poses__ranks=2, **exact)
    child = _start(root)
    while not _checkpoints(root):
        assert child.poll() is None, _log(root)
        time.sleep(0.005)
    family = psutil.Process(child.pid).children(recursive=True)
    assert len(family) >= 3  # torchrun and two ranks
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    write_params(root, poses__ranks=1, **exact)
    _train(root)
    assert "resuming from image" in _log(root)
    one, two = (files.read_json(r / "artifacts/poses/training.json") for r in (whole, root))
    assert [n for n, _ in one["loss"]] == [n for n, _ in two["loss"]]
    assert np.allclose([loss for _, loss in one["loss"]], [loss for _, loss in two["loss"]], rtol=1e-3)
    weights = [checkpoint.load(r / "artifacts/poses/model.safetensors")[0] for r in (whole, root)]
    for name, value in weights[0].items():
        assert np.allclose(value, weights[1][name], atol=2e-3), name


def test_a_category_of_held_out_examples_alone_is_not_in_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _workspace(tmp_path)
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
