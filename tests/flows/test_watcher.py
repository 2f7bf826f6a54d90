"""The watch for new data goes on whatever is wrong with the parameters, the state or the disk."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import watcher
from tasks import paths
from tasks.common import files
from tests.support.workspaces import write_params


class Stopped(Exception):
    """Ends the watch in a test."""


def _disk_error(*_: object) -> None:
    raise OSError(errno.EIO, "Input/output error", "data/raw")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda root: (root / "params.yaml").write_bytes("raw: Jürgen".encode("latin-1")), "not UTF-8"),
        (lambda root: (root / "params.yaml").write_text("raw: ["), "not valid YAML"),
        (lambda root: (root / "params.yaml").unlink(), "does not exist"),
        (lambda root: files.write_bytes(root / paths.SEEN_DATA, b""), "seen.json is damaged"),
        (None, "Input/output error"),
    ],
)
def test_the_watch_goes_on(
    harm: Callable[[Path], object] | None,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "data/raw/mannequin").mkdir(parents=True)
    write_params(tmp_path)
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 1 and harm is not None:
            harm(tmp_path)
        if looks == 1 and harm is None:
            monkeypatch.setattr("flows.data_fingerprint.fingerprint", _disk_error)
        if looks == 4:
            raise Stopped

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "sleep", sleep)
    logger = logging.getLogger("flows.watcher")
    logger.addHandler(caplog.handler)
    try:
        with pytest.raises(Stopped):
            watcher.main()
    finally:
        logger.removeHandler(caplog.handler)
    messages = [record.getMessage() for record in caplog.records if words in record.getMessage()]
    assert messages and all(message.startswith("contrapposto: ") for message in messages)
