"""The files of the sources of all parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.common.errors import DataError
from tasks.config.params import Raw
from tasks.extract.parts import SourcePaths


def test_a_source_is_found_in_the_folder_of_its_part_and_a_part_that_is_gone_is_named(tmp_path: Path) -> None:
    place = SourcePaths(tmp_path, Raw(folder=None, parts={"studio": "photos"}))
    assert place("studio/yoga/a.jpg") == tmp_path / "photos/yoga/a.jpg"
    with pytest.raises(DataError, match="'gone'"):
        place("gone/a.jpg")
