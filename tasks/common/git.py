"""The git repository of a workspace. There may be none, as in an unpacked archive, and git may not be installed."""

from __future__ import annotations

import subprocess
from pathlib import Path


def _git(root: Path, *arguments: str) -> str | None:
    """The output of a git command; None if it fails or git is not installed."""
    try:
        result = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def has_repository(root: Path) -> bool:
    """Whether the workspace is in a git repository: its own, or one further up that tracks its dvc.yaml.

    A repository further up that does not track it is another project's, such as that of a home directory.
    """
    return (root / ".git").exists() or _git(root, "ls-files", "--error-unmatch", "dvc.yaml") is not None


def commit(root: Path) -> str | None:
    """The commit checked out in the workspace's repository; None without a repository or without a commit."""
    return _git(root, "rev-parse", "HEAD") if has_repository(root) else None
