"""The training of the codec: `artifacts/codec/`, from the same shards and with the same loop as the models.

`none` writes that there is none, `pca` is computed in closed form, the autoencoders begin there and are trained; a `published`
one is only given the scale of its latents. If the picture model starts with another model's weights, that model's codec is
taken as it is: other latents would make them useless.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_core import rng
from diffusion_core.codecs import Latent
from diffusion_core.conditioning import PADDING, WEIGHT, Cond, to_device
from diffusion_core.denoiser import Preconditioned
from diffusion_core.nets.autoencoder import FirstStage
from diffusion_core.rng import Stream
from diffusion_core.training import reconstruction
from diffusion_core.training.adversarial import AdversarialLoss, PatchDiscriminator
from diffusion_core.training.monitoring import NoiseScale
from diffusion_core.training.perceptual import Perceptual
from diffusion_core.training.trainer import Data, Trainer
from tasks import paths
from tasks.common import checkpoint as files_of_tensors
from tasks.common import files
from tasks.common.errors import DataError, UserError
from tasks.common.subset import evenly_spaced
from tasks.config.codec import Codec
from tasks.config.params import Params, Pictures
from tasks.dataset.shards import ShardDataset
from tasks.metrics import weights as network_weights
from tasks.models import codec as stored_codec
from tasks.models import inputs, published_codec
from tasks.models.conditioning import KEYS, at_latents, weights
from tasks.models.inputs import DATA_SD, Examples
from tasks.models.published_codec import Published
from tasks.plots import drawing
from tasks.registry import lineage
from tasks.train import data as training_data
from tasks.train import run_fingerprint, warm_start
from tasks.train.core_settings import averages, core_compute, core_config
from tasks.train.data import ExampleDataset
from tasks.train.evaluation import EVALUATED, Evaluation
from tasks.train.loop import TrainingLoop
from tasks.train.state import TrainingFolder

FITTED = 4096  # pictures from which principal components and the scale of the latents are computed
SHOWN = 12  # pictures in the sheet
POSE_DROPOUT = 0.1  # probability of withholding the pose from a decoder that sees it

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CodecModel:
    """A codec as the training loop knows it: `denoiser.net` is the autoencoder."""

    config: Codec
    denoiser: Preconditioned
    name: str = stored_codec.NAME


@dataclass(frozen=True)
class CodecEvaluator:
    """Measures the reconstructions of pictures of `train` and, if there are any, `val`; padding has no weight."""

    pictures: dict[str, Examples]
    sigmas: ClassVar[tuple[float, ...]] = ()
    noise_scale: ClassVar[bool] = False  # two passes more would cost as much as they tell

    def evaluate(self, denoiser: Preconditioned, nimg: int, noise_scale: NoiseScale | None) -> Evaluation:
        """The mean error of the reconstructions, that on the limbs as on the background."""
        errors = {
            split: [float(reconstruction.error(self._again(denoiser, one), one.x0, one.cond.get(WEIGHT)).mean())]
            for split, one in self.pictures.items()
        }
        return Evaluation(nimg, errors["train"], errors.get("val"))

    def picture(self, denoiser: Preconditioned, path: Path) -> None:
        """Originals above their reconstructions."""
        shown = self.pictures.get("val", self.pictures["train"]).some(SHOWN)
        originals = shown.x0
        both = torch.cat([originals, self._again(denoiser, shown)])
        tiles = [drawing.enlarge(picture, 96) for picture in inputs.as_pictures(both)]
        drawing.save_png(path, drawing.sheet(tiles, len(originals)))

    @torch.no_grad()
    def _again(self, denoiser: Preconditioned, examples: Examples) -> Tensor:
        net = reconstruction.autoencoder(denoiser)
        device = next(net.parameters()).device
        codec = Latent(net, torch.zeros(net.latents, 1, 1, device=device), torch.ones((), device=device))
        cond = at_latents(to_device(examples.cond, device), net.factor)
        return codec.decode(codec.encode(examples.x0.to(device)), cond).cpu()


def train(params: Params, root: Path, device: torch.device, checkpoint: Path | None) -> None:
    """Leave the codec in `artifacts/codec/`. Raises DataError if there are no pictures to train it on."""
    config = params.codec
    folder = paths.model_folder(root, stored_codec.NAME)
    if params.pictures.start is not None:
        _adopt(folder, warm_start.find(root, params.pictures.start, "pictures"), config)
        return
    if config.kind == "none":
        _write(folder, config, None)
        return
    changes: dict[str, Any] = {"conditions": ["pose_map"], "condition_noise": 0.0, "self_condition": False}
    changes |= config.model_dump(include={"mirror", "copies", "seed", "body_weight"})
    view = params.pictures.model_copy(update=changes)
    train_set, held_out = (inputs.usable(root, split, view) for split in ("train", "val"))
    if not len(train_set):
        raise DataError("No training person has a picture: there is nothing to train a codec on.")
    dataset = ExampleDataset(train_set, view, train_set.about["categories"])
    fitted = dataset.read(torch.tensor(evenly_spaced(dataset.uncopied, FITTED)))
    training_data.check_finite(fitted, [dataset.keys[i] for i in evenly_spaced(dataset.uncopied, FITTED)])
    if config.kind == "published":
        _write(folder, config, _fit(_published(root, config), fitted.x0), lineage.trained_on(train_set, None))
        return
    net = stored_codec.untrained(config)
    net.start_from_pca(fitted.x0, padding=fitted.cond.get(PADDING))
    if config.kind == "pca":
        _write(folder, config, _fit(net, fitted.x0), lineage.trained_on(train_set, None))
        return

    recipe = reconstruction.recipe(config.noise, _loss(root, config))
    denoiser = recipe.denoiser(net).to(device)
    source = _examples(dataset, config)
    trainer = Trainer(
        denoiser,
        recipe,
        core_config(config, POSE_DROPOUT if config.pose else 0.0),
        source,
        len(dataset),
        averages(config),
        compute=core_compute(config, device),
    )
    evaluated = {
        split: _pictures(part, view, dataset.padded)
        for split, part in (("train", train_set), ("val", held_out))
        if len(part)
    }
    digests = [training_data.digest(one) for one in (fitted, evaluated.get("val", fitted.some(0)))]
    fingerprint = run_fingerprint.of(config, digests[0], digests[1])
    if trainer.rank == 0:
        log.info(
            f"codec: {config.images:,} pictures of {len(train_set):,} persons, on {device.type}, {trainer.compute.precision}, "
            f"{sum(p.numel() for p in net.parameters()):,} weights."
        )
    loop = TrainingLoop(
        params, root, CodecModel(config, denoiser), trainer,
        TrainingFolder(root, stored_codec.NAME, fingerprint, config.checkpoints_kept, params),
        CodecEvaluator(evaluated), dataset.keys, lineage.trained_on(train_set, None),
        partial(_save_trained, config=config, pictures=fitted.x0),
    )  # fmt: skip
    loop.resume(checkpoint)
    loop.run()


def config_of(params: Params) -> Codec:
    """The codec's section of the parameters."""
    return params.codec


