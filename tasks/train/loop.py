"""One process's part in a training: resume, step, watch, checkpoint, record. Rank 0 leads: it alone writes.

Everything that is a function of the training goes into the checkpoint before it goes to MLflow, so that a kill leaves
neither a gap nor a duplicate there.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor
from tqdm import tqdm

from diffusion_core.training import monitoring, parallel
from diffusion_core.training.trainer import Diverged, Trainer
from tasks import paths
from tasks.common import files
from tasks.common.errors import DataError
from tasks.config.params import Params
from tasks.metrics import membership_inference
from tasks.metrics.membership_inference import LevelGap
from tasks.models import modality
from tasks.models.modality import Model
from tasks.registry import lineage, tracking
from tasks.train import curves, early_stopping, launch
from tasks.train import evaluation as watching
from tasks.train.evaluation import SIGMAS, Speed, Watch
from tasks.train.state import Folder, State

POINTS = 4  # points of the loss curve a checkpoint


@dataclass
class History:
    """What a training has to tell: loss curve, watches, speed, losses since the last point of the curve."""

    loss: list[list[float]] = field(default_factory=list)  # [images, mean loss]
    levels: list[dict[str, Any]] = field(default_factory=list)
    speed: list[dict[str, float]] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)
    watched: int = 0  # images seen at the last watch
    stopped: str | None = None  # why it ended, in words


class Session:
    """A training from where it stands to its end. `keys` are the sample keys of the trainer's examples, mirrored ones last."""

    def __init__(
        self, params: Params, root: Path, model: Model, trainer: Trainer, folder: Folder, watch: Watch, keys: list[str],
        seen: dict[str, Any],
    ) -> None:  # fmt: skip
        self.params, self.root, self.model, self.config = params, root, model, model.config
        self.trainer, self.folder, self.watch, self.keys, self.seen = trainer, folder, watch, keys, seen
        self.leader = trainer.rank == 0
        self.history = History()
        self.record: tracking.Run | None = None  # the leader's
        self.signal: int | None = None

    def run(self) -> None:
        """Train to the end and write the artifacts. Stopped by SIGTERM it saves its state and exits with launch.STOPPED."""
        status = "KILLED"
        try:
            if self.leader:
                weights = sum(weight.numel() for weight in self.model.denoiser.parameters())
                what = tracking.in_words(self.config.net_name, weights, self.config.images)
                store = tracking.Store(self.params.tracking, self.root)
                self.record = store.model_run(self.model.name, self.folder.digest, what)
                self.record.params({self.model.name: self.config.model_dump()})
                self._record_lineage(self.record)
                self._flush()
            self._loop()
            if self.record is not None:
                self._finish(self.record)
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            if self.record is not None:
                self.record.finish(status)

    def resume(self, path: Path | None) -> None:
        """Go on from the checkpoint at `path` or the last of this training, if there is one; the leader reads it for all."""
        state: State | None = None
        if self.leader:
            state = self.folder.resume_from(path) if path else self.folder.resume()
        meta = parallel.broadcast(state[1] if state else None)
        if meta is None:
            return
        tensors = parallel.broadcast_tensors(state[0] if state else {}, self.trainer.device)
        self.trainer.load_state(tensors, meta["trainer"])
        self.history = History(**meta["history"])
        if self.leader:
            print(f"{self.model.name}: going on from image {self.trainer.nimg:,}")

    def _loop(self) -> None:
        trainer, every = self.trainer, self.config.checkpoint_images
        speed = Speed(trainer)
        bar = tqdm(
            total=self.config.images, initial=trainer.nimg, desc=f"train {self.model.name}", unit="image",
            disable=not self.leader, mininterval=2,
        )  # fmt: skip
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not self._ended():
                if launch.orphaned():
                    raise SystemExit("the process that started this training is gone")
                before = trainer.nimg
                step = trainer.step()
                self.history.pending.append(step.loss)
                bar.update(trainer.nimg - before)
                bar.set_postfix(loss=f"{step.loss:.4f}", refresh=False)
                if self._passed(before, every // POINTS):
                    self.history.loss.append([trainer.nimg, sum(self.history.pending) / len(self.history.pending)])
                    self.history.pending = []
                if self.config.power_averages and self._passed(before, self.config.snapshot_images):
                    self._snapshot()
                if self._passed(before, every):
                    self._checkpoint(speed)
                if step.stop:
                    self._save()
                    raise SystemExit(130 if self.signal == signal.SIGINT else launch.STOPPED)
        except Diverged as error:
            raise DataError(self._blame(error)) from error
        finally:
            bar.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _ended(self) -> bool:
        return self.trainer.done or self.history.stopped is not None

    def _passed(self, before: int, every: int) -> bool:
        """Whether the last step went over a multiple of so many images, or was the last."""
        return self.trainer.nimg // max(every, 1) > before // max(every, 1) or self.trainer.done

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.trainer.stop = True

    def _checkpoint(self, speed: Speed) -> None:
        """Note the speed, watch if it is time, save, and tell MLflow."""
        if self._passed(self.history.watched, self.config.watch_images or 1):
            self.history.speed.append(speed.since_then())
            self._watch()
            self.history.watched = self.trainer.nimg
            speed.begin()
        self._save()
        if self.leader:
            self._flush()

    def _watch(self) -> None:
        """Append a row to the history, keep the weights if they are the best, and decide whether to stop."""
        trainer = self.trainer
        scale = monitoring.noise_scale(trainer)
        denoiser = trainer.averaged()
        if self.leader:
            row = self.watch.row(denoiser, trainer.nimg)
            if scale is not None:
                row["noise_scale"] = scale._asdict()
            rows = self.history.levels
            rows.append(row)
            self._tell_of_gap(row)
            if early_stopping.best(rows, SIGMAS, self.config.keep) == len(rows) - 1:
                self.folder.save_best(dict(denoiser.state_dict()), trainer.nimg)
            path = self.folder.path / "samples" / f"{trainer.nimg:012d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.watch.picture(denoiser, path)
            if self.record is not None:
                self.record.artifact(path, "samples")
            self.history.stopped = early_stopping.reason(rows, self.config.stop)
            if trainer.done:
                self.history.stopped = f"All {trainer.nimg} images were seen."
        self.history.stopped = parallel.broadcast(self.history.stopped)

    def _tell_of_gap(self, row: dict[str, Any]) -> None:
        """Say once when the losses begin to tell training examples from held-out ones."""
        gaps = [LevelGap(**gap) for gap in row.get("gaps", [])]
        earlier = (gap for other in self.history.levels[:-1] for gap in other.get("gaps", []))
        if any(gap.alarming for gap in gaps) and not any(LevelGap(**gap).alarming for gap in earlier):
            tqdm.write(f"{self.model.name}, image {row['images']:,}: {membership_inference.sentence(gaps)}")
            if self.record is not None:
                self.record.tag(**{"contrapposto.loss_gap_from_image": str(row["images"])})

    def _snapshot(self) -> None:
        """Store the further averages, for any other average after the training."""
        for name in self.trainer.averages:
            if name != "ema":
                weights = self.trainer.averaged(name).state_dict()
                if self.leader:
                    self.folder.save_snapshot(name, weights, self.trainer.nimg)

    def _save(self) -> None:
        tensors, state = self.trainer.state()
        if self.leader:
            self.folder.save(tensors, {"trainer": state, "history": vars(self.history)}, self.trainer.nimg)

    def _flush(self) -> None:
        """Log the points that MLflow does not have yet: after a kill neither a gap nor a duplicate."""
        assert self.record is not None
        points = [("loss", loss, int(nimg)) for nimg, loss in self.history.loss]
        for row in self.history.levels:
            points += watching.points(row)
        points += watching.speed_points(self.history.speed)
        last = {name: self.record.last_step(name) for name in {name for name, _, _ in points}}
        self.record.log([point for point in points if point[2] > last[point[0]]])

    def _blame(self, error: Diverged) -> str:
        """The error in the user's terms: which samples, by their keys in the shards."""
        keys = sorted({self.keys[i] for i in error.examples})
        what = str(error).partition(" at image")[0]
        return (
            f"{self.model.name}: {what} at image {self.trainer.nimg}, for {', '.join(keys)}. "
            "Either these samples are damaged, or the learning rate is too high."
        )

    def _record_lineage(self, record: tracking.Run) -> None:
        """Before the first step, so that a training which is stopped is known to have seen these people."""
        path = self.folder.path / lineage.FILE
        files.write_json(path, self.seen)
        record.artifact(path)

    def _finish(self, record: tracking.Run) -> None:
        """Write the artifacts: weights of the best watch, curve, lineage, snapshots."""
        rows = self.history.levels
        nimg = rows[early_stopping.best(rows, SIGMAS, self.config.keep)]["images"]
        kept = early_stopping.kept(rows, SIGMAS, self.config.keep)
        weights: dict[str, Tensor] = self.folder.best(nimg)
        told = {
            "sigmas": SIGMAS,
            "loss": self.history.loss,
            "levels": rows,
            "stopped": self.history.stopped,
            "kept": kept,
        }
        with files.new_folder(paths.model_folder(self.root, self.model.name)) as folder:
            modality.save(folder, self.model, weights, {"digest": self.folder.digest, "images": nimg})
            files.write_json(folder / "training.json", told)
            curves.write(folder, self.history.loss, rows, SIGMAS)
            files.write_json(folder / lineage.FILE, self.seen)
            for path in sorted(self.folder.path.glob("snapshots/*.safetensors")):
                (folder / "snapshots").mkdir(exist_ok=True)
                (folder / "snapshots" / path.name).write_bytes(path.read_bytes())
        print(f"{self.model.name}: {self.history.stopped} {kept}")
        record.tag(**{
            "contrapposto.model_sha256": paths.model_sha256(self.root, self.model.name),
            "contrapposto.stopped": str(self.history.stopped), "contrapposto.kept": kept,
        })  # fmt: skip
        for path in sorted(paths.model_folder(self.root, self.model.name).iterdir()):
            record.artifact(path, "model")
