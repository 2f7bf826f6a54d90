"""LoRA of one of our own models on the shards of the workspace, for example for a category that it has not seen.

`artifacts/<model>_adapted/` holds

    model.safetensors     the whole model with the change added to its weights: sampled, judged, promoted, served and exported
                          like any model (`sample.<model>.model`)
    adapter.safetensors   the change alone, with the sha256 of the model that it belongs to

and what every training writes. A category that the model does not know is withheld from it, and belongs to the change.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_core import rng
from diffusion_core.lora import Adapted, Adapter, targets
from tasks import paths
from tasks.adapt import certificate
from tasks.adapt.pictures import Captioned
from tasks.common import checkpoint, files
from tasks.common.errors import DataError, UserError
from tasks.common.subset import evenly_spaced
from tasks.config.adapt import OwnLora
from tasks.config.params import Params, Pictures, Upscaler
from tasks.dataset.shards import ShardDataset
from tasks.models import inputs, modality, model_file
from tasks.models.conditioning import AnyModel
from tasks.models.inputs import Examples
from tasks.models.modality import EmbeddedText, Model
from tasks.registry import model_registry
from tasks.registry.tracking import Store
from tasks.train import preparation
from tasks.train.evaluation import EVALUATED
from tasks.train.preparation import MEASURED_ERRORS, save_measured

ADAPTER = "adapter.safetensors"
SUFFIX = "_adapted"
ATTENTION_AND_MLP = ("qkv", "query", "key_value", "out", "expand", "contract")  # those of them that a network has
DRAWN = 2  # what else the seed is for: the pictures of the certificate

log = logging.getLogger(__name__)


def adapted(
    model: Model, rank: int, alpha: float | None = None, names: list[str] | None = None, seed: int = 0
) -> tuple[Model, Adapter]:
    """The model with an untrained adapter, which changes nothing yet; at rank 0 the model itself. The network is shared.

    `names`: of layers, or their ends; None: those of attention and MLPs. Raises UserError if the network has no such layer.
    """
    if model.recipe.nets is not None:
        raise UserError(f"A model of recipe {model.config.recipe} has several networks and cannot be adapted.")
    net: nn.Module = model.denoiser.net
    layers = _layers(net, names)
    adapter = Adapter(layers, rank, rank if alpha is None else alpha, seed)
    if not rank:
        return model, adapter
    wrapped = model.recipe.denoiser(Adapted(net, layers, adapter))
    return replace(model, denoiser=wrapped), adapter


def _layers(net: nn.Module, names: list[str] | None) -> dict[str, nn.Linear | nn.Conv2d]:
    if names is None:
        ends = [name.rpartition(".")[2] for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
        names = [name for name in ATTENTION_AND_MLP if name in ends]
    try:
        found = targets(net, names)
    except ValueError as error:
        raise UserError(f"adapt.targets: {error}.") from error
    if not found:
        raise UserError("adapt.targets: the network has no linear layers of attention; name the layers to change.")
    return found


def merged(model: Model, adapter: Adapter, scale: float = 1.0) -> dict[str, Tensor]:
    """The weights of the model's denoiser with the change added, `scale` times; with 0 they are the model's, bit for bit."""
    weights = {name: value.detach().cpu().clone() for name, value in model.denoiser.state_dict().items()}
    if scale == 0:
        return weights
    for name, change in adapter.named().items():
        weight = weights[f"net.{name}.weight"]
        weight += scale * change.matrix().detach().to(weight)
    return weights


def load(folder: Path, model: Model) -> tuple[Model, Adapter]:
    """The model with the adapter in a folder, not merged. Raises UserError if it was trained for another model."""
    tensors, meta = checkpoint.load(folder / ADAPTER)
    changed, adapter = adapted(model, meta["rank"], meta["alpha"], meta["layers"])
    try:
        adapter.load(tensors)
    except ValueError as error:
        raise UserError(f"The adapter in {folder} was trained for another model: {error}.") from error
    changed.denoiser.to(next(model.denoiser.parameters()).device).eval().requires_grad_(False)
    return changed, adapter


def train(
    params: Params, root: Path, name: str, section: OwnLora, device: torch.device, resumed: Path | None = None
) -> None:
    """Train the adapter that `adapt.<name>` describes.

    Raises UserError or DataError if there is no such model, or if the shards have no picture of the categories.
    """
    kind = name.removesuffix(SUFFIX)
    source = _source(params, root, kind, section.of)
    model = model_file.load(source, device)
    assert not isinstance(model.config, Upscaler)  # `adapt` names poses or pictures
    sha256 = paths.sha256(source)
    config = _config(model.config, section)
    datasets = _datasets(root, config, section.categories)
    if _encoder(EmbeddedText.of(datasets[0], config)) != _encoder(model.text):
        raise UserError(f"adapt.{name}: the model was trained with another text encoder than that of the shards.")
    data = preparation.load_data(root, kind, config, device, model.codec, model.categories, datasets)
    changed, adapter = adapted(model, section.rank, section.alpha, section.targets, section.seed)
    changed = replace(changed, config=config, meta={})
    changed.denoiser.to(device)
    trainer = preparation.trainer(changed, config, data, device)
    described = section.model_dump(exclude={"certificate", "of"} | set(type(model.config).model_fields))
    more = {"adapt": json.dumps(described, sort_keys=True), "the adapted model": sha256}
    loop = preparation.training_loop(params, root, name, changed, config, trainer, data, sha256, more)
    about = {"base": sha256, "rank": section.rank, "alpha": adapter.alpha, "layers": sorted(adapter.named())}
    some = _some(model, data.train, data.source.codec)
    loop.save = partial(
        _save, model=model, adapter=adapter, scale=section.scale, about=about, examples=some, device=device
    )
    if isinstance(config, Pictures) and section.certificate:
        loop.judge = partial(_judge, params, root, name, section, config, datasets)
    if trainer.rank == 0:
        trained = sum(p.numel() for p in adapter.parameters())
        unknown = sorted(set(datasets[0].categories()) - set(model.categories))
        log.info(
            f"{name}: {len(datasets[0])} examples; {trained:,} weights in {len(adapter.named())} layers are trained."
            + (f" The model does not know {', '.join(unknown)}: sample it without a category." if unknown else "")
        )
    preparation.run(loop, data, resumed)


def _encoder(text: EmbeddedText | None) -> tuple[str, int] | None:
    """What identifies a text encoder: its folder may have another name."""
    return None if text is None else (text.encoder.sha256, text.encoder.length)


def _source(params: Params, root: Path, kind: str, of: str) -> Path:
    if len(of) == 64:
        return model_registry.find(params, root, kind, of)
    return model_registry.fetch(Store(params.tracking, root), root, kind, of)


def _config(base: AnyModel, section: OwnLora) -> AnyModel:
    """The model's parameters with those of the adaptation."""
    fields = set(type(base).model_fields) & set(OwnLora.model_fields)
    shared = {key: getattr(section, key) for key in fields}
    return base.model_copy(update=shared)


