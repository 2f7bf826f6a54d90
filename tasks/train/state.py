"""The states of the trainings under way, on disk, out of DVC's reach.

    .contrapposto/training/<model>/<digest>/   one folder a training, known by what decides its weights
        checkpoint-000038400.safetensors       the last few, by images seen
        best-000038400.safetensors             averaged weights of the best watch so far
        snapshots/power_0.1-000038400.safetensors

A training whose parameters are changed gets another folder; the one before is kept, so that going back finds it, and
older ones are dropped.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tasks import paths
from tasks.common import checkpoint
from tasks.common.errors import DataError, UserError
from tasks.train import run_fingerprint
from tasks.train.run_fingerprint import Origin

TRAININGS_KEPT = 2
State = tuple[dict[str, Tensor], dict[str, Any]]


class Folder:
    """The folder of one training; only the leading rank has one."""

    def __init__(self, root: Path, model: str, here: Origin, kept: int) -> None:
        self.origin = here
        self.digest = run_fingerprint.digest(here)
        self.model = model
        self.kept = kept
        self.path = root / paths.TRAINING / model / self.digest

    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(self.path.glob("checkpoint-*.safetensors"))

    def resume(self) -> State | None:
        """The last checkpoint that is whole; prints what it finds. Raises DataError if there are some and none is whole."""
        damaged = []
        for path in reversed(self.checkpoints()):
            try:
                return checkpoint.load(path)
            except DataError as error:
                print(f"{self.model}: {error} The one before is taken.")
                damaged.append(path.name)
        if damaged:
            raise DataError(f"No checkpoint in {self.path} is whole; remove the folder to start anew.")
        self._tell_of_others()
        return None

    def resume_from(self, path: Path) -> State:
        """The checkpoint that the user names; UserError that says what differs if it is another training's."""
        tensors, meta = checkpoint.load(path)
        if "origin" not in meta:
            raise UserError(f"{path} is not the checkpoint of a training.")
        if meta["origin"] != self.origin:
            told = run_fingerprint.difference(self.origin, meta["origin"])
            raise UserError(f"{path} is the checkpoint of another training: {told}.")
        return tensors, meta

    def save(self, tensors: dict[str, Tensor], meta: dict[str, Any], nimg: int) -> None:
        """Write a checkpoint, then drop those that are too old."""
        whole = {"origin": self.origin, **meta}
        checkpoint.save(self.path / f"checkpoint-{nimg:012d}.safetensors", tensors, whole)
        for path in self.checkpoints()[: -self.kept]:
            path.unlink()

    def save_best(self, weights: dict[str, Tensor], nimg: int) -> None:
        """Write the averaged weights of the best watch, then drop what was best before: a restart finds the same again."""
        checkpoint.save(self._best(nimg), weights, {"images": nimg})
        for path in self.path.glob("best-*.safetensors"):
            if path != self._best(nimg):
                path.unlink()

    def best(self, nimg: int) -> dict[str, Tensor]:
        """The weights that `save_best` wrote at so many images."""
        return checkpoint.load(self._best(nimg))[0]

    def save_snapshot(self, average: str, weights: Mapping[str, Tensor], nimg: int) -> None:
        """Write one of several averages, to mix others from it later."""
        name = f"{average}-{nimg:012d}.safetensors"
        checkpoint.save(self.path / "snapshots" / name, dict(weights), {"average": average, "images": nimg})

    def _best(self, nimg: int) -> Path:
        return self.path / f"best-{nimg:012d}.safetensors"

    def _tell_of_others(self) -> None:
        """Say why an earlier training is not gone on with, and drop all but the latest of them."""
        others = [path for path in self.path.parent.glob("*/") if path != self.path and path.is_dir()]
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for old in others[TRAININGS_KEPT - 1 :]:
            shutil.rmtree(old)
        for old in others[: TRAININGS_KEPT - 1]:
            found = sorted(old.glob("checkpoint-*.safetensors"))
            if found:
                told = run_fingerprint.difference(self.origin, checkpoint.about(found[-1])["origin"])
                print(
                    f"{self.model}: starting anew, for the training before was another: {told}. Its state stays in {old}."
                )
