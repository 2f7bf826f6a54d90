"""Captions and splits of a folder of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.adapt import pictures
from tasks.common.errors import DataError, UserError


def picture(path: Path, width: int = 60, height: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((height, width, 3), np.uint8)
    values[:, : width // 2] = 255
    Image.fromarray(values).save(path)


def test_a_caption_is_beside_the_picture_or_in_the_list_or_from_the_template(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "red_cat/c.png"):
        picture(tmp_path / "photos" / name)
    (tmp_path / "photos/a.txt").write_text("\ufeffa thing,\n of note ", encoding="utf-8")
    (tmp_path / "photos/captions.csv").write_text('file,caption\na.png,not used\nb.png,"one, two"\n')
    (tmp_path / "photos/broken.png").write_bytes(b"none")
    found = pictures.from_folder(tmp_path / "photos", "a photo of a {category}", 32)
    assert found.captions == ["a thing, of note", "one, two", "a photo of a red cat"]
    assert found.pictures.shape == (3, 32, 32, 3)
    assert found.pictures[0, 0, 0, 0] == 255 and found.pictures[0, 0, -1, 0] == 0  # the middle, not squeezed or cut off


def test_a_list_that_names_no_picture_and_folders_without_pictures_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        pictures.from_folder(tmp_path / "missing", "", 32)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        pictures.from_folder(tmp_path / "empty", "", 32)
    picture(tmp_path / "listed/a.png")
    for text in ("file,caption\nb.png,x\n", "name,text\na.png,x\n"):
        (tmp_path / "listed/captions.csv").write_text(text)
        with pytest.raises(UserError):
            pictures.from_folder(tmp_path / "listed", "", 32)


def test_equal_files_are_on_one_side_and_more_pictures_move_few() -> None:
    keys = [f"{i:04x}" for i in range(50)]
    train, val = pictures.split([*keys, *keys], 0.2, 0)
    assert len(val) == 20 and {i % 50 for i in train}.isdisjoint({i % 50 for i in val})
    more = pictures.split([*keys, "new"], 0.2, 0)[1]
    assert len(set(more) ^ {i for i in val if i < 50}) <= 2
    assert pictures.split(keys[:4], 0.2, 0) == ([0, 1, 2, 3], [])  # one picture would be no measurement
    assert pictures.split(keys, 0.0, 0)[1] == []
