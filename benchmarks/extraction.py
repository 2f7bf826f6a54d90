"""`python -m benchmarks.extraction --raw DIR ...`: pictures a second of the extract stage, end to end, and peak memory.

Beside the stage, as `python -m tasks extract` runs it in an empty workspace (hashing, decoding, landmarks, scores and
the written tables; on every core), stand two figures measured on some pictures from all over the same folder:

    plain     a loop in one process over MediaPipe's own reader and landmarker, nothing written
    limit     as many processes as cores that only call the landmarker, on pictures already decoded

The speed of a shared machine changes from one second to the next. So the peers are measured every 4 seconds of the
stage, while all processes of the stage are stopped, and the stage is compared with the mean of these measurements.
The goals are those of the median run. The start of the stage's processes and their imports count.

With `--mannequins 1000 10000` folders of so many pictures are drawn and measured too: the goals are those of the last
folder, and the peak of the memory of all processes together must not grow from the first folder to the last.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.extraction_peers import Peers
from benchmarks.report import finish
from tasks import paths
from tasks.common import machine
from tasks.config import params
from tasks.extract.scan import JOINTS_SUFFIX, scan
from tasks.synthetic import stage as mannequin

PROJECT = Path(__file__).parents[1]
EVERY = 4.0  # seconds of the stage between two measurements of its peers


def _model() -> Path:
    return PROJECT / params.load(PROJECT / "params.yaml").extract.model


def workspace(root: Path, raw: Path) -> None:
    """An empty workspace that reads its pictures from `raw`."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / paths.PARAMS
    shutil.copy(PROJECT / path.name, path)
    model = str(_model())
    params.set_values(path, {"raw.folder": None, "raw.parts": {"raw": str(raw.resolve())}, "extract.model": model})


def stage(root: Path, part: str = "raw", between: Callable[[], None] | None = None) -> tuple[float, float]:
    """Run the stage for a part of a workspace: seconds, and the peak of all its processes' memory together in MB.

    Every EVERY seconds it is stopped for as long as `between` takes, which does not count.
    """
    began, stopped, due = time.perf_counter(), 0.0, EVERY
    process = subprocess.Popen([sys.executable, "-m", "tasks", "extract", part, "--root", str(root)], cwd=PROJECT)
    peak = 0
    while not _left(process, 1.0):
        peak = max(peak, _memory(process.pid))
        if between and time.perf_counter() - began - stopped > due:
            paused = time.perf_counter()
            with _stopped(process.pid):
                between()
            stopped += time.perf_counter() - paused
            due += EVERY
    if process.returncode:
        raise SystemExit(f"the stage ended with exit code {process.returncode}")
    return time.perf_counter() - began - stopped, peak / 1e6


def _left(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a process ends within this many seconds."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode is not None


def _family(pid: int) -> list[psutil.Process]:
    """A process and its children, if it still exists."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []  # it has just ended


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """Context manager: a process and its children are stopped."""
    family = _family(pid)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _memory(pid: int) -> int:
    """Resident memory of a process and its children, bytes; shared pages count once per process."""
    total = 0
    for process in _family(pid):
        with suppress(psutil.NoSuchProcess):  # a process ended in between
            total += process.memory_info().rss
    return total


def measure(raw: Path, repeats: int) -> tuple[dict[str, float], float]:
    """Pictures a second of the stage and, within it, of its peers, with the ratios: the median of `repeats` runs; the stage's
    peak memory in MB."""
    runs, peak = [], 0.0
    paths = [raw / source.path for source in scan(raw).sources]
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as root, Peers(paths, _model()) as peers:
            looks = [peers.look()]  # a short run may end before the first measurement
            workspace(Path(root), raw)
            seconds, highest = stage(Path(root), between=lambda: looks.append(peers.look()))  # noqa: B023
        found = {"pictures": float(len(paths)), "stage": len(paths) / seconds}
        found |= {name: sum(look[name] for look in looks) / len(looks) for name in looks[0]}
        found |= {f"of {name}": found["stage"] / found[name] for name in looks[0]}
        print(found, "limit:", [round(look["limit"]) for look in looks], flush=True)
        runs.append(found)
        peak = max(peak, highest)
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
                path.unlink()  # user pictures come without true joints
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
