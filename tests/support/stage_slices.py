"""Stages after slices that ran in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from flows import engines, slices
from flows.slices import Slice
from tasks.__main__ import body
from tasks.config.params import load
from tests.support.project import PROJECT


class Engine:
    """Runs slices in this process, each in the workspace that `place` gives; `before` is called with each first."""

    here = False

    def __init__(self, places: Sequence[Path], before: Callable[[Slice], None] = lambda piece: None) -> None:
        self.places, self.before = places, before

    def run(self, root: Path, pieces: Sequence[Slice]) -> Mapping[Slice, str]:
        for piece in pieces:
            self.before(piece)
            place = self.places[piece.rank % len(self.places)]

            def run_task(task: str, *arguments: str, root: Path = place) -> None:
                body(task)(load(root / "params.yaml"), root, *arguments)

            slices.work(place, piece, run_task)
        return {}


def run_in_slices(
    root: Path, stage: str, engine: Engine, patch: pytest.MonkeyPatch, *forbidden: tuple[object, str]
) -> int:
    """Run a stage after its slices, without calls of these functions; returns how often it ran."""
    runs = []

    def plain(task: Sequence[str], variables: Mapping[str, str]) -> None:
        runs.append(task)
        with patch.context() as patched:
            for name, value in variables.items():
                patched.setenv(name, value)
            for owner, name in forbidden:
                patched.setattr(owner, name, None)
            body(task[0])(load(root / "params.yaml"), root, *task[1:])

    with patch.context() as patched:
        patched.setattr(engines, "chosen", lambda params: engine)
        engines.run(load(root / "params.yaml"), root, stage, plain)
    return len(runs)


def emptied(workspace: Path) -> Path:
    """A DVC workspace with the project's graph, and without data and models."""
    shutil.copy(PROJECT / "dvc.yaml", workspace / "dvc.yaml")
    for made in (workspace / "data", workspace / "samples", workspace / "artifacts"):
        shutil.rmtree(made) if made.is_dir() else made.unlink(missing_ok=True)
    return workspace


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files in a folder, by their names."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
