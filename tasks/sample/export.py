"""`python -m tasks export [ALIAS]`: the registered models as folders to hand on, in `exports/<alias>/`.

    mlflow/                 what `mlflow models serve -m` and `mlflow models build-docker -m` take
    huggingface/<model>/    model.safetensors, config.json, README.md: the layout of a model repository

Weights are safetensors, the rest is text: there is no pickle in either. ALIAS is champion if it is not given.
"""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
from pathlib import Path

from tasks import paths
from tasks.common import checkpoint, files
from tasks.config.params import Params
from tasks.paths import MODELS
from tasks.registry import model_registry, tracking
from tasks.registry.tracking import Store

log = logging.getLogger(__name__)

CONFIG, README = "config.json", "README.md"
SERVED_WITH = ("mlflow", "numpy", "pillow", "pydantic", "ruamel.yaml", "safetensors", "scipy", "torch", "tqdm")


def repository(folder: Path, source: Path, description: str) -> None:
    """Write the model in `source` to `folder` in the layout of a model repository; `description` is its card."""
    _, meta = checkpoint.load(source / paths.MODEL_FILE)
    folder.mkdir(parents=True)
    shutil.copyfile(source / paths.MODEL_FILE, folder / paths.MODEL_FILE)
    files.write_json(folder / CONFIG, {"library_name": "contrapposto", **meta})
    head = "---\nlibrary_name: contrapposto\npipeline_tag: unconditional-image-generation\ntags: [diffusion, pose]\n---\n\n"
    (folder / README).write_text(head + description + USE.format(model=meta["model"]), encoding="utf-8")


USE = """
## Use

```python
from pathlib import Path
import torch
from tasks import draw, models

model = models.load(Path("."), torch.device("cpu"))  # this folder, {model}
```
"""


def run(params: Params, root: Path, alias: str = model_registry.CHAMPION) -> None:
    """Export the models with this alias. Raises UserError if there is none, DataError if a file is damaged."""
    store = Store(params.tracking, root)
    sources = {model: model_registry.fetch(store, root, model, alias) for model in MODELS}
    with files.new_folder(root / paths.EXPORTS / alias) as folder:
        for model, source in sources.items():
            found = model_registry.version(store, model, alias)
            repository(folder / "huggingface" / model, source, found.description if found else "")
        requirements = [f"{package}=={importlib.metadata.version(package)}" for package in SERVED_WITH]
        tracking.save_served(folder / "mlflow", sources, requirements)
    log.info(f"exported to {root / paths.EXPORTS / alias}")
    log.info(
        f"serve it:  mlflow models serve -m {root / paths.EXPORTS / alias / 'mlflow'} --env-manager local --port 5001"
    )
