"""The folder of a DVC experiment uses what only its workspace has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import paths
from tasks.common import experiment
from tasks.config.params import load
from tasks.extract import listing
from tasks.registry import store_location
from tasks.registry.tracking import Store
from tasks.synthetic import stage as mannequin
from tests.support.project import PROJECT
from tests.support.workspaces import write_params


@pytest.fixture
def apart(tmp_path: Path) -> tuple[Path, Path]:
    """A workspace and the folder of one of its experiments, both with parameters."""
    home = tmp_path / "home"
    root = home / ".dvc/tmp/exps/tmpab12"
    write_params(home, mannequin__count=3, mannequin__size=64, raw__parts={"studio": "data/raw/studio"})
    write_params(root, mannequin__count=3, mannequin__size=64, raw__parts={"studio": "data/raw/studio"})
    return home, root


def test_the_workspace_of_a_folder(apart: tuple[Path, Path], tmp_path: Path) -> None:
    home, root = apart
    assert experiment.workspace(root) == home and experiment.is_apart(root)
    assert experiment.workspace(home) == home and not experiment.is_apart(home)
    assert experiment.workspace(tmp_path / "exps/x") == tmp_path / "exps/x"


def test_delivered_pictures_and_models_are_linked(apart: tuple[Path, Path]) -> None:
    home, root = apart
    (home / "data/raw/studio/run").mkdir(parents=True)
    (home / "data/raw/studio/run/a.txt").write_text("no picture")
    (home / "models").mkdir()
    listing.run(load(root / "params.yaml"), root)
    assert (root / "data/raw/studio").resolve() == (home / "data/raw/studio").resolve()
    assert (root / "models").resolve() == (home / "models").resolve()
    assert "run/a.txt" in (root / paths.LISTINGS / "studio.json").read_text()
    listing.run(load(home / "params.yaml"), home)
    assert not (home / "data/raw/studio").is_symlink()


def test_the_store_is_that_of_the_workspace(apart: tuple[Path, Path]) -> None:
    home, root = apart
    params = load(root / "params.yaml")
    assert store_location.database(params.tracking, root) == home / "mlflow.db"
    run = Store(params.tracking, root).start("experiment", {})
    run.artifact(root / "params.yaml")
    run.finish("FINISHED")
    assert (home / "mlflow.db").is_file() and not (root / "mlflow.db").exists()
    assert list((home / "mlruns").rglob("params.yaml")) and not (root / "mlruns").exists()


def test_mannequins_are_linked_if_the_same_code_drew_them(
    apart: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, root = apart
    mannequin.run(load(home / "params.yaml"), home)
    drawn = sorted((home / paths.MANNEQUIN).rglob("*.png"))
    mannequin.run(load(root / "params.yaml"), root)
    linked = sorted((root / paths.MANNEQUIN).rglob("*.png"))
    assert len(linked) == 3 and all(a.samefile(b) for a, b in zip(drawn, linked, strict=True))
    listings = [(one / paths.LISTINGS / "mannequin.json").read_bytes() for one in apart]
    assert listings[0] == listings[1]
    write_params(root, mannequin__count=2, mannequin__size=64)
    mannequin.run(load(root / "params.yaml"), root)
    assert len(list((root / paths.MANNEQUIN).rglob("*.png"))) == 2
    assert not any(a.samefile(b) for a in drawn for b in (root / paths.MANNEQUIN).rglob("*.png"))


@pytest.mark.slow
def test_processes_that_open_a_new_store_at_once_find_one_experiment(apart: tuple[Path, Path]) -> None:
    code = (
        "import sys; from pathlib import Path; from tasks.config.params import load; "
        "from tasks.registry.tracking import Store; "
        "root = Path(sys.argv[1]); print(Store(load(root / 'params.yaml').tracking, root).experiment)"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", code]
    started = [
        subprocess.Popen(
            [*command, str(root)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for root in (*apart, *apart)
    ]
    outputs = [process.communicate(timeout=500) for process in started]
    assert all(process.returncode == 0 for process in started), outputs
    assert len({out.split()[-1] for out, _ in outputs}) == 1
