"""A change of one of our own models, learned from the shards of the workspace, for example a category that it has not seen.

`artifacts/<model>_adapted/` holds

    model.safetensors     the whole model with the change added to its weights: sampled, judged, promoted, served and exported
                          like any model (`sample.<model>.model`)
    adapter.safetensors   the change alone, with the sha256 of the model that it belongs to; not if all weights were trained

and what every training writes. Dreambooth also learns from examples of its own categories that the model draws beforehand, into
`.contrapposto/prior/`.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_core import rng
from diffusion_core.lora import COLUMNS, Adapted, Adapter, targets
from diffusion_core.training.trainer import Trainer
from tasks import paths
from tasks.adapt import certificate, prior
from tasks.adapt.pictures import Captioned
from tasks.common import checkpoint, files
from tasks.common.errors import DataError, UserError
from tasks.common.subset import evenly_spaced
from tasks.config.adapt import OwnChange
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
from tasks.train.warm_start import CATEGORY

ADAPTER = "adapter.safetensors"
SUFFIX = "_adapted"
ATTENTION_AND_MLP = ("qkv", "query", "key_value", "out", "expand", "contract")  # those of them that a network has
PRIOR = 1  # what else the seed is for: what the model draws for dreambooth
DRAWN = 2  # and the pictures of the certificate

log = logging.getLogger(__name__)


def grown(model: Model, new: list[str]) -> Model:
    """The model with further categories, whose embedding is the mean of those that it knows.

    For its own categories it computes what the model computes, bit for bit. Without new ones, or if the model is not told
    categories, it is the model itself. Raises UserError if the network cannot be given a further category.
    """
    if not new or "category" not in model.config.conditions:
        return model
    categories = [*model.categories, *new]
    larger = modality.build(
        model.name, model.config, categories, model.codec, model.margin, model.padded, model.clip, model.text
    )
    denoiser = model.recipe.denoiser(larger.denoiser.net)
    weights = dict(model.denoiser.state_dict())
    columns = next((name for name in weights if name.endswith(CATEGORY)), None)
    if columns is None:
        raise UserError(
            f"A model with net {model.config.net_name} cannot be given a new category: it normalises all embeddings together."
        )
    known = weights[columns]
    weights[columns] = torch.cat([known, known.mean(1, keepdim=True).expand(-1, len(new))], 1)
    denoiser.load_state_dict(weights)
    denoiser.to(known.device).eval().requires_grad_(False)
    return replace(model, denoiser=denoiser, categories=categories)


def adapted(
    model: Model,
    rank: int,
    alpha: float | None = None,
    names: list[str] | None = None,
    seed: int = 0,
    new: int = 0,
) -> tuple[Model, Adapter]:
    """The model with an untrained adapter, which changes nothing yet; without any change the model itself. The network is
    shared.

    `names`: of layers, or their ends; None: those of attention and MLPs. `new`: of how many categories, the last ones, the
    embeddings are trained, see `grown`. Raises UserError if the network has no such layer.
    """
    net: nn.Module = model.denoiser.net
    layers = _layers(net, names) if rank else {}
    columns = _embedding(net, new) if new else {}
    if layers.keys() & columns.keys():
        raise UserError("adapt.targets: the embedding of categories is trained anyway; do not name it.")
    adapter = Adapter(layers, rank, rank if alpha is None else alpha, seed, columns)
    if not adapter.named():
        return model, adapter
    embeddings = {name: layer for name, (layer, _) in columns.items()}
    wrapped = model.recipe.denoiser(Adapted(net, {**layers, **embeddings}, adapter))
    return replace(model, denoiser=wrapped), adapter


def _embedding(net: nn.Module, new: int) -> dict[str, tuple[nn.Linear, int]]:
    end = CATEGORY.removesuffix(".weight")
    return {
        name: (layer, new) for name, layer in net.named_modules() if isinstance(layer, nn.Linear) and name.endswith(end)
    }


def untrained(model: Model, section: OwnChange, new: list[str]) -> tuple[Model, Model, Adapter | None]:
    """The model with the new categories, that model with the untrained change that the section describes, and the adapter that
    holds the change; None if all weights are trained.

    Raises UserError if the model cannot be changed in this way.
    """
    if model.recipe.nets is not None:
        raise UserError(f"A model of recipe {model.config.recipe} has several networks and cannot be adapted.")
    base = grown(model, new)
    added = len(base.categories) - len(model.categories)
    if section.method == "textual_inversion":
        if not added:
            raise UserError(
                "adapt: method textual_inversion learns new categories, but the model already knows all of the chosen ones."
            )
        return base, *adapted(base, 0, new=added)
    if section.method == "fine_tuning":
        changed = replace(base, denoiser=copy.deepcopy(base.denoiser).requires_grad_(True))
        return base, changed, None
    return base, *adapted(base, section.rank, section.alpha, section.targets, section.seed, added)


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
    new, layers = meta["categories"], [name for name in meta["layers"] if f"{name}.{COLUMNS}" not in tensors]
    changed, adapter = adapted(grown(model, new), meta["rank"], meta["alpha"], layers, new=len(new))
    try:
        adapter.load(tensors)
    except ValueError as error:
        raise UserError(f"The adapter in {folder} was trained for another model: {error}.") from error
    changed.denoiser.to(next(model.denoiser.parameters()).device).eval().requires_grad_(False)
    return changed, adapter


def train(
    params: Params, root: Path, name: str, section: OwnChange, device: torch.device, resumed: Path | None = None
) -> None:
    """Train the change that `adapt.<name>` describes.

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
    new = sorted(set(datasets[0].categories()) - set(model.categories))
    base, changed, adapter = untrained(model, section, new)
    seen = datasets[0]
    if section.method == "dreambooth":
        everything = inputs.usable(root, "train", config)
        drawn = _prior(params, root, model, source, everything, section)
        seen = prior.beside(root, name, datasets[0], drawn, kind == "pictures")
    data = preparation.load_data(root, kind, config, device, model.codec, base.categories, (seen, datasets[1]))
    data = replace(data, train=datasets[0])  # what is evaluated and in the lineage has no part of the prior
    changed = replace(changed, config=config, meta={})
    changed.denoiser.to(device)
    trainer = preparation.trainer(changed, config, data, device)
    described = section.model_dump(exclude={"certificate", "of"} | set(type(model.config).model_fields))
    more = {"adapt": json.dumps(described, sort_keys=True), "the adapted model": sha256}
    loop = preparation.training_loop(params, root, name, changed, config, trainer, data, sha256, more)
    learned = base.categories[len(model.categories) :]
    about: dict[str, Any] = {"base": sha256, "method": section.method, "categories": learned}
    if adapter is None:
        loop.save = partial(_save_whole, about=about, save=loop.save)
    else:
        about |= {"rank": adapter.rank, "alpha": adapter.alpha, "layers": sorted(adapter.named())}
        some = _some(base, data.train, data.source.codec)
        loop.save = partial(
            _save, model=base, adapter=adapter, scale=section.scale, about=about, examples=some, device=device
        )
    if isinstance(config, Pictures) and section.certificate:
        loop.judge = partial(_judge, params, root, name, section, config, datasets)
    if trainer.rank == 0:
        _announce(name, section, trainer, datasets[0], learned)
    preparation.run(loop, data, resumed)


