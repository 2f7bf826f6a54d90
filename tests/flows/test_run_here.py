"""The table at the end of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.run_here import _show
from tasks.common import files
from tests.support.project import PROJECT


def test_brackets_and_colons_of_names_are_printed_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "[bold]poses[/x]"
    reason = "no: worse in [/yoga] and :smile:"
    files.write_json(root / "reports/summary/summary.json", {"rows": [["promoted", reason]], "metrics": {}})
    shutil.copy(PROJECT / "params.yaml", root / "params.yaml")
    _show(root)
    printed = capsys.readouterr().out
    assert reason in printed and str(root / "reports/report.html") in printed
