"""The real DVC on the project's own dvc.yaml: which change makes which stage stale, and what metrics and plots print."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks.common import files
from tests.support.dvc_project import dvc
from tests.support.project import PROJECT
from tests.support.workspaces import write_params

OBSERVING = {"dataset_card", "report"}  # they draw, and do nothing else
TRAINING = {"train_poses", "train_pictures"}
FIGURES = {"poses.frechet_distance": 0.25, "poses.memorization": "CLEAN"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's code and graph with placeholders for all outputs, accepted by DVC as they are."""
    root = tmp_path_factory.mktemp("project")
    for name in ("tasks", "diffusion_core", ".dvc"):
        shutil.copytree(
            PROJECT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "cache", "tmp", "*.local")
        )
    for name in ("dvc.yaml", "forgotten.json", ".gitignore", ".dvcignore"):
        if (PROJECT / name).is_file():
            shutil.copyfile(PROJECT / name, root / name)
    write_params(root)
    subprocess.run(["git", "init", "--quiet", root], check=True)
    for path in _outputs(root):
        if Path(path).suffix:
            files.write_bytes(root / path, b"file")
        else:
            files.write_bytes(root / path / "placeholder", path.encode())
    files.write_bytes(root / "models/pose_landmarker_full.task", b"model")
    files.write_json(root / "reports/summary/metrics.json", FIGURES)
    for model in ("poses", "pictures"):
        files.write_bytes(root / f"artifacts/{model}/loss.csv", b"images,loss\n100,2.5\n200,1.5\n")
        files.write_bytes(root / f"artifacts/{model}/denoising_loss.csv", b"images,train,heldout\n100,0.5,0.625\n")
    dvc(root, "commit", "--force", "--quiet")
    assert _stale(root) == set()
    return root


def _outputs(root: Path) -> list[str]:
    """The paths that the stages of dvc.yaml write, for the built-in part."""
    graph: dict[str, Any] = YAML(typ="safe").load((root / "dvc.yaml").read_text())["stages"]
    outs = [out for entry in graph.values() for out in entry.get("do", entry)["outs"]]
    return [next(iter(out)) if isinstance(out, dict) else out.replace("${key}", "mannequin") for out in outs]


def _stale(root: Path) -> set[str]:
    """The stages that DVC would run again because of their own code or parameters."""
    graph: dict[str, Any] = YAML(typ="safe").load((root / "dvc.yaml").read_text())["stages"]
    always = {name for name, entry in graph.items() if entry.get("always_changed")}
    return set(json.loads(dvc(root, "status", "--json"))) - always


@contextmanager
def _replaced(path: Path, old: str, new: str) -> Iterator[None]:
    """The file with other text for as long as this lasts."""
    before = path.read_bytes()
    text = before.decode()
    assert old in text
    path.write_text(text.replace(old, new))
    try:
        yield
    finally:
        path.write_bytes(before)


def test_recolouring_a_plot_makes_only_the_pages_stale(project: Path) -> None:
    with _replaced(project / "tasks/plots/colours.py", "(213, 94, 0)", "(200, 0, 0)"):
        assert _stale(project) == OBSERVING


def test_renaming_an_mlflow_tag_makes_no_training_stale(project: Path) -> None:
    with _replaced(project / "tasks/registry/tracking.py", '"contrapposto.', '"renamed.'):
        assert _stale(project) == {"promote"}


def test_changing_a_loss_makes_both_trainings_stale(project: Path) -> None:
    with _replaced(project / "diffusion_core/losses.py", "return", "return 2 *"):
        stale = _stale(project)
    assert stale >= TRAINING
    assert not stale & {"mannequin", "extract@mannequin", "curate", "shard"}


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (("sample", "poses"), "sampler", "heun"),
        (("sample", "pictures"), "guidance", 1.5),
        (("sample",), "train_conditions", 9),
    ],
)
def test_how_models_are_sampled_makes_no_training_stale(
    project: Path, section: tuple[str, ...], key: str, value: object
) -> None:
    with _parameter(project, section, key, value):
        stale = _stale(project)
    sampled = "sample_poses" if "poses" in section else "sample_pictures"
    assert sampled in stale and not stale & (TRAINING | {"train_codec", "mannequin", "curate", "shard"})


@pytest.mark.parametrize(
    ("section", "key", "value", "judged"),
    [
        (("memorization",), "level", 0.02, "memorization"),
        (("fidelity",), "vgg", {"source": "vgg.pth", "sha256": "0" * 64}, "fidelity"),
        (("retrain",), "worse_category", 0.25, "promote"),
    ],
)
def test_how_models_are_judged_makes_no_sampling_stale(
    project: Path, section: tuple[str, ...], key: str, value: object, judged: str
) -> None:
    with _parameter(project, section, key, value):
        stale = _stale(project)
    assert judged in stale and not stale & (TRAINING | {"sample_poses", "sample_pictures"})


@pytest.mark.parametrize(("model", "key", "value"), [("poses", "recipe", "ddpm"), ("pictures", "loss", "l1")])
def test_how_a_model_is_trained_makes_its_training_stale_and_not_the_other(
    project: Path, model: str, key: str, value: object
) -> None:
    with _parameter(project, (model,), key, value):
        assert _stale(project) & TRAINING == {f"train_{model}"}


@contextmanager
def _parameter(root: Path, section: tuple[str, ...], key: str, value: object) -> Iterator[None]:
    """params.yaml with another value of a key for as long as this lasts."""
    path = root / "params.yaml"
    before = path.read_bytes()
    yaml = YAML(typ="safe", pure=True)
    node = params = yaml.load(before.decode())
    for name in section:
        node = node[name]
    assert node[key] != value
    node[key] = value
    with path.open("w") as file:
        yaml.dump(params, file)
    try:
        yield
    finally:
        path.write_bytes(before)


def test_metrics_are_declared(project: Path) -> None:
    shown = json.loads(dvc(project, "metrics", "show", "--json"))
    assert shown[""]["data"] == {"reports/summary/metrics.json": {"data": FIGURES}}


def test_curves_are_drawn_of_both_models(project: Path) -> None:
    plots = json.loads(dvc(project, "plots", "show", "--json", "--split"))["data"]
    points = plots["training loss"][0]["anchor_definitions"]["<DVC_METRIC_DATA>"]
    assert [(point["filename"], point["images"], point["loss"]) for point in points] == [
        (f"{model}/loss.csv", *values) for model in ("poses", "pictures") for values in (("100", "2.5"), ("200", "1.5"))
    ]
    points = plots["denoising loss of poses"][0]["anchor_definitions"]["<DVC_METRIC_DATA>"]
    assert {(point["field"], point["dvc_inferred_y_value"]) for point in points} == {
        ("train", "0.5"),
        ("heldout", "0.625"),
    }
