"""Shards in an object store: fetched when they are read, and only if their bytes are those of the index."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks import paths
from tasks.common import files
from tasks.common.errors import DataError, UserError
from tasks.common.object_store import ObjectStore
from tasks.config.params import Params, load
from tasks.dataset import remote_shards
from tasks.dataset.shards import ShardDataset
from tests.support.object_stores import s3
from tests.support.project import PROJECT
from tests.support.workspaces import write_shards


@pytest.fixture(scope="module")
def params() -> Params:
    return load(PROJECT / "params.yaml")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A workspace that has the shards."""
    write_shards(tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def store(
    request: pytest.FixtureRequest, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str]]:
    """The address of a store with a copy of them, and its endpoint."""
    if request.param == "folder":
        yield _filled(home, str(tmp_path / "store"), "")
        return
    with s3("pictures", monkeypatch) as endpoint:
        yield _filled(home, "s3://pictures/shards", endpoint)


def _filled(home: Path, url: str, endpoint: str) -> tuple[str, str]:
    for path in (home / paths.SHARDS).iterdir():
        ObjectStore(url, endpoint or None).put(path, path.name)
    return url, endpoint


def _tars(root: Path) -> set[str]:
    return {path.name for path in (root / paths.SHARDS).glob("*.tar")}


def test_tars_are_fetched_when_they_are_read(
    home: Path, store: tuple[str, str], tmp_path: Path, params: Params
) -> None:
    away = tmp_path / "away"
    remote_shards.run(params, away, *store)
    whole, some = (ShardDataset(root / paths.SHARDS, "train", "val") for root in (home, away))
    assert some.identity() == whole.identity() and list(some.keys) == list(whole.keys) and not _tars(away)
    assert some.read(0, "pose.npy") == whole.read(0, "pose.npy")
    assert _tars(away) == {"train-000000.tar"}
    again = copy.deepcopy(some._tars)  # by what pickle uses: worker processes get copies
    assert again.read(0, 0, 512) == whole._tars.read(0, 0, 512)
    some.verify()
    assert _tars(away) == _tars(home)
    remote_shards.run(params, away, *store)  # again: it may point to another store
    assert not _tars(away)


def test_damaged_tars_and_indices_are_refused(home: Path, tmp_path: Path, params: Params) -> None:
    url, _ = _filled(home, str(tmp_path / "store"), "")
    away = tmp_path / "away"
    remote_shards.run(params, away, url)
    tar = tmp_path / "store/train-000000.tar"
    content = bytearray(tar.read_bytes())
    content[1000] ^= 1
    tar.write_bytes(content)
    with pytest.raises(DataError, match=r"train-000000\.tar in .* is damaged"):
        ShardDataset(away / paths.SHARDS, "train").read(0, "json")
    assert not _tars(away)
    lines = tmp_path / "store/train.jsonl"
    lines.write_bytes(lines.read_bytes() + b"\n")
    with pytest.raises(DataError, match=r"train\.jsonl"):
        remote_shards.run(params, tmp_path / "other", url)
    assert not (tmp_path / "other" / paths.SHARDS).exists()


def test_shards_of_this_machine_are_not_replaced(home: Path, tmp_path: Path, params: Params) -> None:
    before = files.read_json(home / paths.SHARDS / "index.json")
    with pytest.raises(UserError, match="has shards already"):
        remote_shards.run(params, home, str(tmp_path))
    assert files.read_json(home / paths.SHARDS / "index.json") == before
