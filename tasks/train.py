"""Stage `train <model>`: train one model on the shards and leave it in `artifacts/<model>/`.

    model.safetensors   averaged weights, codec, and all that is needed to build it again
    training.json       loss against images seen, and the denoising loss per noise level on training and held-out data

The state of a training under way lives in `.contrapposto/training/<model>/`, out of DVC's reach: a run that is killed
finds it there and goes on to the same bits. Metrics reach MLflow only after the checkpoint that covers them is on disk.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from tqdm import tqdm

from diffusion_core.level import sigma_level
from diffusion_core.train import TrainConfig, Trainer, evaluate
from tasks import artifacts, checkpoint, files, launch, models, tracking
from tasks.dataset.shards import ShardDataset
from tasks.models import Codec, Examples, Model
from tasks.params import Params, Pictures, Poses

# Where the denoising loss is watched, in the network's units (data have standard deviation 0.5).
SIGMAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
WATCHED = 128  # examples of each split in that watch
POINTS = 4  # points of the loss curve a checkpoint


def run(params: Params, root: Path, model: str) -> None:
    """Train `model`; with more than one rank, through torchrun. Killed and run again it ends with the same bits."""
    config = models.config_of(params, model)
    if config.ranks > 1 and not launch.under_torchrun():
        launch.torchrun(["tasks", "train", model], config.ranks, root)
        return
    try:
        if launch.under_torchrun():
            distributed.init_process_group("gloo")
        _train(params, root, model, config)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def digest(config: Poses | Pictures, examples: Examples) -> str:
    """What decides the weights: the model's parameters, the examples as the network gets them, the code, torch's version."""
    h = hashlib.sha256(config.model_dump_json().encode())
    for name, values in sorted({"x0": examples.x0, **examples.cond}.items()):
        h.update(f"{name}{tuple(values.shape)}".encode())
        h.update(values.contiguous().numpy().tobytes())
    here = Path(__file__).parents[1]
    for path in sorted([*here.glob("diffusion_core/**/*.py"), here / "tasks/train.py", here / "tasks/models.py"]):
        h.update(path.read_bytes())
    h.update(torch.__version__.encode())
    return h.hexdigest()[:32]


def _train(params: Params, root: Path, name: str, config: Poses | Pictures) -> None:
    torch.use_deterministic_algorithms(True)
    train = ShardDataset(root / "data/shards", "train")
    held_out = ShardDataset(root / "data/shards", "val")
    categories: list[str] = train.about["categories"]
    raw = models.examples(train, config, categories, mirrored=config.mirror)
    codec = Codec.fit(raw.x0, per_coordinate=name == "poses")
    model = models.build(name, config, categories, codec, train.about["margin"])
    model.denoiser.to(models.device())
    examples = Examples(codec.encode(raw.x0), raw.cond)
    trainer = Trainer(
        model.denoiser,
        model.recipe,
        TrainConfig(
            images=config.images,
            batch=config.batch,
            learning_rate=config.learning_rate,
            warmup_images=config.warmup_images,
            ema_halflife_images=config.ema_halflife_images,
            condition_dropout=config.condition_dropout,
            seed=config.seed,
        ),
        data=lambda index: (examples.x0[index], {key: value[index] for key, value in examples.cond.items()}),
        n=len(examples),
    )
    watch = {"train": models.examples(train, config, categories, False)}
    if len(held_out):
        watch["val"] = models.examples(held_out, config, categories, False)
    watch = {split: Examples(codec.encode(part.x0), part.cond).some(WATCHED) for split, part in watch.items()}
    session = _Session(params, root, model, digest(config, examples), trainer, watch)
    if session.leader:
        passes = config.images / len(train)
        shown = f"{len(train)} examples" + (" and their mirror images" if config.mirror else "")
        print(f"{name}: {shown}, {config.images} images in all: each person is seen about {passes:.0f} times")
    session.run()


class _Session:
    """One process's training: resumes, steps, watches, checkpoints, records. Rank 0 leads: it alone writes."""

    def __init__(
        self, params: Params, root: Path, model: Model, digest: str, trainer: Trainer, watch: dict[str, Examples]
    ) -> None:
        self.params, self.root, self.model, self.digest = params, root, model, digest
        self.trainer, self.watch = trainer, watch
        self.config = model.config
        self.leader = trainer.rank == 0
        self.path = root / ".contrapposto/training" / model.name / "checkpoint.safetensors"
        self.history: dict[str, Any] = {"loss": [], "levels": []}
        self.pending: list[float] = []  # losses since the last point of the curve

    def run(self) -> None:
        """Train to the end and write the artifacts."""
        self._resume()
        record: tracking.Run | None = None
        status = "KILLED"
        try:
            if self.leader:
                record = tracking.Store(self.params.tracking, self.root).model_run(self.model.name, self.digest)
                record.params({self.model.name: self.config.model_dump()})
                self._flush(record)
            self._loop(record)
            if record is not None:
                self._finish(record)
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            if record is not None:
                record.finish(status)

    def _resume(self) -> None:
        if not self.path.is_file():
            return
        tensors, meta = checkpoint.load(self.path)
        if meta["digest"] != self.digest:
            if self.leader:
                print(f"{self.model.name}: the checkpoint found is of other parameters or data; starting anew")
            return
        self.trainer.load_state(tensors, meta["trainer"])
        self.history, self.pending = meta["history"], meta["pending"]
        if self.leader:
            print(f"{self.model.name}: going on from image {self.trainer.nimg}")

    def _loop(self, record: tracking.Run | None) -> None:
        trainer, every = self.trainer, self.config.checkpoint_images
        bar = tqdm(
            total=self.config.images, initial=trainer.nimg, desc=f"train {self.model.name}", unit="image",
            disable=not self.leader, mininterval=2,
        )  # fmt: skip
        with bar:
            while not trainer.done:
                if launch.orphaned():
                    raise SystemExit("the process that started this training is gone")
                before = trainer.nimg
                self.pending.append(trainer.step().loss)
                bar.update(trainer.nimg - before)
                bar.set_postfix(loss=f"{self.pending[-1]:.4f}", refresh=False)
                if trainer.nimg * POINTS // every > before * POINTS // every or trainer.done:
                    self.history["loss"].append([trainer.nimg, sum(self.pending) / len(self.pending)])
                    self.pending = []
                if trainer.nimg // every > before // every or trainer.done:
                    self._checkpoint(record)

    def _checkpoint(self, record: tracking.Run | None) -> None:
        if not self.leader or record is None:
            return
        self.history["levels"].append(self._watch())
        tensors, state = self.trainer.state()
        meta = {"digest": self.digest, "trainer": state, "history": self.history, "pending": self.pending}
        checkpoint.save(self.path, tensors, meta)
        self._flush(record)

    def _watch(self) -> dict[str, Any]:
        """The averaged weights' denoising loss at each noise level, relative to knowing nothing but the variance."""
        sigma = torch.tensor(SIGMAS, dtype=torch.float64)
        denoiser = self.trainer.averaged()
        row: dict[str, Any] = {"images": self.trainer.nimg}
        for split, part in self.watch.items():
            device = models.device()
            cond = {key: value.to(device) for key, value in part.cond.items()}
            row[split] = evaluate(denoiser, part.x0.to(device), cond, sigma_level(sigma), self.config.seed).tolist()
        return row

    def _points(self) -> list[tuple[str, float, int]]:
        """All points of the history so far, as MLflow takes them."""
        points = [("loss", loss, nimg) for nimg, loss in self.history["loss"]]
        for row in self.history["levels"]:
            for split in self.watch:
                for sigma, value in zip(SIGMAS, row[split], strict=True):
                    points.append((f"denoising_loss.{split}.sigma_{sigma}", value, row["images"]))
        return points

    def _flush(self, record: tracking.Run) -> None:
        """Log the points that MLflow does not have yet: after a kill neither a gap nor a duplicate."""
        points = self._points()
        last = {name: record.last_step(name) for name in {name for name, _, _ in points}}
        record.log([point for point in points if point[2] > last[point[0]]])

    def _finish(self, record: tracking.Run) -> None:
        weights = self.trainer.averages["ema"].weights
        weights = {key.removeprefix("denoiser."): value for key, value in weights.items()}
        with files.new_folder(artifacts.folder(self.root, self.model.name)) as folder:
            models.save(folder, self.model, weights, {"digest": self.digest, "images": self.trainer.nimg})
            curve = {"sigmas": SIGMAS, **self.history}
            files.write_json(folder / "training.json", curve)
        record.tag(**{"contrapposto.model_sha256": artifacts.sha256(self.root, self.model.name)})
        for path in sorted(artifacts.folder(self.root, self.model.name).iterdir()):
            record.artifact(path, "model")
