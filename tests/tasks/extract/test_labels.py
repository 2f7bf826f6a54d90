"""labels.csv: which spellings of a file are accepted, and what is said about rows that match nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.common.errors import UserError
from tasks.extract.labels import Labels, read_labels
from tasks.extract.scan import scan

NAMES = ["images/a.png", "images/b.png", "c.png"]


def labels_of(folder: Path, content: str | bytes) -> Labels:
    (folder / "labels.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    labels = read_labels(folder, NAMES)
    assert labels is not None
    return labels


def test_labels_name_the_categories_of_files(tmp_path: Path) -> None:
    for name in ("images/a.png", "images/b.png", "images/c.png", "d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "labels.csv").write_text(
        "file,form,width\nimages/a.png,lunge,320\nimages/b.png, squat ,320\nd.png,,1\n"
    )
    own = tmp_path.name
    assert [s.category for s in scan(tmp_path).sources] == [own, "lunge", "squat", "images"]
    (tmp_path / "labels.csv").write_text("\ufefffile,width,category\nimages/a.png,320,lunge\n")
    assert [s.category for s in scan(tmp_path).sources][1] == "lunge"


@pytest.mark.parametrize(
    "content", [b"", b"name,category\n", b"file\n", b"file,category\n\xff\xfe,x\n", b'file,c\n"a' + b"b" * 200_000]
)
def test_malformed_labels_raise_a_user_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"labels\.csv"):
        scan(tmp_path)


def test_another_encoding_is_named_as_the_problem(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labels\.csv is not UTF-8 text \(line 3\)"):
        labels_of(tmp_path, "file,category\na,b\nc.png,Übung\n".encode("latin-1"))


def test_capital_letters_in_the_names_of_columns_do_not_matter(tmp_path: Path) -> None:
    assert labels_of(tmp_path, "File,Width,Category\nc.png,3,tree\n").categories == {"c.png": "tree"}


@pytest.mark.parametrize("file", ["images\\a.png", "./images/a.png", ".\\images\\a.png", "{folder}/images/a.png"])
def test_usual_spellings_of_a_path_match(tmp_path: Path, file: str) -> None:
    labels = labels_of(tmp_path, f"file,category\n{file.format(folder=tmp_path)},tree\n")
    assert labels.categories == {"images/a.png": "tree"}
    assert (labels.rows, labels.matched, labels.first_unmatched) == (1, 1, None)


def test_decomposed_characters_match(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,category\ne\u0301te\u0301.png,tree\n")
    labels = read_labels(tmp_path, ["\u00e9t\u00e9.png"])
    assert labels is not None and labels.categories == {"\u00e9t\u00e9.png": "tree"}


@pytest.mark.parametrize(("delimiter", "name"), [(",", "commas"), (";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_the_delimiter_is_recognised_and_named(tmp_path: Path, delimiter: str, name: str) -> None:
    labels = labels_of(tmp_path, delimiter.join(["file", "category"]) + "\n" + delimiter.join(["c.png", "a, b; c"[:4]]))
    assert labels.matched == 1 and name in labels.describe()[0]


def test_rows_that_match_nothing_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    rows = "file,category\nc.png,tree\n\nC:\\Users\\ann\\a.png,tree\nimages/misspelt.png,tree\n"
    labels = labels_of(tmp_path, rows)
    assert (labels.rows, labels.matched) == (3, 1)
    assert labels.first_unmatched == (4, "C:\\Users\\ann\\a.png")
    (line,) = labels.describe()
    assert "1 of 3" in line and "line 4" in line


def test_a_table_saved_by_excel_as_unicode_text_is_read(tmp_path: Path) -> None:
    assert labels_of(tmp_path, "file\tcategory\nc.png\tpl\u00e4nk\n".encode("utf-16")).categories == {
        "c.png": "pl\u00e4nk"
    }
