"""The parts of the raw data: folders become parts with names, and parts go with their folders."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows import parts
from tasks import paths
from tasks.common.errors import DataError, UserError
from tasks.config.data import MANNEQUIN
from tasks.config.params import Params, load, set_value
from tests.support.workspaces import write_params


@pytest.fixture
def params(tmp_path: Path) -> Params:
    for folder in (MANNEQUIN, "data/raw/.hidden", "data/raw/Bob's films", "data/raw/Bob s films", "data/raw/été"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.jpg").touch()
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
    shutil.rmtree(tmp_path / "data/raw/Bob s films")
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
    with pytest.raises(DataError, match="holds no file"):
        _planned(tmp_path, load(named))
    (tmp_path / "mine/a.jpg").touch()
    assert _planned(tmp_path, load(named)).raw.parts == outside


def test_no_part_left_raises_a_data_error(tmp_path: Path, params: Params) -> None:
    (tmp_path / "inbox").mkdir()
    named = write_params(tmp_path, raw={"folder": "inbox", "parts": {"a": "inbox/a"}})
    with pytest.raises(DataError, match=r"no folder left in .*inbox"):
        _planned(tmp_path, load(named))


def test_system_folders_and_empty_folders_are_no_parts(tmp_path: Path, params: Params) -> None:
    for folder in ("__MACOSX/été", "@eaDir", "#recycle", "$RECYCLE.BIN", ".Trash-1000/files", "lost+found", "new/yoga"):
        (tmp_path / "data/raw" / folder).mkdir(parents=True)
        if folder != "new/yoga":
            (tmp_path / "data/raw" / folder / "a.jpg").touch()
    (tmp_path / "data/raw/new/Thumbs.db").touch()
    (tmp_path / "data/raw/loop").symlink_to("loop")
    (tmp_path / "data/raw/up").symlink_to("..")
    assert list(parts.current(tmp_path, params.raw)) == ["mannequin", "Bob-s-films", "Bob-s-films-2", "t"]
    (tmp_path / "data/raw/new/yoga/a.jpg").touch()
    assert "new" in parts.current(tmp_path, params.raw)


def test_an_emptied_part_is_gone(tmp_path: Path, params: Params) -> None:
    now = _planned(tmp_path, params)
    (tmp_path / "data/raw/été/a.jpg").unlink()
    assert "t" not in _planned(tmp_path, now).raw.parts


def test_what_is_not_used_in_data_raw_is_mentioned(
    tmp_path: Path, params: Params, caplog: pytest.LogCaptureFixture
) -> None:
    raw = tmp_path / "data/raw"
    for name in ("a\x1b[1m\n.jpg", "b.JPG", "X.dvc", "photos.zip"):
        (raw / name).touch()
    os.makedirs(os.fsencode(raw) + b"/\xff\xfe")
    open(os.fsencode(raw) + b"/\xff\xfe/a.jpg", "wb").close()
    logger = logging.getLogger("flows.parts")
    logger.addHandler(caplog.handler)
    try:
        parts.warn_of_unused(tmp_path, params.raw)
    finally:
        logger.removeHandler(caplog.handler)
    messages = list(dict.fromkeys(record.getMessage() for record in caplog.records))
    assert [message.split(" in ")[0] for message in messages] == [
        "a\N{REPLACEMENT CHARACTER}[1m .jpg and 1 more", "photos.zip", "\\xff\\xfe",
    ]  # fmt: skip
    assert "unpack" in messages[1] and "rename" in messages[2]


def test_a_folder_whose_name_is_not_utf8_is_no_part_and_stops_nothing(tmp_path: Path, params: Params) -> None:
    folder = os.fsencode(tmp_path / "data/raw") + b"/\xff\xfe"
    os.makedirs(folder)
    open(folder + b"/a.jpg", "wb").close()
    assert list(_planned(tmp_path, params).raw.parts) == ["mannequin", "Bob-s-films", "Bob-s-films-2", "t"]


def test_odd_names_of_parts_are_read_back_from_params(tmp_path: Path, params: Params) -> None:
    """Names that YAML takes for something else than text."""
    names = {"null", "true", "123", "1e3", "0x10", "on", "1_000", "2026-11-01"}
    for name in names:
        (tmp_path / "data/raw" / name).mkdir()
        (tmp_path / "data/raw" / name / "a.jpg").touch()
    set_value(tmp_path / "params.yaml", "raw.parts", parts.planned(tmp_path, params.raw).parts)
    assert names <= set(load(tmp_path / "params.yaml").raw.parts)
    plain = YAML(typ="safe", pure=True).load(tmp_path / "params.yaml")
    assert names <= set(plain["raw"]["parts"])  # as DVC reads it


@pytest.mark.parametrize(
    "requested", [".", "..", "/", "data", "data/raw", "data/poses", ".contrapposto", "artifacts/x"]
)
def test_a_folder_that_overlaps_with_the_workspace_is_refused(
    tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch, requested: str
) -> None:
    for folder in ("artifacts/x", "data/poses", ".contrapposto"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot be the folder of pictures"):
        parts.planned(tmp_path, params.raw, requested)


@pytest.mark.parametrize("requested", ["loop", "broken", "~nobody-of-this-name/x", "file.jpg", "empty"])
def test_what_is_no_folder_of_pictures_raises_a_data_error(
    tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch, requested: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "broken").symlink_to("gone")
    (tmp_path / "file.jpg").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="to take pictures from"):
        parts.planned(tmp_path, params.raw, requested)


def test_a_folder_of_the_users_called_mannequin_gets_another_name(tmp_path: Path, params: Params) -> None:
    folder = tmp_path / "elsewhere/mannequin"
    folder.mkdir(parents=True)
    (folder / "a.jpg").touch()
    assert parts.planned(tmp_path, params.raw, str(folder)).parts == {"mannequin-2": "elsewhere/mannequin"}
