"""Stage `train <model> [CHECKPOINT]`: train one model on the shards and leave it in `artifacts/<model>/`.

    model.safetensors   averaged weights of the best evaluation, the codec, and the parameters to build the model again
    training.json       loss against images seen, the evaluations, why the training ended, which weights were kept
    loss.csv, denoising_loss.csv   the curves of training.json, for `dvc plots`
    trained_on.json     the samples it was trained on, see `lineage`
    snapshots/          further averages, if `power_averages` asks for any

The state of an unfinished training is in `.contrapposto/training/<model>/`, which DVC does not track. A run that is killed
resumes from there and ends with the same bits. A CHECKPOINT that is given is resumed, or refused if it is another training's.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path

import torch

from diffusion_core.codecs import Latent, Tokens
from diffusion_core.training import data_scale
from diffusion_core.training.trainer import Trainer
from diffusion_core.training_choices import RECIPES, fill_in
from tasks import paths
from tasks.common.errors import DataError
from tasks.config.codec import Codec
from tasks.config.params import Params, Pictures, Upscaler
from tasks.models import codec, modality
from tasks.models.codec import PictureCodec
from tasks.models.conditioning import AnyModel
from tasks.models.inputs import Examples
from tasks.models.modality import ClipShape, EmbeddedText, Model
from tasks.train import codec as codec_training
from tasks.train import launch, preparation, upscaler, video, warm_start
from tasks.train.loop import TrainingLoop
from tasks.train.preparation import TrainingData

MEASURED = 512  # examples from which the scale of the data is estimated

log = logging.getLogger(__name__)


def run(params: Params, root: Path, model: str, checkpoint: str | None = None) -> None:
    """Train `model`, with torchrun if there is more than one rank. Killed and run again, it ends with the same bits."""
    config = config_of(params, root, model)
    if not launch.under_torchrun():
        ranks = launch.ranks(config)
        if ranks > 1:
            launch.torchrun(_arguments(model, checkpoint), ranks, root)
            return
    with launch.device() as device:
        path = Path(checkpoint) if checkpoint else None
        if isinstance(config, Codec):
            codec_training.train(params, root, device, path)
        elif isinstance(config, Upscaler):
            upscaler.train(params, root, device, path)
        else:
            _train(params, root, model, config, device, path)


def run_node(params: Params, root: Path, node: launch.Node, model: str, checkpoint: str | None = None) -> None:
    """Train `model` together with other machines, of which this is one. Run again on all, it ends with the same bits.

    Each needs the code, `params.yaml` and the shards. Node 0 alone reads and writes checkpoints, artifacts and MLflow.
    """
    launch.torchrun(
        _arguments(model, checkpoint), launch.ranks_per_node(config_of(params, root, model), node.count), root, node
    )


def node_command(params: Params, root: Path, node: launch.Node, model: str, checkpoint: str | None = None) -> str:
    """The command line that `run_node` runs."""
    each = launch.ranks_per_node(config_of(params, root, model), node.count)
    return shlex.join(["python", *launch.command(_arguments(model, checkpoint), each, node)[1:]])


def _arguments(model: str, checkpoint: str | None) -> list[str]:
    return ["tasks", "train", model, *([checkpoint] if checkpoint else [])]


def config_of(params: Params, root: Path, model: str) -> AnyModel | Codec | Upscaler:
    """The section of the parameters with the training of a model."""
    if model == paths.VIDEO:
        return video.config_of(params, root)
    if model == paths.UPSCALER:
        return upscaler.config_of(params)
    return codec_training.config_of(params) if model == codec.NAME else modality.config_of(params, model)


def _train(
    params: Params, root: Path, name: str, config: AnyModel, device: torch.device, checkpoint: Path | None
) -> None:
    data = preparation.load_data(root, name, config, device, codec_of(params, root, name, config))
    preparation.run(assembled(params, root, name, config, data, device), data, checkpoint)


def codec_of(params: Params, root: Path, name: str, config: AnyModel) -> PictureCodec | None:
    """The trained codec of the models of pictures and clips of them; None if there is none, and for other models."""
    if name == paths.VIDEO:
        return video.codec(root)
    latents = codec_training.trained(params, root) if name == "pictures" else None
    return Tokens.of(latents) if isinstance(latents, Latent) and RECIPES[config.recipe].tokens else latents


def assembled(
    params: Params,
    root: Path,
    name: str,
    config: AnyModel,
    data: TrainingData,
    device: torch.device,
    training: str | None = None,
    more: Mapping[str, str] | None = None,
    output: Path | None = None,
) -> TrainingLoop:
    """The loop that trains the model `name` on these data.

    `training`: the name of the training, by default the model's; `more`: what else identifies it; `output`: the folder of the
    finished model.
    """
    source = data.source
    if name == "pictures" and isinstance(config, Pictures):
        _announce_enlarged(data.train.sides(), config.size)
    with_numbers = _measured(config, source.subset)
    model = modality.build(
        name,
        with_numbers,
        data.categories,
        source.codec,
        data.train.about["margin"],
        data.dataset.padded,
        ClipShape.of(data.train),
        EmbeddedText.of(data.train, with_numbers),
    )
    model = model.fitted(source.subset.x0)
    model.denoiser.to(device)
    trainer = preparation.trainer(model, config, data, device)
    if config.start is not None:
        trainer.warm_start(warm_start.weights(root, config.start, model))
    if trainer.rank == 0 and training is None:
        _announce(trainer, model, source.subset, len(data.train))
    return preparation.training_loop(
        params, root, training or name, model, config, trainer, data, more=more, output=output
    )


def _measured(config: AnyModel, examples: Examples) -> AnyModel:
    """The config with numbers instead of the recipe's parameters that are `auto`. Raises DataError if they cannot be measured.

    Two decimals, so that another machine's rounding errors do not make it another training.
    """
    training = config.training
    if not training.measured:
        return config
    x0 = examples.some(MEASURED).x0
    try:
        if training.recipe == "ncsn":
            levels = data_scale.annealed_levels(x0, float(training.values["sigma_min"] or 0))
            values: dict[str, float] = {"sigma_max": round(levels.largest, 2), "levels": levels.levels}
        else:
            scale = data_scale.data_scale(x0)
            values = {"p_mean": round(scale.mean, 2), "p_std": round(scale.std, 2)}
    except ValueError as error:
        raise DataError(f"{', '.join(training.measured)} cannot be auto: {error}.") from error
    shown = ", ".join(f"{name} {values[name]:.2f}" for name in training.measured)
    log.info(f"Measured of the data: {shown}.")
    return config.with_parameters(fill_in(training.parameters, values))


def _announce_enlarged(sides: list[int], size: int) -> None:
    """Say how many persons have fewer pixels than the pictures that the model is to draw."""
    smaller = sum(side < size for side in sides)
    if smaller:
        log.info(f"pictures: {smaller} of {len(sides)} persons are smaller than {size} pixels and were enlarged.")


def _announce(trainer: Trainer, model: Model, examples: Examples, persons: int) -> None:
    """Log how large the training is, and how it is computed."""
    config, name = model.config, model.name
    continuous = model.recipe.codes is None
    scale = data_scale.data_scale(examples.some(MEASURED).x0) if persons > 1 and continuous else None
    mirrored = " Mirror images are not counted." if config.mirror else ""
    log.info(f"{name}: {data_scale.training_outlook(persons, config.images, scale)}{mirrored}")
    compute = trainer.compute
    size = f" in micro-batches of {compute.microbatch}" if compute.microbatch else ""
    ranks = (
        f", {trainer.world} ranks, weights {'sharded' if compute.sharded else 'replicated'}"
        if trainer.world > 1
        else ""
    )
    log.info(f"{name}: on {trainer.device.type}, {compute.precision}, batches of {config.batch}{size}{ranks}.")
    if trainer.compile_warning:
        log.info(f"{name}: {trainer.compile_warning}")
