"""The files of a part and their categories: what is ignored, which folders count, and what is said about them."""

from __future__ import annotations

import os
import socket
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import UserError
from tasks.extract.scan import EntryKind, has_sources, scan, walk


def touch(folder: Path, *names: str) -> Path:
    """Make empty files in a folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def categories(folder: Path) -> dict[str, str]:
    return {source.path: source.category for source in scan(folder).sources}


def test_scan_orders_by_path_and_names_categories(tmp_path: Path) -> None:
    names = ["b/2.png", "b/deep/er/1.png", "a/z.jpg", "top.png", "a b/ü\n.png", "a/" + "n" * 251 + ".png"]
    names += [".hidden/1.png", "a/.DS_Store", "SOURCE.txt", "labels.csv", "b/2.joints.json", "a/Thumbs.db"]
    for name in names:
        path = tmp_path / "part" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "part/labels.csv").write_text("file,category\n")
    found = [(source.path, source.category) for source in scan(tmp_path / "part").sources]
    assert found == [
        ("a b/ü\n.png", "a b"),
        ("a/" + "n" * 251 + ".png", "a"),
        ("a/z.jpg", "a"),
        ("b/2.png", "b"),
        ("b/deep/er/1.png", "b"),
        ("top.png", "part"),
    ]


def test_a_missing_or_empty_folder_raises_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        scan(tmp_path / "nowhere")
    (tmp_path / "SOURCE.txt").touch()
    with pytest.raises(UserError, match="holds no file"):
        scan(tmp_path)


def test_system_files_and_folders_are_ignored(tmp_path: Path) -> None:
    touch(
        tmp_path, "yoga/a.jpg", "__MACOSX/yoga/._a.jpg", "yoga/._a.jpg", "yoga/@eaDir/a.jpg/thumb.jpg", "#recycle/b.jpg",
        "$RECYCLE.BIN/S-1-5/c.jpg", ".Trash-1000/files/d.jpg", "lost+found/e.jpg", "yoga/Desktop.ini", "yoga/ehthumbs.db",
        "yoga/Thumbs.db", "System Volume Information/f.jpg",
    )  # fmt: skip
    assert categories(tmp_path) == {"yoga/a.jpg": "yoga"}
    assert has_sources(tmp_path)
    (tmp_path / "yoga/a.jpg").unlink()
    assert not has_sources(tmp_path)


@pytest.mark.parametrize(
    ("names", "level", "expected"),
    [
        (["yoga/tree/1.jpg", "yoga/plank/2.jpg"], "yoga", ["plank", "tree"]),
        (["a/b/tree/1.jpg", "a/b/plank/2.jpg", "a/b/3.jpg"], "a/b", ["b", "plank", "tree"]),
        (["yoga/1.jpg", "yoga/2.jpg"], "yoga", ["yoga", "yoga"]),
        (["yoga/1.jpg", "dance/2.jpg"], "", ["dance", "yoga"]),
        (["yoga/tree/1.jpg", "2.jpg"], "", ["part", "yoga"]),
        (["data/TRAIN/tree/1.jpg", "data/TEST/tree/2.jpg", "data/TEST/plank/3.jpg"], "data", ["plank", "tree", "tree"]),
        (["train/1.jpg", "test/2.jpg"], "", ["test", "train"]),
    ],
)
def test_a_leading_folder_that_all_pictures_share_is_no_category(
    tmp_path: Path, names: list[str], level: str, expected: list[str]
) -> None:
    scanned = scan(touch(tmp_path / "part", *names))
    assert scanned.level == level
    assert sorted(source.category for source in scanned.sources) == expected


def test_categories_that_look_the_same_are_the_same(tmp_path: Path) -> None:
    """macOS decomposes accents in file names; labels may be written either way."""
    touch(tmp_path / "part", "Jos\u00e9/a.jpg", "Jose\u0301/b.jpg", "c.jpg")
    (tmp_path / "part/labels.csv").write_text("file,category\nc.jpg,Jose\u0301\n")
    assert {source.category for source in scan(tmp_path / "part").sources} == {"Jos\u00e9"}


def test_files_beside_the_pictures_do_not_decide_the_level(tmp_path: Path) -> None:
    found = categories(touch(tmp_path, "README.md", "annotations/1.xml", "images/tree/1.jpg", "images/plank/2.MTS"))
    assert found["images/tree/1.jpg"] == "tree" and found["images/plank/2.MTS"] == "plank"
    assert found["annotations/1.xml"] == "annotations" and found["README.md"] == tmp_path.name


def test_the_level_and_the_size_of_each_category_are_told(tmp_path: Path) -> None:
    touch(tmp_path, "yoga/tree/1.jpg", "yoga/tree/2.jpg", "yoga/plank/3.jpg")
    (line,) = scan(tmp_path).describe()
    assert "yoga/" in line and "tree 2, plank 1" in line
    touch(tmp_path, *(f"yoga/pose{i:02d}/1.jpg" for i in range(30)))
    (line,) = scan(tmp_path).describe()
    assert line.startswith("32 categories") and line.endswith("and 20 more")
    (tmp_path / "labels.csv").write_text("file,category\nyoga/tree/1.jpg,oak\n")
    labels, line = scan(tmp_path).describe()
    assert "1 of 1" in labels and line.startswith("33 categories (labels.csv and the folders in yoga/)")


def test_odd_entries_are_sources_and_the_walk_never_fails(tmp_path: Path) -> None:
    touch(tmp_path, "good.jpg")
    (tmp_path / "broken.jpg").symlink_to("gone")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "up").symlink_to("..")
    os.mkfifo(tmp_path / "pipe")
    with chdir(tmp_path), socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    kinds = {entry.path: entry.kind for entry in walk(tmp_path)}
    link, other = EntryKind.LINK, EntryKind.OTHER
    assert kinds == {
        "good.jpg": EntryKind.FILE, "broken.jpg": link, "self": link, "up": link, "pipe": other, "socket": other,
    }  # fmt: skip
    assert [source.path for source in scan(tmp_path).sources] == sorted(kinds)


def test_a_folder_that_cannot_be_listed_is_a_source_and_the_part_itself_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    real = os.scandir

    def denied(path: Path) -> Any:
        if path.name == "b":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert categories(tmp_path) == {"a/1.jpg": "a", "b": tmp_path.name}
    with pytest.raises(UserError, match="cannot be listed"):
        scan(tmp_path / "b")
