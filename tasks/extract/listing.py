"""Stage `list_parts`: what is in the folders of the parts, so that DVC need not look into users' folders itself.

DVC hashes a folder by following links and reading whatever is there: it fails at a broken link, a link loop or an unreadable
file, and waits forever at a pipe. So `extract@PART` depends on `data/listings/<part>.json` instead of the part's folder: the
name of every file with the key of its bytes (see `content_keys`), or what else is there in its place. The listing of the
built-in pictures is an output of the stage that draws them.

`dvc repro` runs this stage every time, before any extraction, and the flow lists the parts when it starts. A listing is only
written if it has changed, and a file is only read if it may have changed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tqdm import tqdm

from tasks import paths
from tasks.common import experiment, files
from tasks.common.errors import UserError
from tasks.config.data import MANNEQUIN
from tasks.config.params import Params, Raw
from tasks.extract.content_keys import read_key, stamp_of
from tasks.extract.scan import Entry, walk
from tasks.extract.source_files import Refusal, behind_dvc_link, dvc_cache, open_regular, printable


def run(params: Params, root: Path) -> None:
    """List all parts, and write the output on which every extraction depends.

    DVC runs this before any other stage that reads delivered pictures, so the folder of an experiment gets its links here.
    """
    experiment.link(root, (folder for folder in params.raw.parts.values() if folder != MANNEQUIN))
    update(root, params.raw)
    files.write_bytes(root / paths.LISTED, b"This file never changes: the stages extract@PART come after list_parts.\n")


def update(root: Path, raw: Raw) -> None:
    """Bring the listings of all parts up to date, except the built-in one. Raises UserError if a part's folder is missing."""
    for part, folder in raw.parts.items():
        if folder != MANNEQUIN:
            _update_part(root, part, root / folder)


def _update_part(root: Path, part: str, folder: Path) -> None:
    if not os.path.isdir(folder):
        raise UserError(f"The folder of pictures {folder} does not exist.")
    cache = dvc_cache(root)
    record = root / paths.LISTING_STATE / f"{part}.json"
    known = _read(record)
    remembered: dict[str, str] = {}
    listing: dict[str, str] = {}
    entries = sorted(walk(folder), key=lambda entry: entry.path)
    for entry in tqdm(entries, f"list {part}", unit="file", mininterval=1, delay=2, leave=False):
        name = printable(entry.path)
        listing[name] = _content(folder, entry, cache, known.get(name), remembered)
    _write(record, remembered, changed=remembered != known)
    path = root / paths.LISTINGS / f"{part}.json"
    _write(path, listing, changed=_read(path) != listing)


def _content(folder: Path, entry: Entry, cache: Path, known: object, remembered: dict[str, str]) -> str:
    """The key of a file's bytes, or in words what is there instead.

    `known` is what was remembered of the file, its stamp and its key; what to remember now goes into `remembered`.
    """
    path = behind_dvc_link(folder / entry.path, cache)
    stamp = stamp_of(path)
    if stamp is not None and isinstance(known, str) and known.startswith(f"{stamp} "):
        remembered[printable(entry.path)] = known
        return known.rsplit(" ", 1)[1]
    try:
        with open_regular(path) as file:
            key, stamp = read_key(file)
    except Refusal as refusal:
        return f"{entry.kind}: {refusal.detail}"
    if stamp is not None:
        remembered[printable(entry.path)] = f"{stamp} {key}"
    return key


def _read(path: Path) -> dict[str, object]:
    """A JSON object that this module wrote; empty if there is none or it is damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write(path: Path, value: object, changed: bool) -> None:
    if changed or not path.is_file():
        files.write_json(path, value)
