"""`python -m benchmarks.incremental`: the cost of adding one percent to 10,000 extracted pictures.

In a workspace with a DVC repository the first part is extracted, then pictures are added twice: as a part of their own, and
into the folder of the first. Timed is the stage, `python -m tasks extract PART`, from the start of its process to its end;
apart from it what DVC needs to see what has changed, `dvc status extract@PART`, which hashes names and times of every file.
The pictures are mannequins, or with `--raw` those of a folder; the last percent of them is what comes later.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.extraction import PROJECT, stage
from benchmarks.report import finish
from tasks import paths
from tasks.common import files, machine
from tasks.config.params import set_values
from tasks.extract.cache import Store
from tasks.extract.scan import scan
from tasks.extract.source_files import content_key
from tasks.synthetic import stage as mannequin

ALLOWED = 0.03  # of the full extraction


def workspace(root: Path, parts: dict[str, Path]) -> None:
    """A DVC repository with the project's graph, code and model, and these parts."""
    for name in ("params.yaml", "dvc.yaml", "forgotten.json"):
        shutil.copy(PROJECT / name, root / name)
    for name in ("tasks", "diffusion_core", "models"):
        (root / name).symlink_to(PROJECT / name)
    set_values(
        root / paths.PARAMS, {"raw.folder": None, "raw.parts": {name: str(path) for name, path in parts.items()}}
    )
    _dvc(root, "init", "--no-scm", "--quiet")


def _dvc(root: Path, *arguments: str) -> float:
    """Seconds that a command of DVC takes."""
    began = time.perf_counter()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=root, check=True, env=environment, capture_output=True
    )
    return time.perf_counter() - began


def extract(root: Path, part: str) -> tuple[float, int]:
    """Run the stage for one part: seconds, and how many files were new to it."""
    seconds, _ = stage(root, part)
    return seconds, files.read_json(root / paths.EXTRACT_STATE / f"{part}.json")["extracted"]


def _share(raw: Path, folder: Path, count: int) -> list[Path]:
    """Link the first `count` files of `raw` below `folder`, in their categories; the files that are left."""
    sources = [Path(source.path) for source in scan(raw).sources]
    for source in sources[:count]:
        _put(raw / source, folder / source)
    return sources[count:]


def _put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)


def _forget(root: Path, paths: list[Path]) -> None:
    """Remove these files from the extraction cache of the workspace."""
    with Store(root, digest="") as store:
        for path in paths:
            with path.open("rb") as file:
                store.forget(content_key(file))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.incremental", description=__doc__.split("\n\n")[0])
    parser.add_argument("--raw", type=Path, help="folder of pictures, instead of mannequins")
    parser.add_argument("--count", type=int, default=10_000, help="pictures in all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.raw and options.raw.resolve().parent) as temporary:
        place = Path(temporary)
        raw = options.raw or place / "drawn"
        if options.raw is None:
            raw.mkdir()
            mannequin.draw_all(raw, 0, 224, options.count, machine.cores())
        total = len(scan(raw).sources)
        few = max(1, total // 101)  # one percent of the existing pictures
        parts = {name: place / name for name in ("first", "second")}
        later = _share(raw, parts["first"], total - few)
        for source in later:
            _put(raw / source, parts["second"] / source)
        root = place / "workspace"
        root.mkdir()
        workspace(root, parts)
        full, made = extract(root, "first")
        figures: dict[str, float] = {"pictures": made, "added": few, "full_s": round(full, 2)}
        _dvc(root, "commit", "--force", "extract@first")
        figures["dvc_status_s"] = round(_dvc(root, "status", "extract@first"), 2)
        figures["part_s"], figures["part_extracted"] = (round(value, 2) for value in extract(root, "second"))
        _forget(root, [raw / source for source in later])  # otherwise they are in the cache by now
        for number, source in enumerate(later):
            _put(raw / source, parts["first"] / source.parent / f"later-{number}{source.suffix}")
        figures["dvc_status_changed_s"] = round(_dvc(root, "status", "extract@first"), 2)
        figures["same_part_s"], figures["same_part_extracted"] = (round(value, 2) for value in extract(root, "first"))
    shares = {how: figures[f"{how}_s"] / full for how in ("part", "same_part")}
    figures |= {f"{how}_share": round(share, 4) for how, share in shares.items()}
    goals = {
        f"1 % more, as {how.replace('_', ' ')}: <= 3 % of the full extraction": s <= ALLOWED
        for how, s in shares.items()
    }
    return finish("incremental", figures, goals)


if __name__ == "__main__":
    raise SystemExit(main())
