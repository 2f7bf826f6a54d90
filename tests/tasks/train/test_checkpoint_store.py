"""Trainings whose states are in an object store: another machine continues them, with the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.common import object_store
from tasks.common.errors import UserError
from tasks.common.object_store import ObjectStore, StoreFailed
from tests.support.object_stores import s3
from tests.support.training import checkpoints, interrupted_at, log_text, outputs, train_here, workspace

IMAGES = 512


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The section `store` of params.yaml."""
    if request.param == "folder":
        yield {"checkpoints": str(tmp_path / "store")}
        return
    with s3("states", monkeypatch) as endpoint:
        yield {"checkpoints": "s3://states/here", "endpoint": endpoint}


def _workspace(root: Path, store: dict[str, str]) -> Path:
    return workspace(root, poses__images=IMAGES, store=store)


def _stored(store: dict[str, str]) -> list[str]:
    return [Path(name).name for name in ObjectStore(store["checkpoints"], store.get("endpoint")).names()]


def test_another_machine_continues_a_training_with_the_same_bits(store: dict[str, str], tmp_path: Path) -> None:
    whole = workspace(tmp_path / "whole", poses__images=IMAGES)
    train_here(whole)
    first, second = (_workspace(tmp_path / name, store) for name in ("first", "second"))
    with interrupted_at(320):
        train_here(first)
    assert [path.name for path in checkpoints(first)] == [name for name in _stored(store) if name.startswith("check")]
    assert sum(name.startswith("best-") for name in _stored(store)) == 1
    train_here(second)
    assert "fetched checkpoint-000000000256" in log_text(second) and "resuming from image 256" in log_text(second)
    assert outputs(second) == outputs(whole)
    train_here(first)  # its own last checkpoint is older: it goes on where the second machine ended
    assert f"resuming from image {IMAGES}" in log_text(first)


@pytest.mark.slow
def test_a_store_out_of_reach_stops_the_beginning_but_not_a_running_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _workspace(tmp_path / "root", {"checkpoints": str(tmp_path / "store")})

    def fail(*given: object) -> None:
        raise StoreFailed("no connection")

    with monkeypatch.context() as patched:
        patched.setattr(object_store.ObjectStore, "put", fail)
        with interrupted_at(320):
            train_here(root)
        assert "checkpoint-000000000256.safetensors is only on this machine: no connection" in log_text(root)
        patched.setattr(object_store.ObjectStore, "names", fail)
        with pytest.raises(StoreFailed):
            train_here(root)
    train_here(root)
    assert "resuming from image 256" in log_text(root) and _stored({"checkpoints": str(tmp_path / "store")})


@pytest.mark.parametrize("endpoint", [None, pytest.param("http://127.0.0.1:9", marks=pytest.mark.slow)])
def test_stores_that_do_not_work_are_user_errors(
    endpoint: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "testing")
    with pytest.raises(UserError):
        if endpoint is None:
            ObjectStore("nothing://here")
        else:
            ObjectStore("s3://none/here", endpoint).names()