def trained(params: Params, root: Path) -> Latent | None:
    """The codec that the picture model works with; None if it works on pixels. Raises DataError if the file is missing."""
    if params.codec.kind == "none":
        return None
    return stored_codec.load(paths.model_folder(root, stored_codec.NAME) / paths.MODEL_FILE)


def _pictures(dataset: ShardDataset, view: Pictures, padded: bool) -> Examples:
    """EVALUATED pictures of a split in data units, their pose maps, and where they are padding."""
    chosen = dataset.take(evenly_spaced(len(dataset), EVALUATED))
    examples = inputs.examples(chosen, view, dataset.about["categories"], mirrored=False, padded=padded)
    return Examples(examples.x0, weights(examples.cond, 0.0))


def _examples(dataset: ExampleDataset, config: Codec) -> Data:
    """Pictures by index, from memory if they fit there, with their weights and, if the codec sees them, pose maps."""
    used = {WEIGHT, KEYS["pose_map"]} if config.pose else {WEIGHT}

    def of(examples: Examples) -> tuple[Tensor, Cond]:
        return examples.x0, {key: value for key, value in examples.cond.items() if key in used}

    if dataset.bytes() > config.memory_gb * 1e9:
        return lambda index: of(dataset.read(index))
    x0, cond = of(dataset.read_all())
    return lambda index: (x0[index], {key: value[index] for key, value in cond.items()})


