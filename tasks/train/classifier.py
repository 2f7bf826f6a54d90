"""Stage `train_classifier <model>`: a classifier of the noisy examples of a trained model, in `artifacts/<model>_classifier/`.

    model.safetensors   its averaged weights
    classifier.json     its sha256, by which `guidance.classifier` names it, and how often it is right at each noise level

It learns the category of an example at the noise levels at which the model was trained. A run that is killed starts anew and
ends with the same bits.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffusion_core import rng
from diffusion_core.extras.classifier import NoisyClassifier, recipe_of
from diffusion_core.schedules import sigma_level
from diffusion_core.training.compute import Compute
from diffusion_core.training.trainer import TrainConfig, Trainer
from tasks import paths
from tasks.common import files
from tasks.common.errors import UserError
from tasks.common.subset import evenly_spaced
from tasks.config.classifier import Classifier
from tasks.config.params import Params, Upscaler
from tasks.models import classifier as classifiers
from tasks.models import conditioning, model_file
from tasks.models.conditioning import KEYS
from tasks.models.inputs import Examples
from tasks.train import launch, preparation

CATEGORY = KEYS["category"]
EVALUATED = 256  # held-out examples
SIGMAS = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)  # in the network's units

log = logging.getLogger(__name__)


def run(params: Params, root: Path, model: str) -> None:
    """Train the classifier for the model in artifacts/<model>/. Raises UserError if `params.classifier` does not name it."""
    config = params.classifier.get(model)
    if config is None:
        raise UserError(f"params.yaml: classifier.{model} is missing: it says how the classifier is trained.")
    with launch.device() as device:
        _train(root, model, config, device)


def _train(root: Path, name: str, config: Classifier, device: torch.device) -> None:
    guided = model_file.load(paths.model_folder(root, name), device)
    assert not isinstance(guided.config, Upscaler)  # `classifier` names poses or pictures
    data = preparation.load_data(root, name, guided.config, device, guided.codec, guided.categories)
    if CATEGORY not in data.source.subset.cond:
        raise UserError(f"A classifier of {name} needs category in {name}.conditions.")
    whole = guided.config.model_copy(update={"condition_dropout_each": 0.0, "condition_noise": 0.0})
    classifier = classifiers.build(config, guided).to(device)
    trainer = Trainer(
        classifier,
        recipe_of(guided.recipe, CATEGORY),
        TrainConfig(**config.model_dump(include=set(TrainConfig.__dataclass_fields__))),
        data.source.data,
        data.source.count,
        transform=conditioning.transform(whole, data.source.codec),
        compute=Compute(),
    )
    with tqdm(desc=f"train the classifier of {name}", total=config.images, unit="image", mininterval=2) as bar:
        while not trainer.done:
            step = trainer.step()
            bar.update(step.nimg - bar.n)
    trained = trainer.averaged()
    assert isinstance(trained, NoisyClassifier)
    about: dict[str, Any] = {"images": config.images}
    examples = guided.examples(data.held_out.take(evenly_spaced(len(data.held_out), EVALUATED)))
    if len(examples):
        encoded = Examples(data.source.codec.encode(examples.x0.to(device)), examples.cond)
        about["accuracy"] = _accuracy(trained, encoded, config.seed)
    folder = paths.classifier_folder(root, name)
    with files.new_folder(folder) as temporary:
        classifiers.save(temporary, trained, config, guided, about)
        about = {"sha256": paths.sha256(temporary), **about}
        files.write_json(temporary / paths.CLASSIFIER_FILE, about)
    log.info(f"The classifier of {name}: guidance: {{classifier: {about['sha256']}}}")


@torch.no_grad()
def _accuracy(classifier: NoisyClassifier, examples: Examples, seed: int) -> dict[str, float]:
    """The share of examples in the network's units whose category is found, by sigma."""
    ids = torch.arange(len(examples), device=examples.x0.device)
    noise = rng.normal(examples.x0.shape[1:], rng.fold(seed, rng.Stream.WATCH), ids).to(examples.x0)
    labels = examples.cond[CATEGORY].argmax(1).to(ids.device)
    known = examples.cond[CATEGORY].sum(1).to(ids.device) > 0
    shares = {}
    for sigma in SIGMAS:
        level = sigma_level(torch.tensor(sigma, dtype=torch.float64, device=ids.device))
        found = classifier(level.corrupt(examples.x0, noise), level).argmax(1)
        shares[f"{sigma:g}"] = float((found == labels)[known].double().mean())
    return shares
