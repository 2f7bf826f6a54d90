"""Stage `adapt METHOD [CHECKPOINT]`: train a small change of a model, and leave it in `artifacts/METHOD/`.

The model is the published one, `base`; for the methods `poses_adapted` and `pictures_adapted` it is one of ours, see
`tasks/adapt/own.py`.

    the files of the adapter           see `tasks/foreign/adapter.py`
    certificate.json, certificate.html             whether it copies its pictures, see `tasks/adapt/certificate.py`
    training.json, loss.csv, denoising_loss.csv, trained_on.json   as of every training, see `tasks/train/stage.py`

Latents of the pictures and embeddings of the captions are computed once, then the encoders are freed. A run that is killed
resumes and ends with the same bits.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion_core import rng
from diffusion_core.conditioning import WEIGHT, Cond, rows, to_device
from diffusion_core.denoiser import Preconditioned
from diffusion_core.lora import Adapter
from diffusion_core.rng import Stream
from diffusion_core.training import parallel
from diffusion_core.training.compute import computes_bf16
from diffusion_core.training.monitoring import NoiseScale
from diffusion_core.training.trainer import Trainer
from tasks import paths
from tasks.adapt import certificate, memory, own, pictures
from tasks.adapt.memory import Estimate
from tasks.adapt.pictures import Captioned, Splits
from tasks.common.code_digest import code_digest
from tasks.common.errors import UserError
from tasks.common.images import encode_png
from tasks.common.published import package
from tasks.common.skeleton import mirror
from tasks.common.subset import evenly_spaced
from tasks.config.adapt import ControlNet, Dreambooth, Lora, OwnChange, TextualInversion
from tasks.config.params import Params
from tasks.config.sampling import SamplingChoices
from tasks.foreign import adapter as adapters
from tasks.foreign import control, draw, inversion, offload
from tasks.foreign import model as foreign
from tasks.foreign.model import ForeignModel
from tasks.metrics import membership_inference
from tasks.models.inputs import Examples, as_pictures
from tasks.plots import drawing
from tasks.registry import lineage
from tasks.registry.tracking import Store
from tasks.train import latent_cache, launch, run_fingerprint
from tasks.train.core_settings import averages, core_compute, core_config
from tasks.train.evaluation import EVALUATED, SIGMAS, Evaluation
from tasks.train.loop import TrainingLoop
from tasks.train.state import TrainingFolder

CODE = ("tasks/adapt/*.py", "tasks/foreign/*.py", "tasks/extract/decode.py")
AFTER = ("tasks/adapt/certificate.py", "tasks/adapt/memory.py")  # of that code, what does not change the training
SHOWN = 8  # pictures in the sheet
PRIOR = 1  # what else the seed is for: the pictures of the class
DRAWN = 2  # and the pictures of the certificate
STEPS = 12  # of these pictures
WITHOUT_GRADIENTS = 4  # examples that take no more memory than one in training
BASE = "the published model"  # its key in the fingerprint of a training

AnyAdaptation = Lora | TextualInversion | ControlNet  # Dreambooth is a LoRA

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdaptedModel:
    """A published model with an adapter as the training loop knows it."""

    name: str
    config: AnyAdaptation
    denoiser: Preconditioned


@dataclass(frozen=True)
class AdapterEvaluator:
    """Measures the denoising loss of examples of `train` and, if there are any, `val` at each noise level."""

    model: ForeignModel
    examples: dict[str, Examples]
    size: int
    seed: int
    batch: int  # examples at once
    sigmas: ClassVar[tuple[float, ...]] = SIGMAS
    noise_scale: ClassVar[bool] = False  # two passes more through a large network would cost as much as they tell

    def evaluate(self, denoiser: Preconditioned, nimg: int, noise_scale: NoiseScale | None) -> Evaluation:
        """Losses at SIGMAS, and whether they tell training from held-out pictures."""
        losses = {}
        for split, examples in self.examples.items():
            x0, cond = examples.x0.to(self.model.device), to_device(examples.cond, self.model.device)
            losses[split] = membership_inference.losses(
                denoiser, x0, cond, SIGMAS, self.seed, draws=1, batch=self.batch
            )
        variances = membership_inference.noise_variances(SIGMAS, None)
        means = {split: (loss.mean(1) * variances).tolist() for split, loss in losses.items()}
        gaps = None
        if "val" in losses and min(loss.shape[1] for loss in losses.values()) >= 2:
            gaps = membership_inference.gaps(SIGMAS, losses["train"], losses["val"])
        return Evaluation(nimg, means["train"], means.get("val"), gaps)

    def picture(self, denoiser: Preconditioned, path: Path) -> None:
        """Pictures of captions, always from the same noise."""
        examples = self.examples.get("val", self.examples["train"]).some(SHOWN)
        ids = torch.arange(len(examples))
        how = SamplingChoices(sampler="dpmpp_2m", steps=STEPS)
        drawn = self.model.draw(examples.cond, how, self.seed, ids, self.size, denoiser=denoiser)
        drawing.save_png(path, drawing.sheet(list(as_pictures(drawn)), 4))


def run(params: Params, root: Path, method: str, checkpoint: str | None = None) -> None:
    """Train the change that `adapt.METHOD` describes. Raises UserError if it is missing, or if the base cannot be used."""
    config = getattr(params.adapt, method, None)
    if config is None or (params.base is None and not isinstance(config, OwnChange)):
        raise UserError(f"params.yaml: adapt.{method} is missing: it says how the model is adapted.")
    if not launch.under_torchrun():
        ranks = launch.ranks(config)
        if ranks > 1:
            launch.torchrun(["tasks", "adapt", method, *([checkpoint] if checkpoint else [])], ranks, root)
            return
    with launch.device() as device:
        start = Path(checkpoint) if checkpoint else None
        if isinstance(config, OwnChange):
            own.train(params, root, method, config, device, start)
        else:
            _train(params, root, method, config, device, start)


def _train(
    params: Params, root: Path, name: str, config: AnyAdaptation, device: torch.device, checkpoint: Path | None
) -> None:
    base = params.base
    assert base is not None  # `run` has seen to that
    half = config.cuda.precision in ("auto", "bf16") and device.type == "cuda" and computes_bf16(device)
    dtype = torch.bfloat16 if half else torch.float32
    model = foreign.load(root / base.source, base.sha256, device, dtype, config.offload)
    size = config.size or model.size
    model.shape(size)  # a size that does not fit is told before any picture is read
    splits = pictures.load(root, config, size)
    change = _change(model, config, base.sha256)
    if config.offload:
        offload.offload(model, recompute=True)
    if isinstance(config, Dreambooth):
        prior = _prior(root, model, config, size, base.sha256)
        data = Embedded(root, model, change.conditions, splits, config.mirror, base.sha256, prior, config.prior.weight)
    else:
        data = Embedded(
            root, model, change.conditions, splits, config.mirror, base.sha256, poses=_poses(config, splits, size)
        )
    change.denoiser.to(device)
    trainer = Trainer(
        change.denoiser,
        model.recipe,
        core_config(config, config.caption_dropout),
        data.train,
        len(data.keys),
        averages(config),
        compute=core_compute(config, device),
    )
    trained = config.model_copy(update={"certificate": None})  # the certificate changes no weight
    fingerprint = run_fingerprint.of(trained, splits.train.digest, splits.val.digest) | {
        BASE: base.sha256, "the code of adapters": code_digest(CODE, without=AFTER),
        "diffusers": package("diffusers").__version__,
    }  # fmt: skip
    if trainer.rank == 0:
        _announce(name, trainer, splits, size)
        Store(params.tracking, root)  # MLflow takes memory of its own, which is then in use already
    expected = memory.estimate(trainer, model, size)
    memory.reset_peak(device)
    if trainer.rank == 0:
        log.info(f"{name}: {expected.sentence()}")
    at_once = WITHOUT_GRADIENTS * (trainer.compute.microbatch or config.batch)
    loop = TrainingLoop(
        params, root, AdaptedModel(name, config, change.denoiser), trainer,
        TrainingFolder(root, name, fingerprint, config.checkpoints_kept, params),
        AdapterEvaluator(model, data.evaluated(), size, rng.fold(config.seed, Stream.WATCH), at_once), data.keys,
        _trained_on(splits, base.sha256), change.save,
        judge=partial(_judge, root, name, config, model, splits, size, expected),
    )  # fmt: skip
    loop.resume(checkpoint)
    loop.run()


class Change(NamedTuple):
    """What is trained: a denoiser whose parameters are the change, what captions become, and how it is saved."""

    denoiser: Preconditioned
    conditions: Callable[[Sequence[str]], Cond]
    save: Callable[..., None]  # (folder, weights=, meta=)


def _change(model: ForeignModel, config: AnyAdaptation, sha256: str) -> Change:
    """The untrained change that the section describes."""
    if isinstance(config, TextualInversion):
        word = inversion.Inversion(model, config.word, config.vectors, config.initial, config.seed)
        if config.recompute:
            model.net.inner.enable_gradient_checkpointing()
        about = {"base": sha256}

        def save_word(folder: Path, weights: dict[str, Tensor], meta: dict[str, Any]) -> None:
            word.save(folder, weights, about | meta)

        return Change(word.denoiser, word.conditions, save_word)
    if isinstance(config, ControlNet):
        branched = control.controlled(model, config.seed, config.recompute)
        branch = control.branch_of(branched)
        return Change(branched.denoiser, model.conditions, partial(_save_branch, branch=branch, sha256=sha256))
    adapted, adapter = adapters.adapted(model, config.rank, config.alpha, config.targets, config.seed, config.recompute)
    save = partial(_save, model=model, adapter=adapter, sha256=sha256)
    return Change(adapted.denoiser, model.conditions, save)


def _judge(
    root: Path, name: str, config: AnyAdaptation, model: ForeignModel, splits: Splits, size: int, expected: Estimate,
    folder: Path,
) -> dict[str, str]:  # fmt: skip
    """Tell what memory the training took, and write the certificate of the trained change in a folder."""
    used = memory.peak(model.device)
    log.info(
        f"{name}: the training used {memory.gigabytes(used)} of memory; {memory.gigabytes(expected.peak)} were expected."
    )
    tags = {"memory_expected": str(expected.peak), "memory_used": str(used)}
    if config.certificate is None:
        return tags
    changed = draw.adapted(folder, model)
    seed = rng.fold(config.seed, DRAWN)
    poses = None
    how = _poses(config, splits, size)
    if how is not None and splits.train.poses is not None:
        poses = how.drawn(splits.train.poses[evenly_spaced(len(splits.train), config.certificate.samples)])
        shown = splits.val.poses if splits.val.poses is not None and len(splits.val) else splits.train.poses
        (folder / "poses").mkdir()
        for i, picture in enumerate(as_pictures(how.drawn(shown[:SHOWN]) * 2 - 1)):
            (folder / f"poses/{i:06d}.png").write_bytes(encode_png(picture))
    outcome = certificate.of_published(root, name, config.certificate, changed, splits, size, seed, folder, poses)
    log.info(f"{name}: {outcome.verdict}. {outcome.sentence}")
    return {**tags, "certificate": outcome.verdict, "certificate_sentence": outcome.sentence}


def _poses(config: AnyAdaptation, splits: Splits, size: int) -> Poses | None:
    """How the poses are drawn for a ControlNet; None for other methods."""
    if not isinstance(config, ControlNet):
        return None
    assert splits.shards is not None  # the parameters allow nothing else
    return Poses(size, float(splits.shards.about["margin"]))


def _prior(root: Path, model: ForeignModel, config: Dreambooth, size: int, sha256: str) -> Captioned:
    """The pictures of the class, which the published model draws once, in `.contrapposto/prior/`."""
    prior = config.prior
    how = SamplingChoices(sampler="dpmpp_2m", steps=prior.steps, guidance=prior.guidance)
    seed = rng.fold(config.seed, PRIOR)
    request = draw.Request([prior.prompt], prior.count, how, size=size, seed=seed)
    named = json.dumps([sha256, prior.prompt, prior.count, how.sampling_json, size, seed, str(model.dtype)])
    folder = root / paths.PRIOR / hashlib.sha256(named.encode()).hexdigest()[:32]
    if parallel.ranks()[0] == 0:
        draw.into(model, request, folder, {"sha256": sha256})
    parallel.broadcast(None)  # wait for them
    return pictures.from_folder(folder, prior.prompt, size)


class Poses(NamedTuple):
    """How poses are drawn: pixels of a picture, and the margin around a person."""

    size: int
    margin: float

    def drawn(self, poses: np.ndarray) -> Tensor:
        """Pictures of poses `[n, 33, 3]`, float32 `[n, 3, size, size]` in 0 ... 1."""
        return control.pictures(poses, self.size, self.margin)


class Embedded:
    """Latents of the pictures and embeddings of their captions, computed once.

    `prior`: pictures of the class, which become half of the examples; an error on them costs `prior_weight` times as much.
    `poses`: how the poses of the pictures are drawn, for a ControlNet.
    """

    def __init__(
        self,
        root: Path,
        model: ForeignModel,
        conditions: Callable[[Sequence[str]], Cond],
        splits: Splits,
        mirror: bool,
        sha256: str,
        prior: Captioned | None = None,
        prior_weight: float = 1.0,
        poses: Poses | None = None,
    ) -> None:
        self.splits = splits
        captions = [*splits.train.captions * (2 if mirror else 1), *(prior.captions if prior else ())]
        every = sorted({*captions, *splits.val.captions})
        number = {caption: i for i, caption in enumerate(every)}
        self.embeddings = conditions(every)
        self.captions = torch.tensor([number[caption] for caption in captions])
        sides = [(splits.train, False), *([(splits.train, True)] if mirror else [])]
        parts = [_latents(root, model, part, flipped, sha256) for part, flipped in sides]
        own = sum(map(len, parts))
        if prior is not None:
            parts.append(_latents(root, model, prior, False, sha256))
        self.latents = torch.cat(parts)
        # The examples of a pass over the data, by their places in `latents`.
        self.order = torch.arange(own) if prior is None else _halves(own, len(prior))
        self.weights = None if prior is None else torch.where(self.order < own, 1.0, prior_weight)
        keys = [*splits.train.keys * len(sides), *(prior.keys if prior else ())]
        self.keys = [keys[place] for place in self.order.tolist()]
        self.held_out: Examples | None = None
        self.poses = poses
        if len(splits.val):
            numbers = torch.tensor([number[caption] for caption in splits.val.captions])
            latents = _latents(root, model, splits.val, False, sha256)
            chosen = torch.tensor(evenly_spaced(len(splits.val), EVALUATED))
            cond = rows(self.embeddings, numbers[chosen])
            if poses is not None and splits.val.poses is not None:
                cond[control.POSE] = poses.drawn(splits.val.poses[chosen.numpy()])
            self.held_out = Examples(latents[chosen], cond)

    def train(self, indices: Tensor) -> tuple[Tensor, Cond]:
        """Training examples by index."""
        places = self.order[indices]
        cond = self._conditions(places)
        if self.weights is not None:
            cond[WEIGHT] = self.weights[indices, None, None, None]
        return self.latents[places], cond

    def _conditions(self, places: Tensor) -> Cond:
        cond = rows(self.embeddings, self.captions[places])
        poses = self.splits.train.poses
        if self.poses is not None and poses is not None:
            chosen, flipped = poses[(places % len(poses)).numpy()], (places >= len(poses)).numpy()
            cond[control.POSE] = self.poses.drawn(np.where(flipped[:, None, None], mirror(chosen), chosen))
        return cond

    def evaluated(self) -> dict[str, Examples]:
        """At most EVALUATED examples of each split, without those of the class."""
        chosen = torch.tensor(evenly_spaced(len(self.splits.train), EVALUATED))
        examples = {"train": Examples(self.latents[chosen], self._conditions(chosen))}
        if self.held_out is not None:
            examples["val"] = self.held_out
        return examples


def _halves(own: int, prior: int) -> Tensor:
    """Places of as many own pictures as of the class, the fewer of both repeated."""
    most = torch.arange(max(own, prior))
    return torch.cat([most % own, own + most % prior])


def _latents(root: Path, model: ForeignModel, part: Captioned, flipped: bool, sha256: str) -> Tensor:
    values = torch.from_numpy(part.pictures).permute(0, 3, 1, 2)

    def read(indices: Tensor) -> Tensor:
        chosen = values[indices].float() / 127.5 - 1
        return chosen.flip(3) if flipped else chosen

    identity = f"{sha256} {part.digest} {flipped}"
    return latent_cache.latents(root / paths.LATENTS / "adapt", model.codec, read, len(part), identity, model.device)


def _trained_on(splits: Splits, start: str) -> dict[str, Any]:
    if splits.shards is not None:
        return lineage.trained_on(splits.shards, start)
    return {"shards": {}, "keys": sorted(set(splits.train.keys)), "start": start}


def _save(
    folder: Path, weights: dict[str, Tensor], meta: dict[str, Any], model: ForeignModel, adapter: Adapter, sha256: str
) -> None:
    """Write the adapter with the weights that the training kept."""
    prefix = "net.adapter."
    adapter.load_state_dict({name.removeprefix(prefix): value for name, value in weights.items()})
    adapters.save(folder, model, adapter, {"base": sha256, "pipeline": model.folder.pipeline, **meta})


def _save_branch(folder: Path, weights: dict[str, Tensor], meta: dict[str, Any], branch: Any, sha256: str) -> None:
    """Write the branch with the weights that the training kept."""
    prefix = "net.branch."
    branch.load_state_dict({name.removeprefix(prefix): value for name, value in weights.items()})
    control.save(folder, branch, {"base": sha256, **meta})


def _announce(name: str, trainer: Trainer, splits: Splits, size: int) -> None:
    trained = sum(p.numel() for p in trainer.parameters.values())
    held_out = (
        f"{len(splits.val)} held out" if len(splits.val) else "too few to hold any out, so there is no validation loss"
    )
    log.info(
        f"{name}: {len(splits.train)} pictures of {size} pixels, {held_out}; for example {splits.train.captions[0]!r}."
    )
    log.info(f"{name}: {trained:,} weights are trained.")
