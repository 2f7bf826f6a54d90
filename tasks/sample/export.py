"""Command `export [ALIAS]`: write the registered models to `exports/<alias>/`, to serve or publish them.

    mlflow/                 an MLflow model for `mlflow models serve -m` and `mlflow models build-docker -m`
    huggingface/<model>/    model.safetensors, config.json, README.md: the layout of a model repository

The classifier of a model's noisy examples is exported with it if `artifacts/<model>_classifier/` has one that fits the model.

Weights are safetensors and the rest is text: there are no pickles. ALIAS defaults to champion.
"""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from tasks import paths
from tasks.common import checkpoint, files
from tasks.common.errors import UserError
from tasks.config.params import Params
from tasks.models import classifier as classifiers
from tasks.models import model_file
from tasks.registry import model_registry, served_model
from tasks.registry.tracking import Store

log = logging.getLogger(__name__)

CONFIG, README = "config.json", "README.md"
SERVED_WITH = ("mlflow", "numpy", "pillow", "pydantic", "ruamel.yaml", "safetensors", "scipy", "torch", "tqdm")


def repository(folder: Path, source: Path, description: str) -> None:
    """Write the model in `source` to `folder` in the layout of a model repository. `description` is the model card."""
    _, meta = checkpoint.load(source / paths.MODEL_FILE)
    folder.mkdir(parents=True)
    shutil.copyfile(source / paths.MODEL_FILE, folder / paths.MODEL_FILE)
    files.write_json(folder / CONFIG, {"library_name": "contrapposto", **meta})
    head = "---\nlibrary_name: contrapposto\npipeline_tag: unconditional-image-generation\ntags: [diffusion, pose]\n---\n\n"
    after = AFTER.get(meta["model"], "")
    (folder / README).write_text(head + description + USE.format(model=meta["model"], after=after), encoding="utf-8")


USE = """
## Use

```python
from pathlib import Path
import torch
from tasks.config.sampling import SamplingChoices
from tasks.models import modality, model_file, sampler

model = model_file.load(Path("."), torch.device("cpu"))  # this folder: {model}
conditions = model.conditions([model.categories[0]] * 4)
samples = sampler.draw(model, conditions, SamplingChoices(steps=18), seed=0, ids=torch.arange(4))
{after}```
"""
MOTION = """
from tasks.common import motion

clips = motion.from_features(samples.numpy())  # [4, frames, 33, 3] in torso lengths, hips at 0 in the first frame
"""


VIDEO = """
from tasks.models import inputs

clips = inputs.as_clips(samples)  # uint8 [4, frames, size, size, 3]
"""
AFTER = {paths.MOTION: MOTION, paths.VIDEO: VIDEO}


def fitting_classifiers(root: Path, sources: Mapping[str, Path]) -> dict[str, Path]:
    """The folders of the classifiers in this workspace that can guide these models, by name. One that cannot is announced."""
    found: dict[str, Path] = {}
    for model, source in sources.items():
        folder = paths.classifier_folder(root, model)
        if not (folder / paths.MODEL_FILE).is_file():
            continue
        try:
            classifiers.load(folder, model_file.load(source, torch.device("cpu")))
        except UserError as error:
            log.warning(f"The classifier of {model} is not exported. {error}")
            continue
        found[paths.classifier(model)] = folder
        log.info(f"The classifier of {model}: guidance: {{classifier: {paths.sha256(folder)}}}")
    return found


def run(params: Params, root: Path, alias: str = model_registry.CHAMPION) -> None:
    """Export the models with this alias. Raises UserError if there are none, DataError if a file is damaged."""
    store = Store(params.tracking, root)
    sources = model_registry.fetch_served(store, root, alias)
    with files.new_folder(root / paths.EXPORTS / alias) as folder:
        for model, source in sources.items():
            version = model_registry.version(store, model, alias)
            repository(folder / "huggingface" / model, source, version.description if version else "")
        guides = fitting_classifiers(root, sources)
        for name, guide in guides.items():
            shutil.copytree(guide, folder / "huggingface" / name)
        needed = list(SERVED_WITH)
        if any(
            "diffusers" in (checkpoint.about(source / paths.MODEL_FILE).get("codec") or {})
            for source in sources.values()
        ):
            needed.append("diffusers")  # a published codec
        requirements = [f"{package}=={importlib.metadata.version(package)}" for package in needed]
        served_model.save(folder / "mlflow", {**sources, **guides}, requirements)
    exported = root / paths.EXPORTS / alias
    log.info(f"exported to {exported}")
    log.info(f"serve it:  mlflow models serve -m {exported / 'mlflow'} --env-manager local --port 5001")
