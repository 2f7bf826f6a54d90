"""A webhook never fails a run, whatever it answers."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from flows import notify
from tasks.config.operations import Notify


@pytest.mark.parametrize(
    "answer", [b"", b"rubbish\r\n\r\n", b"HTTP/1.1 500 no\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9"]
)
def test_an_odd_answer_is_a_line_in_the_log(
    answer: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify.log, "propagate", True)
    monkeypatch.setattr(notify.log.parent, "propagate", True)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):  # closing before all is read would reset the connection
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        notify.send(Notify(webhook=f"http://127.0.0.1:{server.getsockname()[1]}/"), "failed", "No.", tmp_path)
        thread.join()
    assert ("could not be notified" in caplog.text) is not answer.startswith(b"HTTP/1.1 200")
