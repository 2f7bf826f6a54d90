"""The parts of the raw data: folders become parts with names, and parts go with their folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import parts
from tasks import paths
from tasks.common.errors import DataError
from tasks.config.data import MANNEQUIN
from tasks.config.params import Params, load
from tests.support.workspaces import write_params


@pytest.fixture
def params(tmp_path: Path) -> Params:
    for folder in (MANNEQUIN, "data/raw/.hidden", "data/raw/Bob's films", "data/raw/Bob s films", "data/raw/été"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data/raw/notes.txt").touch()
    return load(write_params(tmp_path))


def _planned(root: Path, params: Params) -> Params:
    """The parameters with the parts that exist now."""
    return params.model_copy(update={"raw": parts.planned(root, params.raw)})


def test_every_folder_is_a_part_with_a_unique_name(tmp_path: Path, params: Params) -> None:
    now = _planned(tmp_path, params)
    assert now.raw.parts == {
        "mannequin": MANNEQUIN, "Bob-s-films": "data/raw/Bob s films", "Bob-s-films-2": "data/raw/Bob's films",
        "t": "data/raw/été",
    }  # fmt: skip
    assert _planned(tmp_path, now) == now


def test_a_removed_part_loses_its_poses_and_the_others_keep_their_names(tmp_path: Path, params: Params) -> None:
    now = _planned(tmp_path, params)
    for name in now.raw.parts:
        (tmp_path / paths.POSES / name).mkdir(parents=True)
    (tmp_path / "data/raw/Bob s films").rmdir()
    now = _planned(tmp_path, now)
    parts.remove_stale(tmp_path, now.raw)
    assert list(now.raw.parts) == ["mannequin", "Bob-s-films-2", "t"]
    assert sorted(path.name for path in (tmp_path / paths.POSES).iterdir()) == sorted(now.raw.parts)


def test_the_built_in_pictures_are_a_part_only_if_named(tmp_path: Path, params: Params) -> None:
    named = write_params(tmp_path, raw={"folder": "data/raw", "parts": {"t": "data/raw/été"}})
    assert MANNEQUIN not in _planned(tmp_path, load(named)).raw.parts.values()


def test_without_raw_folder_only_named_parts_count_and_missing_ones_raise(tmp_path: Path, params: Params) -> None:
    outside = {"mine": str(tmp_path / "mine")}
    named = write_params(tmp_path, raw={"folder": None, "parts": outside})
    with pytest.raises(DataError, match=r"no folder .*mine to take pictures from"):
        _planned(tmp_path, load(named))
    (tmp_path / "mine").mkdir()
    assert _planned(tmp_path, load(named)).raw.parts == outside


def test_no_part_left_raises_a_data_error(tmp_path: Path, params: Params) -> None:
    (tmp_path / "inbox").mkdir()
    named = write_params(tmp_path, raw={"folder": "inbox", "parts": {"a": "inbox/a"}})
    with pytest.raises(DataError, match=r"no folder left in .*inbox"):
        _planned(tmp_path, load(named))
