"""Reads `labels.csv` in a part's folder: the category of each file, for pictures that are not sorted into folders.

The first line names the columns. `file` is a path relative to the folder; backslashes, a leading `./` and absolute paths
below the folder are accepted. The category is in the column `category`, or in the column after `file` if there is no column of
that name. Columns are separated by commas, semicolons, tabs or bars.
"""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tasks.common.errors import UserError
from tasks.extract.source_files import Refusal, behind_dvc_link, open_regular

LABELS = "labels.csv"
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class Labels:
    """The categories by file, and what to tell the user about the rows."""

    categories: dict[str, str]
    delimiter: str
    rows: int
    matched: int
    first_unmatched: tuple[int, str] | None  # line number and file of the first row that names no file of the part

    def describe(self) -> list[str]:
        """How many rows name a file, and the first that does not."""
        line = f"{LABELS} (columns separated by {DELIMITERS[self.delimiter]}): {self.matched} of {self.rows} rows name a file"
        if self.first_unmatched is None:
            return [line]
        number, file = self.first_unmatched
        return [f"{line}; the first that does not is line {number}, {file!r}"]


def read_labels(folder: Path, names: Iterable[str], cache: Path | None = None) -> Labels | None:
    """The labels of a part with files of these names; None if it has no labels.csv.

    Raises UserError if the file cannot be read or has no column `file`.
    """
    path = folder / LABELS
    if not os.path.lexists(path):
        return None
    try:
        with open_regular(behind_dvc_link(path, cache)) as file:
            content = file.read()
    except Refusal as refusal:
        raise UserError(f"{path} cannot be read ({refusal.detail}).") from refusal
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path} is not UTF-8 text (line {line}): save it with the encoding UTF-8.") from error
    try:
        return _parse(text, folder, names)
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{path} must have a first line with the columns 'file' and 'category', separated by commas, semicolons, tabs or "
            f"bars ({error})."
        ) from error


def _parse(text: str, folder: Path, names: Iterable[str]) -> Labels:
    """Raises ValueError or csv.Error if the text is not such a table."""
    header = text.partition("\n")[0].strip()
    delimiter = next((d for d in DELIMITERS if "file" in [_column(name) for name in header.split(d)]), None)
    if delimiter is None:
        raise ValueError(f"it begins with {header[:80]!r}")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = [_column(name) for name in next(rows)]
    file_column = columns.index("file")
    category_column = columns.index("category") if "category" in columns else file_column + 1
    if category_column >= len(columns):
        raise ValueError("no column after 'file'")
    known = {_normalised(name, folder): name for name in names}
    known |= {unicodedata.normalize("NFC", name): name for name in known.values()}  # a name may hold a backslash
    categories: dict[str, str] = {}
    count = matched = 0
    first_unmatched = None
    for row in rows:
        if len(row) <= file_column or not row[file_column].strip():
            continue
        count += 1
        file = row[file_column].strip()
        name = known.get(unicodedata.normalize("NFC", file)) or known.get(_normalised(file, folder))
        if name is None:
            first_unmatched = first_unmatched or (rows.line_num, file)
            continue
        matched += 1
        if len(row) > category_column:
            categories[name] = unicodedata.normalize("NFC", row[category_column].strip())
    return Labels(categories, delimiter, count, matched, first_unmatched)


def _column(name: str) -> str:
    """The name of a column without quotes and in lower case."""
    return name.strip(' "').casefold()


def _normalised(file: str, folder: Path) -> str:
    """A path relative to the folder in the usual spelling: forward slashes, no leading `./`, composed characters."""
    path = unicodedata.normalize("NFC", file.replace("\\", "/"))
    for prefix in (f"{folder.absolute()}/", f"{folder.resolve()}/"):
        path = path.removeprefix(unicodedata.normalize("NFC", prefix))
    while path.startswith("./"):
        path = path[2:]
    return path
