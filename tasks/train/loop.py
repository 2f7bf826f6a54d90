"""The training loop of one process: resume, step, evaluate, save, record. Only rank 0, the leader, writes anything.

Results go into the checkpoint before they go to MLflow, so that a kill leaves neither a gap nor a duplicate there.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor
from tqdm import tqdm

from diffusion_core import method_tables
from diffusion_core.training import monitoring, parallel
from diffusion_core.training.trainer import Diverged, Trainer
from tasks import paths
from tasks.common import files
from tasks.common.errors import DataError
from tasks.config.optimisation import KeptAverage
from tasks.config.params import Params, Train
from tasks.metrics import membership_inference
from tasks.models import model_file
from tasks.registry import lineage, tracking
from tasks.train import curves, early_stopping, launch, post_hoc_ema, run_fingerprint
from tasks.train.evaluation import AnyEvaluator, Evaluation, Points, Speed, Trainable, speed_points
from tasks.train.state import State, TrainingFolder

POINTS = 4  # points of the loss curve per checkpoint

log = logging.getLogger(__name__)


@dataclass
class History:
    """What happened so far; a part of every checkpoint."""

    loss: list[list[float]] = field(default_factory=list)  # [images, mean loss since the point before]
    evaluations: list[Evaluation] = field(default_factory=list)
    speed: list[dict[str, float]] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)  # losses since the last point of the curve
    evaluated: int = 0  # images seen at the last evaluation
    stopped: str | None = None  # why the training ended, as a sentence

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {**vars(self), "evaluations": [evaluation.as_json() for evaluation in self.evaluations]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> History:
        """The inverse of `as_json`."""
        return cls(**{**value, "evaluations": [Evaluation.from_json(row) for row in value["evaluations"]]})


class TrainingLoop:
    """A training from where it stands to its end.

    `keys`: the sample key of each of the trainer's examples. `trained_on`: the content of trained_on.json, see `lineage`.
    `save(folder, weights=, meta=)` writes the model file. `name`: of the training, by default the model's; `output`: the
    folder of the finished model. `judge(folder)` may add files to the folder in which the finished model lies, and returns
    tags for MLflow by name.
    """

    def __init__(
        self, params: Params, root: Path, model: Trainable, trainer: Trainer, folder: TrainingFolder, evaluator: AnyEvaluator,
        keys: Sequence[str], trained_on: dict[str, Any], save: Callable[..., None], name: str | None = None,
        output: Path | None = None, judge: Callable[[Path], dict[str, str]] | None = None,
    ) -> None:  # fmt: skip
        self.name = name or model.name
        self.output = output or paths.model_folder(root, self.name)
        self.params, self.root, self.model, self.config = params, root, model, model.config
        self.trainer, self.folder, self.evaluator, self.keys = trainer, folder, evaluator, keys
        self.trained_on, self.save, self.judge = trained_on, save, judge
        self.leader = trainer.rank == 0
        self.history = History()
        self.milestones: tuple[int, ...] = ()  # images at which to evaluate, and only there; (): as the config says
        self.record: tracking.Run | None = None  # only the leader has one
        self.signal: int | None = None

    def run(self) -> None:
        """Train to the end and write the artifacts. On SIGTERM, save the state and exit with launch.STOPPED."""
        status = "KILLED"
        try:
            if self.leader:
                weights = sum(weight.numel() for weight in self.model.denoiser.parameters())
                description = tracking.in_words(self.config.net_name, weights, self.config.images)
                methods = {}
                if isinstance(self.config, Train):
                    description = f"{self.config.recipe} {description}"
                    methods = method_tables.of_training(self.config.training)
                store = tracking.Store(self.params.tracking, self.root)
                self.record = store.model_run(self.name, self._digest(), description)
                self.record.tag(**{f"contrapposto.{table}": words for table, words in methods.items()})
                self.record.params({self.name: self.config.model_dump()})
                self._record_lineage(self.record)
                self._flush()
            self._loop()
            average = self._computed_average() if isinstance(self.config.keep, KeptAverage) else None
            if self.record is not None:
                self._finish(self.record, average)
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            if self.record is not None:
                self.record.finish(status)

    def resume(self, path: Path | None) -> None:
        """Load the checkpoint at `path`, or else the last one of this training, if any. The leader reads it for all ranks."""
        state: State | None = None
        if self.leader:
            state = self.folder.resume_from(path) if path else self.folder.resume()
        meta = parallel.broadcast(state[1] if state else None)
        if meta is None:
            return
        tensors = parallel.broadcast_tensors(state[0] if state else {}, self.trainer.device)
        self.trainer.load_state(tensors, meta["trainer"])
        self.history = History.from_json(meta["history"])
        if self.leader:
            log.info(f"{self.name}: resuming from image {self.trainer.nimg:,}")

    def _loop(self) -> None:
        trainer, checkpoint_images = self.trainer, self.config.checkpoint_images
        speed = Speed(trainer)
        bar = tqdm(
            total=self.config.images, initial=trainer.nimg, desc=f"train {self.name}", unit="image",
            disable=not self.leader, mininterval=2,
        )  # fmt: skip
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not self._ended():
                before = trainer.nimg
                step = trainer.step()
                self.history.pending.append(step.loss)
                bar.update(trainer.nimg - before)
                bar.set_postfix(loss=f"{step.loss:.4f}", refresh=False)
                if self._passed(before, checkpoint_images // POINTS):
                    self.history.loss.append([trainer.nimg, sum(self.history.pending) / len(self.history.pending)])
                    self.history.pending = []
                if self._passed(before, self.config.snapshot_interval) and not trainer.done:
                    self._snapshot()
                if self._passed(before, checkpoint_images) or (self.milestones and self._evaluation_is_due()):
                    self._checkpoint(speed)
                if step.stop:
                    self._save()
                    raise SystemExit(130 if self.signal == signal.SIGINT else launch.STOPPED)
            self._snapshot()  # here, because early stopping can end the training anywhere
        except Diverged as error:
            raise DataError(self._blame(error)) from error
        finally:
            bar.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _ended(self) -> bool:
        return self.trainer.done or self.history.stopped is not None

    def _passed(self, before: int, every: int) -> bool:
        """Whether the last step crossed a multiple of `every` images, or was the last."""
        return self.trainer.nimg // max(every, 1) > before // max(every, 1) or self.trainer.done

    def _evaluation_is_due(self) -> bool:
        last, now = self.history.evaluated, self.trainer.nimg
        if self.milestones:
            return any(last < images <= now for images in self.milestones) or self.trainer.done
        return self._passed(last, self.config.watch_images or 1)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.trainer.stop = True

    def _checkpoint(self, speed: Speed) -> None:
        """Evaluate if it is time, save, and tell MLflow."""
        if self._evaluation_is_due():
            self.history.speed.append(speed.measure())
            self._evaluate()
            self.history.evaluated = self.trainer.nimg
            speed.begin()
        self._save()
        if self.leader:
            self._flush()

    def _evaluate(self) -> None:
        """Append an evaluation to the history, keep the weights if they are the best, and decide whether to stop."""
        trainer = self.trainer
        noise_scale = monitoring.noise_scale(trainer) if self.evaluator.noise_scale else None
        denoiser = trainer.averaged()
        schedule = model_file.learned_schedule(trainer.recipe)
        if self.leader:
            evaluations = self.history.evaluations
            evaluations.append(self.evaluator.evaluate(denoiser, trainer.nimg, noise_scale))
            self._announce_memorization(evaluations)
            if early_stopping.best(evaluations, self.evaluator.sigmas, self.config.keep) == len(evaluations) - 1:
                self.folder.save_best({**denoiser.state_dict(), **schedule}, trainer.nimg)
            path = self.folder.path / "samples" / f"{trainer.nimg:012d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.evaluator.picture(denoiser, path)
            if self.record is not None:
                self.record.artifact(path, "samples")
            self.history.stopped = early_stopping.stop_reason(evaluations, self.config.stop, self.evaluator.sigmas)
            if trainer.done:
                self.history.stopped = f"All {trainer.nimg} images were seen."
        self.history.stopped = parallel.broadcast(self.history.stopped)

    def _announce_memorization(self, evaluations: list[Evaluation]) -> None:
        """Say once when the losses begin to tell training examples from held-out ones."""
        gaps = evaluations[-1].gaps or []
        earlier = (gap for evaluation in evaluations[:-1] for gap in evaluation.gaps or [])
        if any(gap.alarming for gap in gaps) and not any(gap.alarming for gap in earlier):
            images = evaluations[-1].images
            # tqdm.write keeps the progress bar intact
            tqdm.write(f"{self.name}, image {images:,}: {membership_inference.sentence(gaps)}")
            if self.record is not None:
                self.record.tag(**{"contrapposto.loss_gap_from_image": str(images)})

    def _snapshot(self) -> None:
        """Store the further averages, for post-hoc EMA."""
        for name in self.trainer.averages:
            if name != "ema":
                weights = self.trainer.averaged(name).state_dict()
                if self.leader:
                    self.folder.save_snapshot(name, weights, self.trainer.nimg)

    def _save(self) -> None:
        tensors, state = self.trainer.state()
        if self.leader:
            self.folder.save(tensors, {"trainer": state, "history": self.history.as_json()}, self.trainer.nimg)

    def _flush(self) -> None:
        """Log the points that MLflow does not have yet. After a kill there is neither a gap nor a duplicate."""
        assert self.record is not None
        points: Points = [("loss", loss, int(nimg)) for nimg, loss in self.history.loss]
        for evaluation in self.history.evaluations:
            points += evaluation.points()
        points += speed_points(self.history.speed)
        last = {name: self.record.last_step(name) for name in {name for name, _, _ in points}}
        self.record.log([point for point in points if point[2] > last[point[0]]])

    def _blame(self, error: Diverged) -> str:
        """The error with the keys of the samples instead of their indices."""
        keys = sorted({self.keys[i] for i in error.examples})
        problem = str(error).partition(" at image")[0]
        return (
            f"{self.name}: {problem} at image {self.trainer.nimg}, for {', '.join(keys)}. "
            "Either these samples are damaged, or the learning rate is too high."
        )

    def _record_lineage(self, record: tracking.Run) -> None:
        """Write trained_on.json before the first step: a training that is stopped has seen these people, too."""
        path = self.folder.path / lineage.FILE
        files.write_json(path, self.trained_on)
        record.artifact(path)
        record.dataset(self.root, self.params.raw.parts)

    def _digest(self) -> str:
        """What names the model, in its file and in MLflow."""
        return run_fingerprint.model_digest(self.folder.fingerprint, self.config)

    def _computed_average(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The weights of the average that `keep` asks for, and what training.json says of it; None on all but the leader."""
        config, trainer = self.config, self.trainer
        denoiser = trainer.averaged()  # with sharded weights all ranks take part
        if not self.leader:
            return None
        times = post_hoc_ema.snapshot_times(trainer.config, config.snapshot_interval, trainer.nimg)
        average = post_hoc_ema.compute(self.folder.snapshots, config.snapshot_widths, times, config.keep.ema)
        denoiser.load_state_dict(average.weights, strict=False)
        evaluation = self.evaluator.evaluate(denoiser, trainer.nimg, None)
        return average.weights, {
            "width": config.keep.ema,
            "snapshots": average.snapshots,
            "error": average.error,
            "evaluation": evaluation.as_json(),
        }

    def _finish(self, record: tracking.Run, average: tuple[dict[str, Tensor], dict[str, Any]] | None) -> None:
        """Write the artifacts: weights of the best evaluation or the computed average, curves, lineage, snapshots."""
        evaluations = self.history.evaluations
        nimg = evaluations[early_stopping.best(evaluations, self.evaluator.sigmas, self.config.keep)].images
        kept = early_stopping.kept(evaluations, self.evaluator.sigmas, self.config.keep)
        weights: dict[str, Tensor] = self.folder.best(nimg)
        training: dict[str, Any] = {
            "sigmas": self.evaluator.sigmas,
            "loss": self.history.loss,
            "levels": [evaluation.as_json() for evaluation in evaluations],
            "stopped": self.history.stopped,
            "kept": kept,
        }
        if average is not None:
            weights |= average[0]  # what is no weight of the network, such as a learned schedule, stays as it is
            training["computed_average"] = average[1]
        artifacts = self.output
        with files.new_folder(artifacts) as folder:
            self.save(folder, weights=weights, meta={"digest": self._digest(), "images": nimg})
            files.write_json(folder / "training.json", training)
            curves.write(folder, self.history.loss, evaluations, self.evaluator.sigmas)
            files.write_json(folder / lineage.FILE, self.trained_on)
            if self.config.power_averages:  # asked for; those that `keep` needs stay with the checkpoints
                (folder / "snapshots").mkdir()
                for path in sorted(self.folder.snapshots.glob("*.safetensors")):
                    (folder / "snapshots" / path.name).write_bytes(path.read_bytes())
            tags = self.judge(folder) if self.judge is not None else {}
        log.info(f"{self.name}: {self.history.stopped} {kept}")
        record.tag(**{
            "contrapposto.model_sha256": paths.sha256(artifacts),
            "contrapposto.stopped": str(self.history.stopped), "contrapposto.kept": kept,
            **{f"contrapposto.{name}": value for name, value in tags.items()},
        })  # fmt: skip
        for path in sorted(artifacts.iterdir()):
            record.artifact(path, "model")
