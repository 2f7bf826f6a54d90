"""A file is hashed once, and again whenever its bytes may have changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tasks.common.errors import DataError
from tasks.common.pool import OrderedMap, WorkerDied
from tasks.extract import content_keys, worker
from tasks.extract import stage as extract
from tasks.extract.cache import Store
from tasks.extract.findings import Reason
from tasks.extract.scan import scan
from tasks.extract.source_files import content_key, open_regular
from tests.support.extraction import extraction_params


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine plain pictures in one category."""
    folder = tmp_path / "raw"
    (folder / "walls").mkdir(parents=True)
    for number in range(9):
        Image.new("RGB", (64, 64), (20 * number,) * 3).save(folder / "walls" / f"{number}.png")
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that workers open."""
    paths: list[str] = []

    def noted(function: Any, items: Iterable[str], *rest: Any, **more: Any) -> Any:
        def each() -> Iterator[str]:
            for path in items:
                paths.append(Path(path).name)
                yield path

        return OrderedMap(function, each(), *rest, **more)

    monkeypatch.setattr(extract, "OrderedMap", noted)
    return paths


def look(folder: Path, root: Path, digest: str = "d") -> list[extract.Extracted]:
    with Store(root, digest) as store:
        return list(extract.extracted(store, extraction_params(folder), root, folder, scan(folder).sources))


def settle(folder: Path) -> None:
    """Wait until files written just now count as settled."""
    newest = max(path.stat().st_ctime for path in folder.rglob("*"))
    time.sleep(max(0.0, newest + content_keys.SETTLED_S + 0.05 - time.time()))


def test_an_untouched_file_is_read_once(folder: Path, tmp_path: Path, asked: list[str]) -> None:
    settle(folder)
    first = look(folder, tmp_path)
    assert len({one.key for one in first}) == len(asked) == 9 and all(one.new for one in first)
    Image.new("RGB", (64, 65)).save(folder / "walls" / "new.png")
    (folder / "walls").rename(folder / "rooms")  # nobody has touched the files
    second = look(folder, tmp_path)
    assert [one.key for one in second[:9]] == [one.key for one in first]
    assert [one.new for one in second] == [False] * 9 + [True]
    assert asked[9:] == ["new.png"]
    assert [one.source.path for one in second] == [f"rooms/{name}.png" for name in (*range(9), "new")]


def test_other_parameters_extract_all_files_again(folder: Path, tmp_path: Path, asked: list[str]) -> None:
    settle(folder)
    first = look(folder, tmp_path)
    again = look(folder, tmp_path, "e")
    assert [one.key for one in again] == [one.key for one in first] and all(one.new for one in again)
    assert len(asked) == 18


def test_a_touched_file_is_hashed_but_not_extracted(folder: Path, tmp_path: Path, asked: list[str]) -> None:
    settle(folder)
    look(folder, tmp_path)
    os.utime(folder / "walls" / "3.png")
    again = look(folder, tmp_path)
    assert asked[9:] == ["3.png"] and not any(one.new for one in again)


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[:-1] + b"x")
    other.replace(path)


@pytest.mark.parametrize("change", [overwritten, replaced])
def test_changed_bytes_with_the_same_size_and_time_are_noticed(
    folder: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    settle(folder)
    first = look(folder, tmp_path)
    path = folder / "walls" / "4.png"
    times = path.stat()
    change(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size and path.stat().st_mtime_ns == times.st_mtime_ns
    second = look(folder, tmp_path)
    changed = [i for i in range(9) if first[i].key != second[i].key]
    assert changed == [4] and [i for i in range(9) if second[i].new] == [4]


def test_a_file_changed_just_now_is_not_remembered(folder: Path, tmp_path: Path) -> None:
    path = folder / "walls" / "1.png"
    os.utime(path)
    with open_regular(path) as file:
        assert content_keys.read_key(file) == (content_key(file), None)
    settle(folder)
    with open_regular(path) as file:
        assert content_keys.read_key(file) == (content_key(file), content_keys.stamp_of(path))


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(folder)
    path = folder / "walls" / "1.png"

    def slow(file: BufferedReader) -> str:
        key = content_key(file)
        overwritten(path)
        return key

    monkeypatch.setattr(content_keys, "content_key", slow)
    with open_regular(path) as file:
        assert content_keys.read_key(file)[1] is None


def test_a_file_that_became_unreadable_is_refused(folder: Path, tmp_path: Path) -> None:
    settle(folder)
    look(folder, tmp_path)
    (folder / "walls" / "2.png").rename(tmp_path / "elsewhere")
    (folder / "walls" / "2.png").symlink_to(tmp_path / "elsewhere")
    found = look(folder, tmp_path)
    assert [row.reason for row in found[2].findings.refused] == [Reason.UNREADABLE] and found[2].key is None
    assert sum(one.key is not None for one in found) == 8 and not any(one.new for one in found)


def test_deleted_findings_are_extracted_again(folder: Path, tmp_path: Path, asked: list[str]) -> None:
    settle(folder)
    first = look(folder, tmp_path)
    with Store(tmp_path, "another digest") as store:
        store.forget(str(first[3].key))
    second = look(folder, tmp_path)
    assert [one.key for one in second] == [one.key for one in first]
    assert asked[9:] == ["3.png"]


def test_a_crashed_file_is_tried_again(
    folder: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulates a file on which two workers died."""
    settle(folder)
    death = WorkerDied("walls/5.png", -11)
    answer = extract._lost(death, folder, tmp_path, 1.0)
    recorded: Any = vars(extract)["OrderedMap"]  # that of the fixture `asked`

    def crashing(*arguments: Any, **more: Any) -> Any:
        return (answer if i == 5 else one for i, one in enumerate(recorded(*arguments, **more)))

    with monkeypatch.context() as patch:
        patch.setattr(extract, "OrderedMap", crashing)
        first = look(folder, tmp_path)
    assert isinstance(answer, worker.Answer) and first[5].key == answer.key is not None
    assert [row.reason for row in first[5].findings.refused] == [Reason.CRASHED]
    assert "exit code -11" in first[5].findings.refused[0].detail
    second = look(folder, tmp_path)
    assert asked[9:] == ["5.png"]
    assert [row.reason for row in second[5].findings.refused] == [Reason.NO_PERSON]


def test_findings_deleted_during_extraction_raise_a_data_error(folder: Path, tmp_path: Path) -> None:
    settle(folder)
    keys_there = [one.key for one in look(folder, tmp_path)]
    with Store(tmp_path, "d") as store:
        again = extract.extracted(store, extraction_params(folder), tmp_path, folder, scan(folder).sources)
        assert next(again).key == keys_there[0]
        store.forget(str(keys_there[-1]))
        with pytest.raises(DataError, match=f"{keys_there[-1]} was forgotten while"):
            list(again)
