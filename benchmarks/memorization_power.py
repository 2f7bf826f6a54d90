"""`python -m benchmarks.memorization_power`: false alarms and power of the copy verdict, beside published statistics.

Sections: `law` (M1-M4: synthetic features with known copies), `peers` (the same sets through other statistics, each
with the best threshold that 200 fresh sets can give it), `dimension` (what can be seen at which intrinsic dimension),
`video` (M6: scenes with near-duplicate frames), `pictures` (M5: disguised copies). The repetitions run in parallel
processes; `--part` takes a part of them, and those already in the state file are not computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.copy_peers import PEERS
from benchmarks.memorization_cells import Numbers, copied, dimension_set, law_set, peer_set, picture_set, video_set
from benchmarks.report import finish, table
from benchmarks.synthetic_pictures import DISGUISES
from tasks.common import files, machine
from tasks.common.pool import OrderedMap
from tasks.evaluate.memorization.copy_test import Verdict

SIZES = ((200, 50, 500), (500, 125, 1000), (1000, 250, 1000), (2000, 500, 2000))  # train, held-out, generated
COPIED = ("0.002 eta 0.1", "0.01 eta 0.1", "0.01 eta 0.3", "0.02 eta 0.3", "0.05 eta 0.5", "0.2 eta 0.7")
WITHOUT = ("blur", "shrink", "half the modes", "noise")
PEER_SCENARIOS = (
    "0.002 eta 0.1", "0.005 eta 0.3", "0.01 eta 0.3", "0.02 eta 0.3", "0.05 eta 0.3", "0.05 eta 0.5", "0.2 eta 0.5",
    "blur", "shrink", "half the modes",
)  # fmt: skip
DIMENSIONS = (2, 4, 8, 16, 32)
ETAS = (0.05, 0.1, 0.3, 0.5)
FRAMES, JITTERS = (2, 5, 10), (0.05, 0.2, 0.5)
DISGUISED = (*DISGUISES, "other background")
SAVED = 20  # seconds between two writes of the state file
COPIES, UNRELIABLE = Verdict.COPIES.value, Verdict.SPLIT_UNRELIABLE.value


@dataclass(frozen=True)
class Cell:
    """`reps` repetitions of one case: `compute(rep)` gives the numbers of one."""

    name: str
    compute: Callable[[int], Numbers]
    reps: int


@dataclass(frozen=True)
class Found:
    """All repetitions of a cell: measure -> values `[reps]`."""

    values: dict[str, list[float]]

    def mean(self, measure: str) -> float:
        """The share or mean of one measure."""
        return float(np.mean(self.values[measure]))

    @property
    def reps(self) -> int:
        """How many repetitions there are."""
        return len(next(iter(self.values.values())))


Results = dict[str, Found]


def _size(size: tuple[int, int, int]) -> str:
    return "/".join(map(str, size))


def law_cells() -> list[Cell]:
    """M1 to M4."""
    reps = {"fresh": 1000} | dict.fromkeys(COPIED, 100) | dict.fromkeys(WITHOUT, 100)
    return [
        Cell(f"law {_size(size)} {scenario}", partial(law_set, size, scenario), count)
        for size in SIZES
        for scenario, count in reps.items()
    ]


def peer_cells() -> list[Cell]:
    """Thresholds from 200 fresh sets, and 50 sets of every scenario."""
    fresh = Cell("peers fresh", partial(peer_set, "fresh"), 200)
    return [fresh, *(Cell(f"peers {name}", partial(peer_set, name), 50) for name in PEER_SCENARIOS)]


def dimension_cells() -> list[Cell]:
    """Power against intrinsic dimension and distance of the copies."""
    return [
        Cell(f"dimension {d} eta {eta}", partial(dimension_set, d, eta), 20) for d, eta in product(DIMENSIONS, ETAS)
    ]


def video_cells() -> list[Cell]:
    """M6."""
    splits = {"random split": False, "by scene": True}
    cells = [
        Cell(f"video {f} frames, jitter {j}, {name}", partial(video_set, f, j, by_scene, 0), 20)
        for f, j, (name, by_scene) in product(FRAMES, JITTERS, splits.items())
    ]
    return [*cells, Cell("video 5 frames, 2% copies", partial(video_set, 5, 0.2, True, 20), 20)]


def picture_cells() -> list[Cell]:
    """M5."""
    fresh = Cell("pictures fresh", partial(picture_set, ("fresh",)), 100)
    return [Cell("pictures disguised", partial(picture_set, DISGUISED), 20), fresh]


@contextmanager
def _worker() -> Iterator[Callable[[tuple[Callable[[int], Numbers], int]], Numbers]]:
    """What a worker process does with one (function, repetition)."""
    yield lambda job: job[0](job[1])


def run_cells(cells: list[Cell], workers: int, state: Path | None) -> Results:
    """Run all repetitions. The state file records finished ones, so that the next call continues there."""
    known: dict[str, dict[str, list[float]]] = json.loads(state.read_bytes()) if state and state.is_file() else {}
    done = {cell.name: Found(known[cell.name]).reps if cell.name in known else 0 for cell in cells}
    missing = [(cell, rep) for cell in cells for rep in range(done[cell.name], cell.reps)]
    jobs = [(cell.compute, rep) for cell, rep in missing]
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers: one process a core
    saved = time.monotonic()
    with closing(OrderedMap(_worker, jobs, workers)) as results, tqdm(total=len(jobs), mininterval=5) as bar:
        for (cell, rep), numbers in zip(missing, results, strict=True):
            for measure, value in numbers.items():
                known.setdefault(cell.name, {}).setdefault(measure, []).append(value)
            bar.set_description(cell.name, refresh=False)
            bar.update()
            if state and (rep == cell.reps - 1 or time.monotonic() > saved + SAVED):
                files.write_json(state, known)
                saved = time.monotonic()
    return {cell.name: Found(known[cell.name]) for cell in cells}


def judge_law(found: Results) -> dict[str, bool]:
    """The goals M1 to M4, and the table of every size and scenario."""
    rows: list[tuple[str, ...]] = [("n/m/N", "sets", "COPIES", "split test", "true positives", "false discoveries")]
    worst = {"fresh": 0.0, "without": 0.0, "split": 0.0, "false": 0.0}
    least = {"1%": 1.0, "two": 1.0, "true": 1.0}
    for size, scenario in product(SIZES, ("fresh", *COPIED, *WITHOUT)):
        cell = found[f"law {_size(size)} {scenario}"]
        fraction, eta = copied(scenario)
        row = [f"{cell.mean(COPIES):.3f}", f"{cell.mean('split test'):.3f}"]
        row += [f"{cell.mean(m):.3f}" if fraction else "" for m in ("true positives", "false discoveries")]
        rows.append((f"{_size(size)} {scenario}", str(cell.reps), *row))
        if scenario == "fresh":
            worst["fresh"] = max(worst["fresh"], cell.mean(COPIES))
        elif not fraction:
            worst["without"] = max(worst["without"], cell.mean(COPIES))
            worst["split"] = max(worst["split"], cell.mean("split test"))
        elif eta <= 0.3:
            least["two" if fraction < 0.01 else "1%"] = min(
                least["two" if fraction < 0.01 else "1%"], cell.mean(COPIES)
            )
            least["true"] = min(least["true"], cell.mean("true positives"))
            worst["false"] = max(worst["false"], cell.mean("false discoveries"))
    print(table(rows))
    return {
        "M1 false alarm of the verdict <= 2%": worst["fresh"] <= 0.02,
        "M2 power >= 0.99 at 1% near copies": least["1%"] >= 0.99,
        "M2 power >= 0.95 at two copies, eta 0.1": least["two"] >= 0.95,
        "M3 list: true positive rate >= 0.98": least["true"] >= 0.98,
        "M3 list: false discovery <= 0.12": worst["false"] <= 0.12,
        "M4 copy-free generators: COPIES <= 5%": worst["without"] <= 0.05,
        "M4 copy-free generators: split test <= 1%": worst["split"] <= 0.01,
    }


def judge_peers(found: Results) -> dict[str, bool]:
    """The table: share of alarms of our verdict (no oracle), then of every statistic below its oracle threshold."""
    statistics = ("p", *PEERS)
    threshold = {name: np.quantile(found["peers fresh"].values[name], 0.01) for name in statistics}
    rows: list[tuple[str, ...]] = [("scenario", "verdict", *statistics)]
    for scenario in PEER_SCENARIOS:
        cell = found[f"peers {scenario}"]
        shares = [float(np.mean(np.array(cell.values[name]) < threshold[name])) for name in statistics]
        rows.append((scenario, f"{cell.mean(COPIES):.2f}", *(f"{share:.2f}" for share in shares)))
    print(table(rows))
    return {}


def judge_dimension(found: Results) -> dict[str, bool]:
    """The table of power by dimension; what the report calls the smallest detectable copy must be roughly correct."""
    rows: list[tuple[str, ...]] = [
        ("dimension", "seen", *(f"eta {eta}" for eta in ETAS), "smallest copy", "fresh below 1/3")
    ]
    for d in DIMENSIONS:
        cells = [found[f"dimension {d} eta {eta}"] for eta in ETAS]
        numbers = [f"{cells[0].mean(m):.3g}" for m in ("dimension", "smallest copy", "fresh below 1/3")]
        rows.append((str(d), numbers[0], *(f"{cell.mean(COPIES):.2f}" for cell in cells), *numbers[1:]))
    print(table(rows))
    return {}


def judge_pictures(found: Results) -> dict[str, bool]:
    """The goal M5."""
    disguised, fresh = found["pictures disguised"], found["pictures fresh"]
    rows: list[tuple[str, ...]] = [("disguise", "COPIES", "true positives")]
    for name in DISGUISED:
        rows.append((name, *(f"{disguised.mean(f'{name}: {m}'):.2f}" for m in (COPIES, "true positives"))))
    alarms = fresh.mean(f"fresh: {COPIES}")
    print(table([*rows, ("fresh", f"{alarms:.3f}", "")]))
    least = min(disguised.mean(f"{name}: {COPIES}") for name in DISGUISED)
    return {"M5 disguised copies found >= 0.95": least >= 0.95, "M5 false alarm <= 2%": alarms <= 0.02}


def judge_video(found: Results) -> dict[str, bool]:
    """The goal M6."""
    rows: list[tuple[str, ...]] = [("frames, jitter", "SPLIT-UNRELIABLE, random split", "the same, by scene")]
    random, clean = [], []
    for frames, jitter in product(FRAMES, JITTERS):
        name = f"{frames} frames, jitter {jitter}"
        random.append(found[f"video {name}, random split"].mean(UNRELIABLE))
        clean.append(found[f"video {name}, by scene"].mean(UNRELIABLE))
        rows.append((name, f"{random[-1]:.2f}", f"{clean[-1]:.2f}"))
    copies = found["video 5 frames, 2% copies"]
    print(table(rows))
    print(f"2% copies, by scene: COPIES {copies.mean(COPIES):.2f}, true positives {copies.mean('true positives'):.2f}")
    return {
        "M6 random split: SPLIT-UNRELIABLE >= 0.95": min(random) >= 0.95,
        "M6 split by scene: SPLIT-UNRELIABLE <= 1%": float(np.mean(clean)) <= 0.01,
        "M6 split by scene: power >= 0.95": copies.mean(COPIES) >= 0.95,
    }


SECTIONS = {
    "law": (law_cells, judge_law),
    "peers": (peer_cells, judge_peers),
    "dimension": (dimension_cells, judge_dimension),
    "video": (video_cells, judge_video),
    "pictures": (picture_cells, judge_pictures),
}


def main() -> int:
    """Run the chosen sections; the last line printed is JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memorization_power", description=__doc__)
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), help=", ".join(SECTIONS))
    parser.add_argument("--part", type=float, default=1.0, help="part of the repetitions, at least 2 a cell")
    parser.add_argument("--workers", type=int, default=machine.cores())
    parser.add_argument("--state", type=Path, help="file that keeps finished cells")
    options = parser.parse_args()
    chosen = [SECTIONS[name] for name in options.sections]
    cells = [cell for plan, _ in chosen for cell in plan()]
    cells = [Cell(cell.name, cell.compute, max(2, round(options.part * cell.reps))) for cell in cells]
    found = run_cells(cells, options.workers, options.state)
    goals: dict[str, bool] = {}
    for _, judge in chosen:
        goals |= judge(found)
    figures = {
        name: {measure: round(cell.mean(measure), 4) for measure in cell.values} | {"reps": cell.reps}
        for name, cell in found.items()
    }
    return finish("memorization_power", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
