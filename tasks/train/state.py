"""The states of unfinished trainings on disk, outside the outputs that DVC tracks.

    .contrapposto/training/<model>/<digest>/   one folder per training, named by the digest of its fingerprint
        checkpoint-000038400.safetensors       the last few, by images seen
        best-000038400.safetensors             averaged weights of the best evaluation so far
        snapshots/power_0.1-000038400.safetensors

A training with other parameters gets another folder. The latest other folder is kept, so that the training can be resumed when
the parameters are changed back; older ones are deleted.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tasks import paths
from tasks.common import checkpoint
from tasks.common.errors import DataError, UserError
from tasks.config.params import Params
from tasks.train import checkpoint_store, post_hoc_ema, run_fingerprint
from tasks.train.run_fingerprint import RunFingerprint

TRAININGS_KEPT = 2
FINGERPRINT = "fingerprint"  # its key in a checkpoint
State = tuple[dict[str, Tensor], dict[str, Any]]

log = logging.getLogger(__name__)


class TrainingFolder:
    """The folder of one training; only the leading rank has one. Its files are copied to `store.checkpoints` of params.yaml."""

    def __init__(
        self, root: Path, model: str, fingerprint: RunFingerprint, checkpoints_kept: int, params: Params
    ) -> None:
        self.fingerprint = fingerprint
        self.digest = run_fingerprint.digest(fingerprint)
        self.model = model
        self.checkpoints_kept = checkpoints_kept
        self.path = root / paths.TRAINING / model / self.digest
        self.store = checkpoint_store.of(params, self.path)

    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(self.path.glob("checkpoint-*.safetensors"))

    def resume(self) -> State | None:
        """The last undamaged checkpoint; None if there is none. Raises DataError if all of them are damaged."""
        if self.store is not None:
            self.store.fetch()
        damaged = []
        for path in reversed(self.checkpoints()):
            try:
                return checkpoint.load(path)
            except DataError as error:
                log.info(f"{self.model}: {error} The previous one is used instead.")
                damaged.append(path.name)
        if damaged:
            raise DataError(
                f"Every checkpoint in {self.path} is damaged; remove the folder to start from the beginning."
            )
        self._clean_up_others()
        return None

    def resume_from(self, path: Path) -> State:
        """The checkpoint that the user named. Raises UserError, naming the difference, if another training wrote it."""
        tensors, meta = checkpoint.load(path)
        if FINGERPRINT not in meta:
            raise UserError(f"{path} is not the checkpoint of a training, or an older version wrote it.")
        if meta[FINGERPRINT] != self.fingerprint:
            changes = run_fingerprint.difference(self.fingerprint, meta[FINGERPRINT])
            raise UserError(f"{path} is the checkpoint of another training: {changes}.")
        return tensors, meta

    def save(self, tensors: dict[str, Tensor], meta: dict[str, Any], nimg: int) -> None:
        """Write a checkpoint, then delete the oldest ones."""
        path = self.path / f"checkpoint-{nimg:012d}.safetensors"
        checkpoint.save(path, tensors, {FINGERPRINT: self.fingerprint, **meta})
        for old in self.checkpoints()[: -self.checkpoints_kept]:
            old.unlink()
        self._copy(path)

    def save_best(self, weights: dict[str, Tensor], nimg: int) -> None:
        """Write the averaged weights of the best evaluation, then delete those of the best one before."""
        checkpoint.save(self._best(nimg), weights, {"images": nimg})
        for path in self.path.glob("best-*.safetensors"):
            if path != self._best(nimg):
                path.unlink()
        self._copy(self._best(nimg))

    def best(self, nimg: int) -> dict[str, Tensor]:
        """The weights that `save_best` wrote at this number of images."""
        return checkpoint.load(self._best(nimg))[0]

    def save_snapshot(self, average: str, weights: Mapping[str, Tensor], nimg: int) -> None:
        """Write one of the averages from which post-hoc EMA computes others."""
        path = self.snapshots / post_hoc_ema.snapshot_file(average, nimg)
        checkpoint.save(path, dict(weights), {"average": average, "images": nimg})
        self._copy(path)

    def _copy(self, path: Path) -> None:
        if self.store is not None:
            self.store.put(path)

    @property
    def snapshots(self) -> Path:
        """The folder of the snapshots."""
        return self.path / "snapshots"

    def _best(self, nimg: int) -> Path:
        return self.path / f"best-{nimg:012d}.safetensors"

    def _clean_up_others(self) -> None:
        """Say why the latest other training is not resumed, and delete the older ones."""
        others = [path for path in self.path.parent.glob("*/") if path != self.path and path.is_dir()]
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for old in others[TRAININGS_KEPT - 1 :]:
            shutil.rmtree(old)
        for other in others[: TRAININGS_KEPT - 1]:
            checkpoints = sorted(other.glob("checkpoint-*.safetensors"))
            if checkpoints:
                before = checkpoint.about(checkpoints[-1]).get(FINGERPRINT)
                if before is None:
                    changes = "an older version made it"
                else:
                    changes = run_fingerprint.difference(self.fingerprint, before)
                log.info(
                    f"{self.model}: starting from the beginning, because the previous training was a different one: {changes}. "
                    f"Its state stays in {other}."
                )
