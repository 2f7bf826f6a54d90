"""`python -m tasks forget KEY ...`: take persons out of the dataset for good, and list the models that were trained on them.

A KEY is the key of a row (as in reports, shards and tables), or its first 16 digits for everybody in that file. In a video all
rows of the person's track go. Each row leaves an opt-out in `forgotten.json` (see `dataset.opt_outs`), by which near-copies in
other files are recognised. They go as well, now and whenever they are delivered again.

Caches that were made from pictures of the dataset are deleted. Nothing is rebuilt here: the stage `curate` depends on the
opt-outs, so the next run makes the dataset and the shards without these rows. Trained models do not change, so the command
names those that were trained on the rows.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from tasks import paths
from tasks.common.errors import UserError
from tasks.config.params import Params
from tasks.dataset import opt_outs
from tasks.extract import poses_table
from tasks.extract.cache import Store
from tasks.extract.poses_table import Poses
from tasks.registry import lineage

log = logging.getLogger(__name__)

_DIGITS = 16  # the beginning of a key, which is that of its file
# Folders whose files hold what was made from many pictures at once; each is made again when it is needed.
_CACHES = (paths.LATENTS, paths.FEATURES, paths.CERTIFICATES, paths.PRIOR, paths.SLICES)


def run(params: Params, root: Path, *keys: str) -> None:
    """Write opt-outs for the rows that `keys` name. Raises UserError if a key names no row of any part."""
    if not keys:
        raise UserError("forget needs the key of at least one person.")
    parts = {folder.name: poses_table.read_poses(folder) for folder in sorted((root / paths.POSES).glob("*/"))}
    known = opt_outs.read(root)
    forgotten = {one.key for one in known}
    new: dict[str, opt_outs.OptOut] = {}
    for key in keys:
        named = {part: _rows(table, key) for part, table in parts.items()}
        if not any(named.values()):
            if key in forgotten:
                continue
            raise UserError(f"No person in data/poses has the key {key}; nothing was changed.")
        for part, rows in named.items():
            new |= {one.key: one for one in opt_outs.of(parts[part], rows) if one.key not in forgotten}
    opt_outs.write(root, [*known, *new.values()])
    _drop_findings(root, {key[:_DIGITS] for key in new})
    for cache in _CACHES if new else ():
        shutil.rmtree(root / cache, ignore_errors=True)
    gone: set[str] = set()
    for part, table in parts.items():
        matched = opt_outs.match(table, list(new.values()), params.curate.near_duplicate)
        gone |= {table.key[i] for i in matched}
        _log_rows(part, table, matched, new)
    if new:
        log.info(
            f"Entries written to {opt_outs.FILE}: {len(new)}. Run the pipeline again to rebuild dataset and shards."
        )
    else:
        log.info(f"All of these persons are in {opt_outs.FILE} already.")
    _log_models(params, root, gone | set(keys))


def _rows(table: Poses, key: str) -> list[int]:
    """The rows that a key names: its own row and those of the same track, or all rows of its file."""
    exact = [i for i, name in enumerate(table.key) if name == key]
    if not exact and len(key) == _DIGITS:
        return [i for i, name in enumerate(table.key) if name.startswith(f"{key}-")]
    tracks = {(table.source[i], int(table.track[i])) for i in exact if table.track[i] >= 0}
    followed = [i for i in range(len(table)) if (table.source[i], int(table.track[i])) in tracks]
    return sorted({*exact, *followed})


def _drop_findings(root: Path, contents: set[str]) -> None:
    """Delete what the extraction cache holds about these files. The rows themselves go when `curate` runs."""
    if (root / paths.FINDINGS).is_file():
        with Store(root, digest="") as store:
            for content in sorted(contents):
                store.forget(content)


def _log_rows(part: str, table: Poses, matched: dict[int, str], new: dict[str, opt_outs.OptOut]) -> None:
    for i, key in matched.items():
        why = "" if table.key[i] in new else f" (the same person in the same picture as {key})"
        log.info(f"{part}/{table.source[i]}: {table.key[i]}{why}")
    files = {table.key[i][:_DIGITS] for i in matched}
    others = sorted(table.key[i] for i in range(len(table)) if table.key[i][:_DIGITS] in files and i not in matched)
    if others:
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        log.info(f"Still in the dataset, from the same files: {len(others)} rows ({shown}).")


def _log_models(params: Params, root: Path, keys: set[str]) -> None:
    models, unknown = lineage.trainings_on(params, root, keys)
    for model in models:
        how = f"Trained on {model.rows} of these rows" if model.rows else "Started from the weights of such a model"
        log.info(f"{how}: {model.name}")
    if not models:
        log.info("No model on record was trained on any of these rows.")
    if unknown:
        log.info(f"{unknown} trainings left no list of what they were trained on, so they may have used these rows.")