def _announce(name: str, section: OwnChange, trainer: Trainer, dataset: ShardDataset, new: list[str]) -> None:
    trained = sum(p.numel() for p in trainer.parameters.values())
    learned = f"; new to the model: {', '.join(new)}" if new else ""
    log.info(f"{name}: {section.method} from {len(dataset)} examples, {trained:,} weights are trained{learned}.")


def _encoder(text: EmbeddedText | None) -> tuple[str, int] | None:
    """What identifies a text encoder: its folder may have another name."""
    return None if text is None else (text.encoder.sha256, text.encoder.length)


def _source(params: Params, root: Path, kind: str, of: str) -> Path:
    if len(of) == 64:
        return model_registry.find(params, root, kind, of)
    return model_registry.fetch(Store(params.tracking, root), root, kind, of)


def _config(base: AnyModel, section: OwnChange) -> AnyModel:
    """The model's parameters with those of the adaptation."""
    fields = set(type(base).model_fields) & set(OwnChange.model_fields)
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


def _prior(
    params: Params, root: Path, model: Model, folder: Path, dataset: ShardDataset, section: OwnChange
) -> ShardDataset:
    """What the model draws for samples of the categories that it knows and does not learn. DataError if there are none."""
    learned = set(section.categories or ())
    kept = [
        i
        for i, meta in enumerate(dataset.metas())
        if meta["category"] in model.categories and meta["category"] not in learned
    ]
    if not kept:
        raise DataError(
            "Method dreambooth draws samples of categories that the model knows, but the shards have no training sample of one."
        )
    chosen = dataset.take([kept[i] for i in evenly_spaced(len(kept), section.prior)])
    sampling = model.fitting(getattr(params.sample, model.name))
    sampler = model_registry.sampler(params, root, folder, sampling, model)
    return prior.drawn(root, sampler, chosen, rng.fold(section.seed, PRIOR), paths.sha256(folder))


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


def _save_whole(
    folder: Path, weights: Mapping[str, Tensor], meta: dict[str, Any], about: dict[str, Any], save: Callable[..., None]
) -> None:
    """Write the model of which all weights were trained."""
    save(folder, weights=weights, meta={**meta, "adapted": about})


def _judge(
    params: Params, root: Path, name: str, section: OwnChange, config: Pictures,
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
