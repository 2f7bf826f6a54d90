"""The inputs of a stage's slices: params.yaml, and the files that dvc.yaml lists as the stage's dependencies, without the code.

Slices run in a folder that looks like a workspace with just these inputs, and that no stage of the workspace writes to. Files
that the machine's own workspace has are linked, others come from the remote store, where the requesting machine has put them
under their digests.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import dvc_graph
from flows.remote_store import RemoteStore
from tasks import paths
from tasks.common import files
from tasks.common.errors import DataError
from tasks.config.params import Params, load

OWN = {"engine", "limits", "notify", "retrain", "services", "store"}  # sections that change the output of no stage
INPUTS = "inputs"  # folder in the store
MANIFEST = "manifest.json"

CACHES = (
    paths.FEATURES,
    paths.NETWORK_WEIGHTS,
    paths.REGISTERED_MODELS,
    paths.TEXT,
)  # by digest; slices use this machine's
KEPT = 3  # folders with inputs

_digests: dict[
    tuple[str, int, int], str
] = {}  # of files by path, size and time: a worker runs many slices of the same inputs


@dataclass(frozen=True)
class Inputs:
    """`files`: path in the workspace -> sha256; `params`: the text of params.yaml."""

    files: dict[str, str]
    params: str
    version: str  # a digest of all of it


def of(params: Params, root: Path, stage: str) -> Inputs:
    """The inputs of a stage in a workspace."""
    found = {}
    for name in dvc_graph.data_dependencies(root, stage):
        place = root / name
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file():
                found[path.relative_to(root).as_posix()] = _digest(path)
    about = params.model_dump(mode="json", exclude=OWN)
    version = hashlib.sha256(json.dumps([stage, about, sorted(found.items())], sort_keys=True).encode()).hexdigest()[
        :32
    ]
    return Inputs(found, (root / paths.PARAMS).read_text(encoding="utf-8"), version)


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
        if not store.has(INPUTS, digest):
            store.put_file(root / path, INPUTS, digest)
    store.put_bytes(json.dumps({"files": inputs.files, "params": inputs.params}).encode(), name, MANIFEST)


def provide(root: Path, stage: str, version: str, store: RemoteStore) -> Path:
    """The folder with the inputs of this version, made if it is not there. `root`: the workspace of this machine.

    Raises DataError if they are neither in this workspace nor in the store, or if the store has other bytes.
    """
    folder = root / paths.SLICES / INPUTS / version
    with files.alone(folder):
        if folder.is_dir():
            return folder
        inputs = of(load(root / paths.PARAMS), root, stage)
        if inputs.version != version:
            inputs = _published(stage, version, store)
        with files.new_folder(folder) as fresh:
            for name, digest in inputs.files.items():
                _bring(root / name, fresh / name, digest, store)
            for cache in CACHES:
                (fresh / cache).parent.mkdir(parents=True, exist_ok=True)
                (fresh / cache).symlink_to((root / cache).absolute())
            (fresh / paths.PARAMS).write_text(inputs.params, encoding="utf-8")
    older = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]
    for path in sorted(older, key=lambda path: path.stat().st_mtime)[: 1 - KEPT]:
        shutil.rmtree(path, ignore_errors=True)
    return folder


def remove(root: Path, version: str) -> None:
    """Remove what `provide` made in a workspace."""
    with files.alone(root / paths.SLICES / INPUTS / version):
        shutil.rmtree(root / paths.SLICES / INPUTS / version, ignore_errors=True)


def _published(stage: str, version: str, store: RemoteStore) -> Inputs:
    name = f"{INPUTS}/{version}"
    if not store.has(name, MANIFEST):
        raise DataError(f"The inputs of the stage {stage} are neither here nor in the DVC remote; run again.")
    about: dict[str, Any] = json.loads(store.get_bytes(name, MANIFEST))
    for path in about["files"]:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise DataError(f"The DVC remote names {path!r} as an input, which is outside of the workspace.")
    return Inputs(about["files"], about["params"], version)


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
