"""The inputs of a stage's slices: its task, params.yaml, and the files that it reads, without the code.

The files are those that dvc.yaml lists as the stage's dependencies, the models that params.yaml names by their sha256, and the
text encoders of models. The command `generate` is divided like a stage; its files are its models, and what judges the samples.

Slices run in a folder that looks like a workspace with just these inputs, and that no stage of the workspace writes to. Files
that the machine's own workspace has are linked, others come from the remote store, where the requesting machine has put them
under their digests.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import dvc_graph
from flows.remote_store import RemoteStore
from tasks import paths
from tasks.common import files
from tasks.common.errors import DataError
from tasks.config.params import Params
from tasks.stage_slice import GENERATE

OWN = {"engine", "limits", "notify", "retrain", "services", "store"}  # sections that change the output of no stage
INPUTS = "inputs"  # folder in the store
MANIFEST = "manifest.json"
TASK = "task.json"  # in the folder of the slices: the task of `python -m tasks`, with its arguments

CACHES = (paths.FEATURES, paths.NETWORK_WEIGHTS, paths.TEXT)  # by digest; slices use this machine's
KEPT = 3  # folders with inputs

_digests: dict[
    tuple[str, int, int], str
] = {}  # of files by path, size and time: a worker runs many slices of the same inputs


@dataclass(frozen=True)
class Inputs:
    """`task`: of `python -m tasks`; `files`: path in the workspace -> sha256; `params`: the text of params.yaml.

    Files outside of the workspace, by their absolute path, have to lie there on every machine.
    """

    task: list[str]
    files: dict[str, str]
    params: str
    version: str  # a digest of all of it


def of(params: Params, root: Path, stage: str) -> Inputs:
    """The inputs of a stage, or of `generate`, in a workspace. Raises UserError if there is no such stage or model."""
    text = (root / paths.PARAMS).read_text(encoding="utf-8")
    if stage == GENERATE:
        task, places = _of_generate(params, root)
    else:
        task, places = (
            dvc_graph.task_of(root, stage),
            [root / name for name in dvc_graph.data_dependencies(root, stage)],
        )
    there = _within([*places, *_models_named(text, root)])
    there += _within(_text_encoders(there, root))
    found = {_name(path, root): _digest(path) for path in there}
    about = params.model_dump(mode="json", exclude=OWN)
    version = hashlib.sha256(json.dumps([stage, task, about, sorted(found.items())], sort_keys=True).encode())
    return Inputs(task, found, text, version.hexdigest()[:32])


def _within(places: Iterable[Path]) -> list[Path]:
    """These files, and the files in these folders; without those that do not exist."""
    both = (sorted(place.rglob("*")) if place.is_dir() else [place] for place in places)
    return [path for found in both for path in found if path.is_file()]


def _text_encoders(found: Iterable[Path], root: Path) -> list[Path]:
    """The folders of the text encoders of the models among these files, which embed prompts, and captions without embedding."""
    from tasks.common import checkpoint  # imports torch, which takes a second

    models = (checkpoint.about(path) for path in found if path.name == paths.MODEL_FILE)
    return sorted({root / about["text"]["source"] for about in models if "text" in about})


def _name(path: Path, root: Path) -> str:
    """The name of a file in a workspace, or its absolute path if it lies outside."""
    place = Path(os.path.abspath(path))
    return place.relative_to(root.absolute()).as_posix() if place.is_relative_to(root.absolute()) else str(place)


def _of_generate(params: Params, root: Path) -> tuple[list[str], list[Path]]:
    """The task that generates with the models that have `generate.alias` now, and the files that it reads."""
    from tasks.sample import generated  # imports MLflow, which takes seconds

    models = generated.models(params, root)
    places = [*models.values(), root / params.extract.model]
    if params.generate.recognised:
        places.append(root / paths.RECOGNISER)
    return [GENERATE, *(f"{model}={folder.name}" for model, folder in models.items())], places


def _models_named(text: str, root: Path) -> list[Path]:
    """The folders of the models that params.yaml names by their sha256: to guide, to classify, or to start from."""
    named = set(re.findall(r"\b[0-9a-f]{64}\b", text))
    own = (path.parent for path in root.glob(f"{paths.ARTIFACTS}/*/{paths.MODEL_FILE}"))
    registered = (root / paths.REGISTERED_MODELS / sha256 for sha256 in sorted(named))
    return [folder for folder in own if named and _digest(folder / paths.MODEL_FILE) in named] + list(registered)


def _digest(path: Path) -> str:
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]


def publish(inputs: Inputs, root: Path, store: RemoteStore) -> None:
    """Put the inputs into the store, as far as they are not there."""
    name = f"{INPUTS}/{inputs.version}"
    if store.has(name, MANIFEST):
        return
    for path, digest in inputs.files.items():
        if not Path(path).is_absolute() and not store.has(INPUTS, digest):
            store.put_file(root / path, INPUTS, digest)
    manifest = {"task": inputs.task, "files": inputs.files, "params": inputs.params}
    store.put_bytes(json.dumps(manifest).encode(), name, MANIFEST)


def provide(root: Path, stage: str, version: str, store: RemoteStore) -> tuple[Path, list[str]]:
    """The folder with the inputs of this version and the task to do there; made of the store if it is not there.

    `root`: the workspace of this machine. Raises DataError if the inputs are not in the store either, or have other bytes.
    """
    folder = _folder(root, version)
    with files.alone(folder):
        if not folder.is_dir():
            _make(root, _published(stage, version, store), store)
    task: list[str] = files.read_json(folder / TASK)
    return folder, task


def link(inputs: Inputs, root: Path, store: RemoteStore) -> None:
    """Make the folder with these inputs of the workspace `root`, for slices that find it there."""
    with files.alone(_folder(root, inputs.version)):
        _make(root, inputs, store)


def _folder(root: Path, version: str) -> Path:
    return root / paths.SLICES / INPUTS / version


def _make(root: Path, inputs: Inputs, store: RemoteStore) -> None:
    """Make the folder of the inputs, of this machine's files or else of the store's, and remove the oldest other folders."""
    folder = _folder(root, inputs.version)
    with files.new_folder(folder) as fresh:
        for name, digest in inputs.files.items():
            if Path(name).is_absolute():
                _check(Path(name), digest)
            else:
                _bring(root / name, fresh / name, digest, store)
        for cache in CACHES:
            (fresh / cache).parent.mkdir(parents=True, exist_ok=True)
            (fresh / cache).symlink_to((root / cache).absolute())
        (fresh / paths.PARAMS).write_text(inputs.params, encoding="utf-8")
        files.write_json(fresh / TASK, inputs.task)
    older = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]
    for path in sorted(older, key=lambda path: path.stat().st_mtime)[: 1 - KEPT]:
        shutil.rmtree(path, ignore_errors=True)


def remove(root: Path, version: str) -> None:
    """Remove the folder with the inputs of this version in a workspace."""
    with files.alone(_folder(root, version)):
        shutil.rmtree(_folder(root, version), ignore_errors=True)


def _published(stage: str, version: str, store: RemoteStore) -> Inputs:
    name = f"{INPUTS}/{version}"
    if not store.has(name, MANIFEST):
        raise DataError(f"The inputs of the stage {stage} are neither here nor in the DVC remote; run again.")
    about: dict[str, Any] = json.loads(store.get_bytes(name, MANIFEST))
    for path in about["files"]:
        if ".." in Path(path).parts:
            raise DataError(f"The DVC remote names {path!r} as an input, which is outside of the workspace.")
    return Inputs(about["task"], about["files"], about["params"], version)


def _check(path: Path, digest: str) -> None:
    """Raise DataError if a file is not there, or is another one."""
    if not path.is_file() or _digest(path) != digest:
        raise DataError(
            f"{path} differs from the file on the machine that asks for slices: its sha256 is not {digest}."
        )


def _bring(own: Path, path: Path, digest: str, store: RemoteStore) -> None:
    """Link a file of this machine's workspace, or fetch it if its bytes are not these. Raises DataError if neither has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if own.is_file() and _digest(own) == digest:
        try:
            path.hardlink_to(own.resolve())
        except OSError:  # another file system
            shutil.copyfile(own, path)
        return
    store.get_file(INPUTS, digest, path)
    if _digest(path) != digest:
        raise DataError(f"{path.name} in the DVC remote is damaged: its sha256 is not {digest}.")