def _loss(root: Path, config: Codec) -> AdversarialLoss | None:
    """The loss with a discriminator or a perceptual distance; None for the plain one. Raises UserError for unfit weights."""
    if config.adversarial is None and config.perceptual is None:
        return None
    torch.manual_seed(rng.fold(config.seed, Stream.DISCRIMINATOR))
    discriminator = None
    from_images, weight = 0, 0.0
    if config.adversarial is not None:
        chosen = config.adversarial
        from_images, weight = chosen.from_images, chosen.weight
        scale = chosen.learning_rate / config.learning_rate
        discriminator = PatchDiscriminator(3, chosen.width, chosen.depth, scale)
    return AdversarialLoss(discriminator, from_images, weight, _perceptual(root, config))


def _perceptual(root: Path, config: Codec) -> Callable[[Tensor, Tensor], Tensor] | None:
    chosen = config.perceptual
    if chosen is None:
        return None
    read = {
        key: network_weights.read(network_weights.locate(given, root), given.source)
        for key, given in (("vgg", chosen.vgg), ("lpips", chosen.lpips))
        if given is not None
    }
    try:
        distance = Perceptual(read["vgg"], read.get("lpips")).requires_grad_(False)
    except ValueError as error:
        raise UserError(f"codec.perceptual: the files do not hold the weights of VGG-16 or LPIPS: {error}.") from error
    return lambda x, y: chosen.weight * distance(x, y)


def _published(root: Path, config: Codec) -> Published:
    """The autoencoder in the folder that the parameters name. Raises UserError if it is another one or does not fit."""
    given = config.published
    assert given is not None  # the typed parameters see to that
    folder = root / given.source
    net = Published(published_codec.about(folder))
    if (net.factor, net.latents) != (config.factor, config.latents):
        raise UserError(
            f"params.yaml: codec.factor and codec.latents must be {net.factor} and {net.latents}, those of {given.source}."
        )
    file = given.model_copy(update={"source": f"{given.source}/{published_codec.WEIGHTS}"})
    tensors = network_weights.read(network_weights.locate(file, root), file.source)
    try:
        net.net.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{file.source} does not fit the {published_codec.CONFIG} beside it.") from error
    return net


def _save_trained(
    folder: Path, weights: dict[str, Tensor], meta: dict[str, Any], config: Codec, pictures: Tensor
) -> None:
    """Write the trained autoencoder with the scale of its latents."""
    net = stored_codec.untrained(config)
    net.load_state_dict({name.removeprefix("net."): value.cpu() for name, value in weights.items()})
    stored_codec.save(folder, config, _fit(net, pictures), meta)


def _fit(net: FirstStage, pictures: Tensor) -> Latent:
    """The codec of an autoencoder. Raises DataError if all pictures are the same."""
    try:
        return Latent.fit(net, pictures, DATA_SD)
    except ValueError as error:
        raise DataError("All training pictures are the same: there is nothing to learn.") from error


def _write(folder: Path, config: Codec, codec: Latent | None, trained_on: dict[str, Any] | None = None) -> None:
    with files.new_folder(folder) as temporary:
        stored_codec.save(temporary, config, codec, {})
        if trained_on is not None:
            files.write_json(temporary / lineage.FILE, trained_on)


def _adopt(folder: Path, source: Path, config: Codec) -> None:
    """Take the codec out of a picture model's file."""
    log.info("codec: that of the model that the picture model starts with.")
    meta = files_of_tensors.about(source)
    with files.new_folder(folder) as temporary:
        stored_codec.save(temporary, config, stored_codec.load(source), {"digest": meta.get("digest")})
