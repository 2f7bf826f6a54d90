"""A file is read for its key once, and again whenever its bytes may be others."""

import os
import time
from pathlib import Path

import pytest

from tasks.extraction import keys
from tasks.extraction.findings import Reason, Refused
from tasks.extraction.ingest import content_key, scan
from tasks.extraction.store import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine files in one category."""
    folder = tmp_path / "raw"
    (folder / "run").mkdir(parents=True)
    for number in range(9):
        (folder / "run" / f"{number}.png").write_bytes(bytes([number]) * 100)
    return folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read, in any order."""
    paths: list[str] = []

    def noted(file):
        paths.append(Path(file.name if isinstance(file.name, str) else os.readlink(f"/proc/self/fd/{file.name}")).name)
        return content_key(file)

    monkeypatch.setattr(keys, "content_key", noted)
    return paths


def of(folder: Path, root: Path) -> list[str | Refused]:
    with Store(root, "d") as store:
        return list(keys.content_keys(folder, scan(folder), store))


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let time pass: files written just now count as settled."""
    monkeypatch.setattr(keys, "SETTLED_S", -1.0)


def test_an_untouched_file_is_read_once(folder, tmp_path, read, monkeypatch):
    settle(monkeypatch)
    first = of(folder, tmp_path)
    assert len(set(first)) == len(read) == 9
    (folder / "run" / "new.png").write_bytes(b"new")
    (folder / "run").rename(folder / "walk")  # nobody has touched the files
    assert of(folder, tmp_path)[:9] == first
    assert read[9:] == ["new.png"]


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"x")


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"x" * 100)
    other.replace(path)


@pytest.mark.parametrize("change", [overwritten, replaced])
def test_other_bytes_are_noticed_though_size_and_time_are_as_before(folder, tmp_path, change, monkeypatch):
    settle(monkeypatch)
    first = of(folder, tmp_path)
    path = folder / "run" / "4.png"
    times = path.stat()
    time.sleep(0.02)  # more than a tick of the system's clock
    change(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size and path.stat().st_mtime_ns == times.st_mtime_ns
    second = of(folder, tmp_path)
    assert second[4] != first[4] and second[:4] + second[5:] == first[:4] + first[5:]


def test_a_file_changed_just_now_is_not_remembered(folder, tmp_path, read):
    of(folder, tmp_path)
    of(folder, tmp_path)
    assert len(read) == 18


def test_what_cannot_be_read_any_more_is_refused(folder, tmp_path, monkeypatch):
    settle(monkeypatch)
    of(folder, tmp_path)
    (folder / "run" / "2.png").rename(tmp_path / "elsewhere")
    (folder / "run" / "2.png").symlink_to(tmp_path / "elsewhere")
    found = of(folder, tmp_path)
    assert isinstance(found[2], Refused) and found[2].reason is Reason.UNREADABLE
    assert sum(isinstance(key, str) for key in found) == 8


def test_what_is_forgotten_is_read_again(folder, tmp_path, read, monkeypatch):
    settle(monkeypatch)
    first = of(folder, tmp_path)
    with Store(tmp_path, "another digest") as store:
        store.forget(str(first[3]))
    assert of(folder, tmp_path) == first
    assert read[9:] == ["3.png"]


def test_keys_come_in_order_and_only_some_are_read_ahead(tmp_path, read, monkeypatch):
    monkeypatch.setattr(keys, "_AHEAD", 10)
    for number in range(100):
        (tmp_path / f"{number:03d}.png").write_bytes(str(number).encode())
    root = tmp_path / ".hidden"
    expected = of(tmp_path, root)
    assert len(set(expected)) == 100
    del read[:]
    with Store(root, "d") as store:
        found = keys.content_keys(tmp_path, scan(tmp_path), store)
        assert [next(found) for _ in range(20)] == expected[:20]
        found.close()
    assert len(read) <= 30
