"""Removes what runs and commands made: outputs by name, never whole folders that people also put files into."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows import services, workspace
from tasks import paths
from tasks.common.errors import UserError
from tasks.config.params import load

log = logging.getLogger(__name__)

ALIASES = ("champion", "challenger", "previous")  # of exported models
# Besides the outputs of the graph: what commands write, MLflow's default store, and the state of this machine.
OTHERS = (
    paths.LISTINGS,
    *(paths.EXPORTS / alias for alias in ALIASES), paths.GENERATED, paths.COMPARE, paths.EXPLAIN, paths.VIDEO_DISTANCE,
    paths.RECOGNISED,
    *(Path(f"mlflow.db{suffix}") for suffix in ("", "-wal", "-shm", "-journal")), Path("mlruns"), paths.STATE,
)  # fmt: skip


def clean(root: Path, dry_run: bool = False) -> None:
    """Remove everything that runs and commands made in the workspace; with `dry_run` only list it.

    Raises UserError while a pipeline run or a service is at work here.
    """
    with workspace.alone(root):
        if running := services.running(root):
            raise UserError(f"These services are up: {', '.join(running)}. Stop them with `make down` first.")
        for path in made(root):
            log.info(f"{'would remove' if dry_run else 'removed'} {path.relative_to(root)}")
            if not dry_run:
                _remove(path, root)


def made(root: Path) -> list[Path]:
    """The existing files and folders that runs and commands made, unfinished ones included."""
    candidates: list[Path] = []
    for path in dict.fromkeys([*_outputs(root), *OTHERS]):
        candidates += [path, path.with_name(f"{path.name}.tmp"), path.with_name(f"{path.name}.old.tmp")]
    return [root / path for path in candidates if (root / path).is_symlink() or (root / path).exists()]


def _outputs(root: Path) -> Iterator[Path]:
    """The outputs that dvc.yaml declares and that dvc.lock records, as far as they are inside the workspace."""
    declared = _stages(root / "dvc.yaml")
    recorded = _stages(root / "dvc.lock")
    names = [name for entry in declared.values() for name in _names(entry.get("do", entry))]
    names += [output["path"] for entry in recorded.values() for output in entry.get("outs", [])]
    for name in names:
        for path in map(Path, _filled_in(name, root)):
            if path.parts and not path.is_absolute() and ".." not in path.parts:
                yield path


def _stages(path: Path) -> dict[str, Any]:
    try:
        document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        stages: dict[str, Any] = dict((document or {}).get("stages") or {})
    except (YAMLError, UnicodeDecodeError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a file of DVC's, so it is not known what was made.") from error
    return stages


def _names(entry: dict[str, Any]) -> Iterator[str]:
    """The names of a stage's outputs, each of which is a text or a mapping with one key."""
    for section in ("outs", "metrics", "plots"):
        for output in entry.get(section, []):
            yield output if isinstance(output, str) else next(iter(output))


def _filled_in(name: str, root: Path) -> Iterable[str]:
    """The name with `${key}` replaced by each part and each model that is distilled or classified; nothing if unknown."""
    if "${" not in name:
        return [name]
    try:
        params = load(root / paths.PARAMS)
        return [name.replace("${key}", key) for key in (*params.raw.parts, *params.distill, *params.classifier)]
    except UserError:  # dvc.lock names those that were finished
        return []


def _remove(path: Path, root: Path) -> None:
    """Remove a file, link or folder, and the folders around it that are empty then. It may have gone as one of those."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif not path.exists():
        return
    else:
        shutil.rmtree(path)
    for folder in path.parents:
        if folder == root or not folder.is_relative_to(root) or any(folder.iterdir()):
            break
        folder.rmdir()
