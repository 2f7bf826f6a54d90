"""The project's folder, and copies of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def copy_project(root: Path) -> None:
    """Copy what a git clone would have, uncommitted files included, and start an empty git repository; models are linked."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=PROJECT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (PROJECT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / name, root / name)
    (root / "models").symlink_to((PROJECT / "models").resolve())
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
