"""Shared fixtures: a small DVC project, and one Prefect server for each test session."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from flows.private_server import Server, bypass_proxy
from flows.private_server import start as start_server
from tasks.common import log
from tasks.registry import tracking_client
from tests.support.dvc_project import GRAPH, dvc, ran
from tests.support.project import PROJECT

bypass_proxy()
log.to_stdout()  # as every command does
# Variables that `python -m tasks` and the MLflow module set for their process.
SET_BY_COMMANDS = {
    "WDS_SECURE", "DO_NOT_TRACK", "GOMP_SPINCOUNT", "CUBLAS_WORKSPACE_CONFIG", "MLFLOW_DISABLE_TELEMETRY",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION",
    # torch sets them when something is compiled, or an optimiser made, for the first time
    "TORCHINDUCTOR_CACHE_DIR", "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
    "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK",  # scikit-learn sets them when it is imported
}  # fmt: skip

# Begun first, so that no process is left alone with one of them at the end.
LONGEST = (
    "tests/test_pipeline.py", "tests/flows/test_train_poses.py", "tests/tasks/models/test_choices.py",
    "tests/diffusion_core/test_recipes.py", "tests/tasks/evaluate/memorization/test_stage.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; everything else keeps its order."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.split("::")[0], len(place)))


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in set(os.environ) - SET_BY_COMMANDS - {"PYTEST_CURRENT_TEST"}}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what is not valid Unicode, as in names of files, in captured output: pytest-xdist cannot send it to its parent."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def _environment_is_restored() -> Iterator[None]:
    """Fail a test that changes the environment: another test in the same process could depend on it."""
    before = _environment()
    yield
    assert _environment() == before


@pytest.fixture(scope="session", autouse=True)
def _mlflow_databases_are_copies_of_an_empty_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run MLflow's migrations once, and not for every workspace: they take longer than the training of a tiny model."""
    empty = tmp_path_factory.mktemp("mlflow") / "empty.db"
    create = tracking_client.create_database

    def from_copy(database: Path) -> None:
        if not empty.exists():
            create(empty)
        shutil.copyfile(empty, database)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking_client, "create_database", from_copy)
        yield


@pytest.fixture(scope="session")
def made_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DVC project that plain `dvc repro` has made. Do not change it; `workspace` is a copy."""
    root = tmp_path_factory.mktemp("made") / "workspace"
    root.mkdir()
    subprocess.run(["git", "init", "--quiet", "."], cwd=root, check=True)
    dvc(root, "init", "--quiet")
    shutil.copy(PROJECT / ".dvc/config", root / ".dvc/config")
    for name in ("params.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(PROJECT / name, root / name)
    (root / "dvc.yaml").write_text(GRAPH)
    dvc(root, "repro")
    return root


@pytest.fixture
def workspace(made_workspace: Path, tmp_path: Path) -> Path:
    """A copy of a small DVC project in which everything is up to date."""
    root = tmp_path / "workspace"
    shutil.copytree(made_workspace, root, symlinks=True)
    ran(root)
    return root


@pytest.fixture(scope="session")
def standing_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real Prefect server with all its services."""
    server = start_server(tmp_path_factory.mktemp("prefect"))
    server.wait()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def prefect_server(standing_server: Server) -> Iterator[Server]:
    """The same server; Prefect in this process uses it."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    settings = {PREFECT_API_URL: standing_server.api_url, PREFECT_HOME: standing_server.home}
    with temporary_settings(updates=settings):
        yield standing_server
