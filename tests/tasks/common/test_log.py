"""Messages on terminals of every encoding."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from tasks.common import log


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_name_that_the_terminal_cannot_show_is_written_with_escapes(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the locale C, and of a file name that is not UTF-8."""
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding=encoding, errors="strict"))
    log.to_stdout()
    logging.getLogger("tasks.test").info("Übung 日本 \udcff")
    shown = output.getvalue().decode(encoding)
    assert shown.endswith("\\udcff\n") and ("日本" if encoding == "utf-8" else "\\u65e5\\u672c") in shown
