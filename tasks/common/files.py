"""Writing so that nothing is lost: an output appears under its name only when it is complete."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill; on leaving without an error it takes the place of `path`, otherwise it is removed."""
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # it may be what has filled the disk
        raise
    shutil.rmtree(path, ignore_errors=True)
    temporary.replace(path)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file by way of a temporary name; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and programs: sorted keys, indented; NaN raises ValueError."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


def read_json(path: Path) -> Any:
    """The JSON in a file."""
    return json.loads(path.read_bytes())
