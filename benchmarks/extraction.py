"""`python -m benchmarks.extraction --raw DIR ...`: pictures a second of the extract stage, end to end, and its memory.

Beside the stage, as `python -m tasks extract` runs it in an empty workspace (hashing, decoding, landmarks, scores and
the written tables; on every core), stand two figures measured on the first pictures of the same folder:

    plain     a loop in one process over MediaPipe's own reader and landmarker, nothing written
    limit     cores x the rate of one process on one core that only calls the landmarker, on pictures already decoded

The start of the processes and their imports count. With `--mannequins 1000 10000` folders of so many pictures are drawn
and measured too: the goals are those of the last folder, and the peak of the memory of all processes together must not
grow from the first folder to the last.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from benchmarks.report import finish
from tasks import machine, mannequin, params
from tasks.extraction.ingest import open_picture, scan

PROJECT = Path(__file__).parents[1]
SAMPLE = 200  # pictures of the two peers


def workspace(root: Path, raw: Path) -> None:
    """An empty workspace that reads its pictures from `raw`."""
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load((PROJECT / "params.yaml").read_text())
    values["raw"] = {"folder": None, "parts": {"raw": str(raw.resolve())}}
    values["extract"]["model"] = str(PROJECT / values["extract"]["model"])
    root.mkdir(parents=True, exist_ok=True)
    with (root / "params.yaml").open("w") as file:
        yaml.dump(values, file)


def stage(root: Path) -> tuple[float, float]:
    """Run the stage in a workspace: seconds, and the peak of all its processes' memory together in MB."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "tasks", "extract", "raw", "--root", str(root)], cwd=PROJECT)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _memory(process.pid))
        time.sleep(0.1)
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


def _inference(paths: list[str], model: str) -> float:
    """One core that does nothing but find landmarks: seconds."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from mediapipe import Image, ImageFormat
    from mediapipe.tasks.python import BaseOptions, vision

    from tasks.extraction.landmarker import keep_offline

    keep_offline()
    pictures = [Image(ImageFormat.SRGB, open_picture(Path(path))) for path in paths]
    options = vision.PoseLandmarkerOptions(base_options=BaseOptions(model_asset_path=model))
    with vision.PoseLandmarker.create_from_options(options) as landmarker:
        landmarker.detect(pictures[0])
        began = time.perf_counter()
        for picture in pictures:
            landmarker.detect(picture)
        return time.perf_counter() - began


def alone(function: Callable[[list[str], str], float], paths: list[str], model: str) -> float:
    """The function's result from a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (paths, model))


def peers(raw: Path, repeats: int) -> dict[str, float]:
    """Pictures a second of the plain loop and of the limit on the first pictures of a folder, the best of `repeats`."""
    model, cores = str(PROJECT / params.load(PROJECT / "params.yaml").extract.model), machine.cores()
    paths = [str(raw / source.path) for source in scan(raw)[:SAMPLE]]
    return {
        "plain": max(len(paths) / alone(_plain, paths, model) for _ in range(repeats)),
        "limit": max(cores * len(paths) / alone(_inference, paths, model) for _ in range(repeats)),
    }


def measure(raw: Path, repeats: int) -> tuple[dict[str, float], float]:
    """Pictures a second of the stage, the best of `repeats`, and of its peers; the stage's peak memory in MB."""
    runs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as root:
            workspace(Path(root), raw)
            runs.append(stage(Path(root)))
    seconds, peak = min(seconds for seconds, _ in runs), max(peak for _, peak in runs)
    return {"pictures": len(scan(raw)), "stage": len(scan(raw)) / seconds, **peers(raw, repeats)}, peak


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
            measured.append(measure(raw, 1))
    if not measured:
        parser.error("--raw or --mannequins, or both")
    rates, peak = measured[-1]
    goals = {
        f"{rates['pictures']} pictures: >= 1.8 x a plain loop": rates["stage"] >= 1.8 * rates["plain"],
        f"{rates['pictures']} pictures: >= 0.9 of the limit": rates["stage"] >= 0.9 * rates["limit"],
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
