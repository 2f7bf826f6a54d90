"""Motion, clips of pictures, poses read and samples on demand whose blocks are computed in slices: the bytes of one process."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flows import stage_inputs
from flows.slices import Slice
from tasks import paths
from tasks.__main__ import body
from tasks.common import checkpoint, files
from tasks.common.errors import DataError, UserError
from tasks.config.params import Params, load
from tasks.dataset.shards import ShardDataset
from tasks.evaluate import pose_accuracy
from tasks.models import motion_control
from tasks.models.sampler import Sampler
from tasks.registry import model_registry
from tasks.registry.tracking import Store
from tasks.sample import generate, generate_motion, generate_video, generated
from tasks.sample.motion_requests import Animator, MotionRequest
from tasks.sample.requests import Artist, Request
from tests.support import evaluation_workspace, motion_workspace, video_workspace
from tests.support.dvc_project import dvc
from tests.support.stage_slices import Engine, contents, emptied, run_in_slices
from tests.support.workspaces import write_awake, write_params, write_shards

CATEGORIES = ["walk", "wave"]
GENERATE: dict[str, Any] = {"steps": 2, "guidance": 1.0, "near": 100.0}  # every pose that is read is near enough


@pytest.fixture
def root(workspace: Path) -> Path:
    return emptied(workspace)


def _run(root: Path, task: str) -> dict[str, bytes]:
    """What is in the folders of outputs after a task in one process."""
    body(task)(load(root / "params.yaml"), root)
    return _outputs(root)


def _outputs(root: Path) -> dict[str, bytes]:
    folders = (
        paths.sample_folder(root, paths.MOTION),
        paths.sample_folder(root, paths.VIDEO),
        root / paths.POSE_ACCURACY,
    )
    made = [contents(folder) for folder in (*folders, root / paths.GENERATED) if folder.is_dir()]
    # x264's bytes for the same pictures differ from run to run on some processors; the shards and WebPs have the pictures.
    return {name: b"" if name.endswith(".mp4") else data for one in made for name, data in one.items()}


def _slices(number: int) -> dict[str, Any]:
    return {"kind": "local", "slices": number}


def test_motion_is_the_same_bytes_in_slices(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {
        "motion__run": ["motion"],
        "motion__sample__count": 7,
        "motion__sample__batch": 3,
        "motion__sample__steps": 2,
    }
    params = motion_workspace.params(root, **few)
    motion_workspace.write_untrained(root, params, CATEGORIES)
    motion_workspace.write_clips(root, CATEGORIES)
    expected = _run(root, "sample_motion")
    shutil.rmtree(paths.sample_folder(root, paths.MOTION))
    motion_workspace.params(root, engine=_slices(3), **few)
    forbidden = ((Sampler, "latents"), (motion_control, "_sampled"), (motion_control, "_plain"))
    assert run_in_slices(root, "sample_motion@motion", Engine([root]), monkeypatch, *forbidden) == 1
    assert _outputs(root) == expected and "index.json" in expected


def test_clips_of_pictures_are_the_same_bytes_in_slices(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"video__sample__batch": 3, "video__sample__steps": 2}
    params = video_workspace.params(root, **few)
    write_awake(root, "pictures")
    video_workspace.write_untrained(root, params, ["calm", "walk"])
    video_workspace.write_clips(root)
    video_workspace.write_motion(root)
    expected = _run(root, "sample_video")
    shutil.rmtree(paths.sample_folder(root, paths.VIDEO))
    video_workspace.params(root, engine=_slices(2), **few)
    assert run_in_slices(root, "sample_video@video", Engine([root]), monkeypatch, (Sampler, "draw")) == 1
    assert _outputs(root) == expected and "clips.mp4" in expected


@contextmanager
def _reader(*_: Any) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Reads the same pose from every third picture, by its pixels, and nobody from the others."""

    def read(pictures: np.ndarray) -> np.ndarray:
        poses = np.full((len(pictures), 33, 3), np.nan, np.float32)
        poses[pictures.reshape(len(pictures), -1).sum(axis=1) % 3 == 0] = evaluation_workspace.standing()
        return poses

    yield read


@contextmanager
def _no_reader(*_: Any) -> Iterator[None]:
    yield None


