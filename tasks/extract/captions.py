"""Captions of pictures: the text in `NAME.txt` beside a picture `NAME.jpg`, or else its line in `captions.csv` in the folder.

`captions.csv` has the columns `file` (a path relative to the folder) and `caption`.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

from tasks.common.errors import UserError
from tasks.extract.source_files import Refusal, behind_dvc_link, open_regular, printable

CAPTIONS = "captions.csv"
SUFFIXES = (".txt", ".caption")


def of(folder: Path, names: Iterable[str], cache: Path | None = None) -> dict[str, str]:
    """The captions of pictures with these names (paths relative to the folder), by name, without those that have none.

    Raises UserError if a file of captions cannot be read or has other columns.
    """
    listed = in_list(folder, cache)
    captions = {}
    for name in names:
        caption = beside(folder / name, cache) or listed.get(printable(name))
        if caption:
            captions[name] = caption
    return captions


def beside(path: Path, cache: Path | None = None) -> str | None:
    """The caption in the text file beside a picture; None without one."""
    for suffix in SUFFIXES:
        other = path.with_suffix(suffix)
        if other != path and os.path.lexists(other):
            return _one_line(_text(other, cache)) or None
    return None


def in_list(folder: Path, cache: Path | None = None) -> dict[str, str]:
    """The captions in captions.csv by file name; empty without the file."""
    path = folder / CAPTIONS
    if not os.path.lexists(path):
        return {}
    reader = csv.DictReader(io.StringIO(_text(path, cache), newline=""))
    if not {"file", "caption"} <= set(reader.fieldnames or ()):
        raise UserError(f"{path} must have the columns file and caption.")
    return {row["file"]: _one_line(row["caption"] or "") for row in reader}


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _text(path: Path, cache: Path | None) -> str:
    try:
        with open_regular(behind_dvc_link(path, cache)) as file:
            return file.read().decode("utf-8-sig")
    except (Refusal, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}.") from error
