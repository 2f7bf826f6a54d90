"""`python -m tasks stream_shards URL [ENDPOINT]`: shards that stay in an object store until they are read.

URL names a copy of a `data/shards/` folder, made with any tool. The command brings its index files into this workspace and
writes `source.json`, which says where the tars are. Whoever opens such a folder (`shards.ShardDataset`) fetches a tar when the
first of its samples is read, compares its sha256 with the index, and keeps it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks import paths
from tasks.common import files
from tasks.common.errors import DataError, UserError
from tasks.common.object_store import ObjectStore
from tasks.config.params import Params
from tasks.dataset import shard_index

SOURCE = "source.json"
TEXT = "text.npy"

log = logging.getLogger(__name__)


def run(params: Params, root: Path, url: str, endpoint: str = "") -> None:
    """Make `data/shards/` a folder whose tars are fetched when they are needed.

    Raises UserError if there are shards already or the store cannot be reached, DataError if it has no such shards.
    """
    folder = root / paths.SHARDS
    if folder.exists() and not (folder / SOURCE).is_file():
        raise UserError(f"{folder} has shards already; move it away to use others.")
    store = ObjectStore(url, endpoint or None)
    with files.new_folder(folder) as fresh:
        store.get(shard_index.FILE, fresh / shard_index.FILE)
        index = shard_index.read(fresh)
        for split, entry in index["splits"].items():
            lines = f"{split}.jsonl"
            _verified(store, lines, fresh / lines, entry["sha256"])
            store.get(f"{split}.offsets", fresh / f"{split}.offsets")
        if "text" in index["about"]:
            store.get(TEXT, fresh / TEXT)
        files.write_json(fresh / SOURCE, {"url": url, "endpoint": endpoint or None})
    size = sum(shard["bytes"] for shard in index["shards"]) / 1e9
    log.info(f"{len(index['shards'])} shards ({size:.1f} GB) are fetched from {url} as they are needed.")


class Source:
    """Where the tars of a shard folder are that this machine does not have. It can be pickled."""

    def __init__(self, url: str, endpoint: str | None) -> None:
        self._address = url, endpoint
        self._store: ObjectStore | None = None

    def __reduce__(self) -> tuple[type[Source], tuple[str, str | None]]:
        return Source, self._address

    def fetch(self, shard: Mapping[str, Any], path: Path) -> None:
        """Bring a shard, an entry of index.json, to its place if it is not there. Raises DataError if its bytes are others."""
        if path.is_file():
            return
        with files.alone(path):  # of processes that need it at the same time one fetches it
            if not path.is_file():
                self._store = self._store or ObjectStore(*self._address)
                _verified(self._store, shard["name"], path, shard["sha256"])


def source(folder: Path) -> Source | None:
    """Where the tars of a shard folder are; None if it has all of them."""
    if not (folder / SOURCE).is_file():
        return None
    return Source(**files.read_json(folder / SOURCE))


def _verified(store: ObjectStore, name: str, path: Path, sha256: str) -> None:
    """Copy a file from the store, and give it its name only if its bytes are the expected ones."""
    with files.new_file(path) as temporary:
        store.get(name, temporary)
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256:
            raise DataError(f"{name} in {store.url} is damaged: sha256 mismatch: expected {sha256}, got {digest}.")
