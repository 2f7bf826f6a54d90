"""Captions beside pictures and in a list, and that they are no sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.common.errors import UserError
from tasks.extract import captions
from tasks.extract.scan import scan


def test_captions_are_found_and_are_no_sources(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/2.png", "b/3.heic", "b/notes.txt", "b/4.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/1.txt").write_text("\ufeffone\n picture ", encoding="utf-8")
    (tmp_path / "b/4.caption").write_text(" ")
    (tmp_path / "captions.csv").write_text('file,caption\na/1.jpg,not used\nb/3.heic,"three, or so"\n')
    names = [source.path for source in scan(tmp_path).sources]
    assert names == ["a/1.jpg", "a/2.png", "b/3.heic", "b/4.jpg", "b/notes.txt"]
    assert captions.of(tmp_path, names) == {"a/1.jpg": "one picture", "b/3.heic": "three, or so"}


def test_a_list_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("name,text\na.jpg,x\n")
    with pytest.raises(UserError):
        captions.of(tmp_path, ["a.jpg"])
    (tmp_path / "captions.csv").write_bytes(b"file,caption\na.jpg,\xff\n")
    with pytest.raises(UserError):
        captions.of(tmp_path, ["a.jpg"])
