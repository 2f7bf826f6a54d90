"""`python -m benchmarks.extraction --raw DIR ...`: pictures a second of the extract stage, end to end, and its memory.

Beside the stage, as `python -m tasks extract` runs it in an empty workspace (hashing, decoding, landmarks, scores and
the written tables; on every core), stand two figures measured on the first pictures of the same folder:

    plain     a loop in one process over MediaPipe's own reader and landmarker, nothing written
    limit     as many processes as cores that only call the landmarker, on pictures already decoded

They are measured before and after each run of the stage, and it is compared with their mean: a machine that is shared is not
equally fast from minute to minute. The goals are those of the median run. The start of the processes and their imports
count. With `--mannequins 1000 10000` folders of so many pictures are drawn and measured too: the goals are those of the last
folder, and the peak of the memory of all processes together must not grow from the first folder to the last.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import finish
from tasks import machine, mannequin, params
from tasks.extraction.ingest import JOINTS_SUFFIX, open_picture, scan

PROJECT = Path(__file__).parents[1]
SAMPLE = 300  # pictures of the two peers


def workspace(root: Path, raw: Path) -> None:
    """An empty workspace that reads its pictures from `raw`."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / "params.yaml"
    shutil.copy(PROJECT / path.name, path)
    model = str(PROJECT / params.load(path).extract.model)
    params.set_values(path, {"raw.folder": None, "raw.parts": {"raw": str(raw.resolve())}, "extract.model": model})


def stage(root: Path, part: str = "raw") -> tuple[float, float]:
    """Run the stage for a part of a workspace: seconds, and the peak of all its processes' memory together in MB."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "tasks", "extract", part, "--root", str(root)], cwd=PROJECT)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _memory(process.pid))
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"the stage ended with exit code {process.returncode}")
    return time.perf_counter() - began, peak / 1e6


def _memory(pid: int) -> int:
    """Resident memory of a process and its children, bytes; pages that they share count once a process."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        pass  # between two looks somebody left
    return total


def _plain(paths: list[str], model: str) -> float:
    """The loop that everybody writes: seconds."""
    from mediapipe import Image
    from mediapipe.tasks.python import BaseOptions, vision

    from tasks.extraction.landmarker import keep_offline

    keep_offline()
    options = vision.PoseLandmarkerOptions(base_options=BaseOptions(model_asset_path=model))
    with vision.PoseLandmarker.create_from_options(options) as landmarker:
        landmarker.detect(Image.create_from_file(paths[0]))
        began = time.perf_counter()
        for path in paths:
            landmarker.detect(Image.create_from_file(path))
        return time.perf_counter() - began


_together: Any = None  # in a process of the limit: the barrier behind which all begin


def _begin_together(barrier: Any) -> None:
    global _together
    _together = barrier


def _inference(paths: list[str], model: str) -> float:
    """Nothing but finding landmarks, in each process that does so at once: seconds."""
    from mediapipe import Image, ImageFormat
    from mediapipe.tasks.python import BaseOptions, vision

    from tasks.extraction.landmarker import keep_offline

    keep_offline()
    pictures = [Image(ImageFormat.SRGB, open_picture(Path(path))) for path in paths]
    options = vision.PoseLandmarkerOptions(base_options=BaseOptions(model_asset_path=model))
    with vision.PoseLandmarker.create_from_options(options) as landmarker:
        landmarker.detect(pictures[0])
        _together.wait()
        began = time.perf_counter()
        for picture in pictures:
            landmarker.detect(picture)
        return time.perf_counter() - began


def rate(function: Callable[[list[str], str], float], paths: list[str], model: str, processes: int) -> float:
    """Pictures a second of some processes that all do the same at once."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _begin_together, (context.Barrier(processes),)) as pool:
        seconds = pool.starmap(function, [(paths, model)] * processes, chunksize=1)
    return sum(len(paths) / s for s in seconds)


def peers(raw: Path) -> dict[str, float]:
    """Pictures a second of the plain loop and of the limit on the first pictures of a folder."""
    model = str(PROJECT / params.load(PROJECT / "params.yaml").extract.model)
    paths = [str(raw / source.path) for source in scan(raw)[:SAMPLE]]
    return {"plain": rate(_plain, paths, model, 1), "limit": rate(_inference, paths, model, machine.cores())}


def measure(raw: Path, repeats: int) -> tuple[dict[str, float], float]:
    """Pictures a second of the stage and, around it, of its peers, with the ratios: the median of `repeats` runs; the stage's
    peak memory in MB."""
    runs, peak, before = [], 0.0, peers(raw)
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as root:
            workspace(Path(root), raw)
            seconds, highest = stage(Path(root))
        after = peers(raw)
        found = {"pictures": float(len(scan(raw))), "stage": len(scan(raw)) / seconds}
        found |= {name: (before[name] + after[name]) / 2 for name in before}
        found |= {f"of {name}": found["stage"] / found[name] for name in before}
        print(found, flush=True)
        runs.append(found)
        peak, before = max(peak, highest), after
    return sorted(runs, key=lambda run: run["of limit"])[len(runs) // 2], peak


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.extraction", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--raw", type=Path, nargs="+", default=[], help="folders of pictures, the largest last")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--mannequins", type=int, nargs="+", default=[], help="numbers of pictures to compare memory at"
    )
    parser.add_argument("--size", type=int, default=224, help="pixels of a drawn picture")
    options = parser.parse_args()
    measured: list[tuple[dict[str, float], float]] = []
    for raw in options.raw:
        measured.append(measure(raw, options.repeats))
    for count in sorted(options.mannequins):
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder) / "mannequin"
            raw.mkdir()
            mannequin.draw_all(raw, 0, options.size, count, machine.cores())
            for path in raw.rglob(f"*{JOINTS_SUFFIX}"):
                path.unlink()  # nobody's pictures come with the true joints
            measured.append(measure(raw, 1))
    if not measured:
        parser.error("--raw or --mannequins, or both")
    rates, peak = measured[-1]
    goals = {
        f"{rates['pictures']:.0f} pictures: >= 1.8 x a plain loop": rates["of plain"] >= 1.8,
        f"{rates['pictures']:.0f} pictures: >= 0.9 of the limit": rates["of limit"] >= 0.9,
        "the peak of the memory grows by at most a tenth": peak <= 1.1 * measured[0][1],
    }
    figures: dict[str, Any] = {
        "cores": machine.cores(),
        "pictures/s": [rates for rates, _ in measured],
        "peak MB": [round(peak) for _, peak in measured],
    }
    return finish("extraction", figures, goals)


if __name__ == "__main__":
    raise SystemExit(main())
