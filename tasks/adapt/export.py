"""Command `export-adapter METHOD [ALIAS]`: a registered adapter with its published model, to serve it without this workspace.

    exports/METHOD@ALIAS/mlflow/     an MLflow model for `mlflow models serve -m` and `mlflow models build-docker -m`

The published model is the `base` of params.yaml, whose sha256 must be that of the adapter's training. It is copied, except for
files that are never read. There are no pickles.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import shutil
import tempfile
from pathlib import Path

from tasks import paths
from tasks.common import checkpoint, files
from tasks.common.errors import UserError
from tasks.common.published import READ
from tasks.config.params import Params
from tasks.foreign import folder as folders
from tasks.registry import model_registry, promote_adapter, served_model

SERVED_WITH = (
    "diffusers", "mlflow", "numpy", "peft", "pillow", "pydantic", "ruamel.yaml", "safetensors", "scipy", "torch", "tqdm",
    "transformers",
)  # fmt: skip

log = logging.getLogger(__name__)


def run(params: Params, root: Path, method: str, alias: str = model_registry.CHAMPION) -> None:
    """Export the adapter METHOD with this alias. Raises UserError if there is none, or if `base` is not what it adapts."""
    adapter = promote_adapter.located(params, root, f"{method}@{alias}")
    base = params.base
    trained_for = checkpoint.about(adapter / paths.MODEL_FILE).get("base")
    if base is None or base.sha256 != trained_for:
        raise UserError(f"base of params.yaml must be the published model that {method} adapts, sha256 {trained_for}.")
    source = folders.checked(root / base.source, base.sha256).path
    with (
        files.new_folder(root / paths.EXPORTS / f"{method}@{alias}") as out,
        tempfile.TemporaryDirectory(dir=out) as temporary,
    ):
        read = Path(temporary) / "base"
        shutil.copytree(source, read, ignore=_unread, copy_function=_linked)
        requirements = [f"{package}=={importlib.metadata.version(package)}" for package in SERVED_WITH]
        served_model.save(out / "mlflow", {"base": read, "adapter": adapter}, requirements, "foreign/mlflow_model.py")
    exported = root / paths.EXPORTS / f"{method}@{alias}"
    log.info(f"exported to {exported}")
    log.info(f"serve it:  mlflow models serve -m {exported / 'mlflow'} --env-manager local --port 5001")


def _unread(parent: str, names: list[str]) -> list[str]:
    """The names of a folder that are never read."""
    return [
        name
        for name in names
        if name.startswith(".") or not ((Path(parent) / name).is_dir() or Path(name).suffix in READ)
    ]


def _linked(source: str, target: str) -> str:
    """A second name for a file, or a copy of it on another file system."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)
    return target
