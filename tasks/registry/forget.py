"""`python -m tasks forget KEY ...`: take persons out of the dataset for good, and say which models have seen them.

A KEY is that of a row (as in reports, shards and tables), or the first 16 digits of it for everybody in that file. In a
video the person is followed: all rows of the same track go. Each row leaves an opt-out in `forgotten.json` (see
`dataset.opt_outs`); near-copies in other files are recognised by it and go as well, now and whenever they come again.

Nothing is rebuilt here: the stage `curate` depends on the opt-outs, so the next run makes the dataset and the shards
without these rows. What cannot be taken back is named: models that were trained on them.
"""

from __future__ import annotations

import logging
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

_DIGITS = 16  # of a key that are its file's


def run(params: Params, root: Path, *keys: str) -> None:
    """Write opt-outs for the rows that `keys` name; raises UserError if one of them names no row of any part."""
    if not keys:
        raise UserError("forget needs the key of at least one person.")
    parts = {folder.name: poses_table.read_poses(folder) for folder in sorted((root / paths.POSES).glob("*/"))}
    known = opt_outs.read(root)
    buried = {one.key: one for one in known}
    new: dict[str, opt_outs.OptOut] = {}
    for key in keys:
        named = {part: _rows(found, key) for part, found in parts.items()}
        if not any(named.values()):
            if key in buried:
                continue
            raise UserError(f"No person in data/poses has the key {key}; nothing was changed.")
        for part, rows in named.items():
            new |= {one.key: one for one in opt_outs.of(parts[part], rows) if one.key not in buried}
    opt_outs.write(root, [*known, *new.values()])
    _drop_findings(root, {key[:_DIGITS] for key in new})
    gone: set[str] = set()
    for part, found in parts.items():
        matched = opt_outs.match(found, list(new.values()))
        gone |= {found.key[i] for i in matched}
        _say(part, found, matched, new)
    log.info(f"{len(new)} entries written to {opt_outs.FILE}; run the pipeline again to rebuild dataset and shards.")
    _say_models(params, root, gone | set(keys))


def _rows(found: Poses, key: str) -> list[int]:
    """The rows that a key names: its own and those of the same track, or all of its file."""
    exact = [i for i, name in enumerate(found.key) if name == key]
    if not exact and len(key) == _DIGITS:
        return [i for i, name in enumerate(found.key) if name.startswith(f"{key}-")]
    tracks = {(found.source[i], int(found.track[i])) for i in exact if found.track[i] >= 0}
    followed = [i for i in range(len(found)) if (found.source[i], int(found.track[i])) in tracks]
    return sorted({*exact, *followed})


def _drop_findings(root: Path, contents: set[str]) -> None:
    """What extraction keeps of these files for another run; the rows themselves go when `curate` runs."""
    if (root / paths.FINDINGS).is_file():
        with Store(root, digest="") as store:
            for content in sorted(contents):
                store.forget(content)


def _say(part: str, found: Poses, matched: dict[int, str], new: dict[str, opt_outs.OptOut]) -> None:
    for i, key in matched.items():
        why = "" if found.key[i] in new else f" (the same person in the same picture as {key})"
        print(f"{part}/{found.source[i]}: {found.key[i]}{why}")
    files = {found.key[i][:_DIGITS] for i in matched}
    others = sorted(found.key[i] for i in range(len(found)) if found.key[i][:_DIGITS] in files and i not in matched)
    if others:
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        print(f"Still in the dataset, from the same files: {len(others)} rows ({shown}).")


def _say_models(params: Params, root: Path, keys: set[str]) -> None:
    models, unknown = lineage.trainings_on(params, root, keys)
    for model in models:
        how = f"Trained on {model.rows} of these rows" if model.rows else "Begun with the weights of such a model"
        print(f"{how}: {model.name}")
    if not models:
        print("No model on record was trained on any of these rows.")
    if unknown:
        print(f"{unknown} trainings left no list of what they were trained on: nothing is known about them.")
