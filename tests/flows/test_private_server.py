"""The private Prefect server of a command."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import private_server
from tasks.common import process
from tasks.common.errors import UserError


def test_a_second_server_starts_after_the_first_has_made_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "start", lambda *_: SimpleNamespace(poll=lambda: 1))  # it ends at once
    first = private_server.start(tmp_path)
    started = threading.Event()

    def start_another() -> None:
        private_server.start(tmp_path).lock.close()
        started.set()

    another = threading.Thread(target=start_another)
    another.start()
    assert not started.wait(0.3)
    with pytest.raises(UserError, match="did not start"):
        first.wait()
    assert started.wait(10)
    another.join()