def test_poses_read_are_the_same_bytes_in_slices(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pose_accuracy, "pose_reader", _reader)
    monkeypatch.setattr(pose_accuracy, "BLOCK", 4)
    write_params(root)
    evaluation_workspace.make(root, 12, 4, 3, 5, 9, copied_on_demand=5)
    shutil.rmtree(root / paths.POSE_ACCURACY)
    expected = _run(root, "pose_accuracy")
    shutil.rmtree(root / paths.POSE_ACCURACY)
    write_params(root, engine=_slices(3))
    blocks: list[int] = []

    def plain(engine: Engine) -> int:
        return run_in_slices(root, "pose_accuracy", engine, monkeypatch)

    def before(piece: Slice) -> None:
        blocks.append(piece.rank)

    assert plain(Engine([root], before)) == 1 and blocks == [0, 1, 2]
    assert _outputs(root) == expected and len(expected) == 3
    with monkeypatch.context() as patched:
        patched.setattr(pose_accuracy, "pose_reader", _no_reader)
        assert plain(Engine([root], before)) == 1  # the blocks are in the store
    assert _outputs(root) == expected


def _params(root: Path, **changes: Any) -> Params:
    tiny = {f"motion__model__{key}": value for key, value in motion_workspace.TINY.items()}
    return video_workspace.params(root, **tiny, motion__sample__steps=2, **changes)


def _register(root: Path, params: Params, *models: str) -> None:
    """Make champions of models in `artifacts/`, which are promoted together."""
    store = Store(params.tracking, root)
    folders = {model: paths.model_folder(root, model) for model in models}
    numbers = {model: store.register(model, folder, paths.sha256(folder), "") for model, folder in folders.items()}
    model_registry.make_champions(store, numbers, models)