def _datasets(root: Path, config: AnyModel, categories: list[str] | None) -> tuple[ShardDataset, ShardDataset]:
    """The training and the held-out samples of the categories. Raises DataError if there is none to train on."""
    both = []
    for split in ("train", "val"):
        dataset = inputs.usable(root, split, config)
        if categories is not None:
            metas = dataset.metas()
            dataset = dataset.take([i for i, meta in enumerate(metas) if meta["category"] in categories])
        both.append(dataset)
    if not len(both[0]):
        raise DataError(f"The shards have no training sample of {', '.join(categories or ['any category'])}.")
    return both[0], both[1]


def _some(model: Model, dataset: ShardDataset, codec: Any) -> Examples:
    """Examples on which the error of the finished model is measured, in the network's units."""
    chosen = model.examples(dataset.take(evenly_spaced(len(dataset), EVALUATED))).some(MEASURED_ERRORS)
    return Examples(codec.encode(chosen.x0), chosen.cond)


def _save(
    folder: Path,
    weights: Mapping[str, Tensor],
    meta: dict[str, Any],
    model: Model,
    adapter: Adapter,
    scale: float,
    about: dict[str, Any],
    examples: Examples,
    device: torch.device,
) -> None:
    """Write the change with the weights that the training kept, and the model with the change added."""
    prefix = "net.adapter."
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    adapter.load_state_dict(own)
    schedule = {name: value for name, value in weights.items() if name.startswith(model_file.SCHEDULE)}
    tensors = {name: value.cpu().contiguous() for name, value in adapter.tensors().items()}
    checkpoint.save(folder / ADAPTER, tensors, {**about, "scale": scale})
    whole = {**merged(model, adapter, scale), **schedule}
    save_measured(folder, whole, {**meta, "adapted": about | {"scale": scale}}, model, examples, device)


def _judge(
    params: Params, root: Path, name: str, section: OwnLora, config: Pictures,
    datasets: tuple[ShardDataset, ShardDataset], folder: Path,
) -> dict[str, str]:  # fmt: skip
    """Write the certificate of the finished model: its pictures for the conditions of the training, against the training."""
    train, held_out = datasets
    how = model_file.load(folder, modality.device())
    sampling = how.fitting(params.sample.pictures)
    seed = rng.fold(section.seed, DRAWN)

    def draw_into(place: Path) -> None:
        if place.is_dir():
            return
        sampler = model_registry.sampler(params, root, folder, sampling, how)
        rows = [i % len(train) for i in range(section.certificate)]
        asked = how.examples(train.take(rows)).cond
        drawn = sampler.draw(asked, seed, torch.arange(len(rows)), params.sample.pictures.batch)
        with files.new_folder(place) as temporary:
            for i, picture in enumerate(inputs.as_pictures(drawn)):
                (temporary / f"{i:06d}.png").write_bytes(certificate.png(picture))

    sides = [_captioned(side, config.size) for side in (train, held_out) if len(side)]
    identity = [paths.sha256(folder), sampling.sampling_json, seed, section.certificate]
    outcome = certificate.certify(root, name, sides, identity, draw_into, folder)
    log.info(f"{name}: {outcome.verdict}. {outcome.sentence}")
    return {"certificate": outcome.verdict, "certificate_sentence": outcome.sentence}


def _captioned(dataset: ShardDataset, size: int) -> Captioned:
    return Captioned(
        list(dataset.keys), list(dataset.keys), dataset.captions("{category}"), dataset.pictures_uint8(size)
    )
