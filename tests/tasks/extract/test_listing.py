"""The listings of the parts: they follow the bytes of the files, odd entries are words, and unchanged files are not read."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tasks import paths
from tasks.common.errors import UserError
from tasks.config.data import MANNEQUIN
from tasks.config.params import Raw
from tasks.extract import content_keys, listing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A part with a picture, labels, and everything that stops DVC."""
    folder = tmp_path / "photos"
    (folder / "yoga").mkdir(parents=True)
    (folder / "yoga/a.jpg").write_bytes(b"a")
    (folder / "labels.csv").write_text("file,category\n")
    (folder / "broken").symlink_to("gone")
    (folder / "self").symlink_to("self")
    (folder / "up").symlink_to("..")
    os.mkfifo(folder / "pipe")
    (folder / "yoga/Thumbs.db").touch()
    return folder


def listed(root: Path, folder: Path) -> dict[str, str]:
    listing.update(root, Raw(folder=None, parts={"photos": str(folder)}))
    content: dict[str, str] = json.loads((root / paths.LISTINGS / "photos.json").read_text())
    return content


def test_files_are_listed_by_their_bytes_and_odd_entries_in_words(folder: Path, tmp_path: Path) -> None:
    first = listed(tmp_path, folder)
    assert set(first) == {"yoga/a.jpg", "labels.csv", "broken", "self", "up", "pipe"}
    assert first["yoga/a.jpg"] == "ca978112ca1bbdca"
    assert all(first[name].startswith("link: ") for name in ("broken", "self", "up"))
    assert first["pipe"] == "special file: not a regular file"
    (folder / "yoga/a.jpg").write_bytes(b"b")
    (folder / "broken").unlink()
    second = listed(tmp_path, folder)
    assert second["yoga/a.jpg"] != first["yoga/a.jpg"] and "broken" not in second


def test_an_unchanged_part_is_neither_read_nor_written_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time.sleep(content_keys.SETTLED_S + 0.05)
    first = listed(tmp_path, folder)
    written = (tmp_path / paths.LISTINGS / "photos.json").stat().st_mtime_ns
    monkeypatch.setattr(listing, "read_key", lambda file: pytest.fail(f"{file} was read"))
    assert listed(tmp_path, folder) == first
    assert (tmp_path / paths.LISTINGS / "photos.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"yoga/a.jpg": 3}', '{"yoga/a.jpg": ["x"]}'])
def test_a_damaged_record_is_replaced(folder: Path, tmp_path: Path, damage: str) -> None:
    first = listed(tmp_path, folder)
    for place in (paths.LISTINGS, paths.LISTING_STATE):
        (tmp_path / place / "photos.json").write_text(damage)
    assert listed(tmp_path, folder) == first


def test_the_built_in_pictures_are_not_listed_here_and_a_missing_folder_raises(tmp_path: Path) -> None:
    listing.update(tmp_path, Raw(folder=None, parts={"mannequin": MANNEQUIN}))
    assert not (tmp_path / paths.LISTINGS).exists()
    with pytest.raises(UserError, match="does not exist"):
        listing.update(tmp_path, Raw(folder=None, parts={"gone": "gone"}))