@pytest.mark.parametrize("kind", ["motion", "video"])
def test_motion_and_clips_on_demand_are_the_same_bytes_in_slices(
    root: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (generate_motion, generate_video):
        monkeypatch.setattr(module, "ROUND", 1)
    wish = {"kind": kind, "count": 4, "seconds": 0.4}
    params = _params(root, generate=wish)
    motion_workspace.write_untrained(root, params, CATEGORIES)
    _register(root, params, paths.MOTION)
    if kind == "video":
        write_awake(root, "pictures")
        video_workspace.write_untrained(root, params, CATEGORIES)
        _register(root, params, paths.VIDEO)
    expected = _run(root, "generate")
    shutil.rmtree(root / paths.GENERATED)
    _params(root, generate=wish, engine=_slices(2))
    assert run_in_slices(root, "generate", Engine([root]), monkeypatch, (Animator, "samples")) == 1
    assert _outputs(root) == expected and "generated.json" in expected
    if kind == "motion":
        request = MotionRequest(category="wave", seconds=0.4, steps=2)
        own = Animator(root / "artifacts/motion").samples(request, torch.tensor([1])).clips[0]
        np.testing.assert_allclose(ShardDataset(root / paths.GENERATED, "generated").clips()[1], own, atol=1e-4)


def _demanded(root: Path, number: int, **changes: Any) -> None:
    write_params(root, engine=_slices(number), generate={**GENERATE, "count": 10, **changes})


@pytest.fixture
def on_demand(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with champions, in which every third sample is kept, of rounds of four."""
    monkeypatch.setattr(pose_accuracy, "pose_reader", _reader)
    monkeypatch.setattr(generate, "ROUND", 4)
    _demanded(root, 0)
    write_shards(root)
    for model in paths.MODELS:
        write_awake(root, model)
    _register(root, load(root / "params.yaml"), *paths.MODELS)
    return root


def test_kept_samples_are_the_same_bytes_in_slices(
    on_demand: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = on_demand
    expected = _run(root, "generate")
    counts = files.read_json(root / paths.GENERATED / "generated.json")
    assert counts["kept"] == 10 and 20 < counts["drawn"] < 60, counts
    shutil.rmtree(root / paths.GENERATED)
    _demanded(root, 3)
    # A worker with its own folder has neither the models nor the registry.
    dvc(root, "remote", "modify", "local", "url", str(tmp_path / "remote"))
    worker = tmp_path / "worker"
    shutil.copytree(
        root,
        worker,
        symlinks=True,
        ignore=shutil.ignore_patterns("data", "artifacts", ".contrapposto", "*.db", "mlruns"),
    )
    begun: list[int] = []
    one_round = generate._round

    def counted(*arguments: Any) -> dict[str, np.ndarray]:
        begun.append(arguments[-1].start)
        return one_round(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(generate, "_round", counted)
        runs = run_in_slices(root, "generate", Engine([worker, root]), monkeypatch, (Artist, "samples"))
    assert _outputs(root) == expected
    rounds = -(-counts["drawn"] // 4)  # of the 25 that there may be
    assert runs > 1 and sorted(begun) == list(range(0, 4 * len(begun), 4)) and rounds <= len(begun) < 25
    assert not list((root / paths.SLICES).rglob("*.*"))


def test_a_run_that_was_killed_between_slices_does_only_the_others(
    on_demand: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = on_demand
    expected = _run(root, "generate")
    shutil.rmtree(root / paths.GENERATED)
    _demanded(root, 2)
    begun: list[Slice] = []

    def dies(piece: Slice) -> None:
        if piece.last and piece.rank == 1:
            raise KeyboardInterrupt
        begun.append(piece)

    with pytest.raises(KeyboardInterrupt):
        run_in_slices(root, "generate", Engine([root], dies), monkeypatch)
    assert len(begun) == 3 and not (root / paths.GENERATED).exists()
    again: list[Slice] = []
    run_in_slices(root, "generate", Engine([root], again.append), monkeypatch, (Artist, "samples"))
    assert again and not set(again) & set(begun)
    assert _outputs(root) == expected


def test_too_few_kept_samples_are_the_same_sentence_in_slices(on_demand: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _demanded(on_demand, 0, min_acceptance=0.9)
    with pytest.raises(DataError) as alone:
        _run(on_demand, "generate")
    _demanded(on_demand, 2, min_acceptance=0.9)
    with pytest.raises(DataError) as divided:
        run_in_slices(on_demand, "generate", Engine([on_demand]), monkeypatch)
    assert str(divided.value) == str(alone.value)


def test_slices_have_the_text_encoders_of_models(root: Path, tmp_path: Path) -> None:
    write_params(root)
    write_shards(root)
    for model in paths.MODELS:
        write_awake(root, model)
    path = paths.model_folder(root, "pictures") / paths.MODEL_FILE
    tensors, about = checkpoint.load(path)
    encoder = {"source": "encoder", "sha256": "0" * 64, "length": 3, "template": "a {category} one", "width": 5}
    checkpoint.save(path, tensors, {**about, "text": encoder})
    params = load(root / "params.yaml")
    _register(root, params, *paths.MODELS)
    assert not any("encoder" in name for name in stage_inputs.of(params, root, "generate").files)
    (root / "encoder/tokenizer").mkdir(parents=True)
    (root / "encoder/config.json").write_text("{}")
    (root / "encoder/tokenizer/vocab.json").write_text("{}")
    for stage in ("sample_pictures", "generate"):
        found = stage_inputs.of(params, root, stage)
        assert {"encoder/config.json", "encoder/tokenizer/vocab.json"} <= set(found.files)
    place = tmp_path / "place"
    artist = Artist(*(paths.model_folder(root, model) for model in paths.MODELS), home=place)
    with pytest.raises(UserError, match=re.escape(str(place / "encoder"))):
        artist.samples(Request(prompt="somebody", steps=2), torch.arange(1))


def test_generate_takes_models_by_their_digest(on_demand: Path) -> None:
    params = load(on_demand / "params.yaml")
    named = [f"{model}={paths.model_sha256(on_demand, model)}" for model in paths.MODELS]
    found = generated.models(params, on_demand)
    assert found == generated.models(params, on_demand, named) and set(found) == set(paths.MODELS)
    for wrong in (named[:1], [*named, "../x=" + "0" * 64], [named[0], "pictures=champion"]):
        with pytest.raises(UserError):
            generated.models(params, on_demand, wrong)
    with pytest.raises(DataError):
        generated.models(params, on_demand, [named[0], "pictures=" + "0" * 64])
