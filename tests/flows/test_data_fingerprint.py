"""What counts as new data, and when it is announced."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import data_fingerprint, workspace
from flows.watcher import Watch
from tasks.config.params import Params, load
from tests.support.workspaces import write_params


@pytest.fixture
def params(tmp_path: Path) -> Params:
    (tmp_path / "data/raw/mannequin").mkdir(parents=True)
    (tmp_path / "data/raw/mannequin/a.png").write_text("made here")
    return load(write_params(tmp_path))


def _deliver(root: Path, part: str = "studio", text: str = "1") -> None:
    (root / "data/raw" / part / "run").mkdir(parents=True, exist_ok=True)
    (root / "data/raw" / part / "run/a.png").write_text(text)


def test_a_fingerprint_covers_parts_and_shards_but_not_the_built_in_pictures(tmp_path: Path, params: Params) -> None:
    assert data_fingerprint.fingerprint(params, tmp_path) == {}
    _deliver(tmp_path)
    (tmp_path / "data/shards").mkdir()
    (tmp_path / "data/shards/index.json").write_text("{}")
    first = data_fingerprint.fingerprint(params, tmp_path)
    assert set(first) == {"data/raw/studio", "data/shards"}
    assert data_fingerprint.fingerprint(params, tmp_path) == first
    _deliver(tmp_path, text="other")
    second = data_fingerprint.fingerprint(params, tmp_path)
    assert [name for name in first if first[name] != second[name]] == ["data/raw/studio"]


def test_pictures_outside_the_workspace_count(tmp_path: Path) -> None:
    root, outside = tmp_path / "workspace", tmp_path / "photos"
    outside.mkdir()
    (outside / "a.png").write_text("1")
    params = load(write_params(root, raw={"folder": None, "parts": {"photos": str(outside)}}))
    assert set(data_fingerprint.fingerprint(params, root)) == {str(outside)}


def test_new_data_are_announced_once_when_they_have_settled(tmp_path: Path, params: Params) -> None:
    watch = Watch()
    _deliver(tmp_path)
    assert [watch.look(params, tmp_path) for _ in range(3)] == [[], [], []]  # nothing was trained here yet
    data_fingerprint.remember(tmp_path, data_fingerprint.fingerprint(params, tmp_path))
    assert watch.look(params, tmp_path) == []
    _deliver(tmp_path, "second")
    assert watch.look(params, tmp_path) == []  # perhaps not all of it is there
    _deliver(tmp_path, "second", "more")
    assert watch.look(params, tmp_path) == []
    with workspace.alone(tmp_path):
        assert watch.look(params, tmp_path) == []  # a run is under way
    assert watch.look(params, tmp_path) == ["data/raw/second"]
    assert watch.look(params, tmp_path) == []
    _deliver(tmp_path, "second", "and more still")
    assert [watch.look(params, tmp_path) for _ in range(3)] == [[], ["data/raw/second"], []]


def test_data_that_arrive_during_a_run_are_new_afterwards(tmp_path: Path, params: Params) -> None:
    began_with = data_fingerprint.fingerprint(params, tmp_path)
    _deliver(tmp_path)
    data_fingerprint.remember(tmp_path, began_with)
    assert data_fingerprint.arrived(tmp_path, data_fingerprint.fingerprint(params, tmp_path)) == ["data/raw/studio"]
