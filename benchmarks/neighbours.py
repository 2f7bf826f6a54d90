"""`python -m benchmarks.neighbours`: exact neighbour search against torch and scikit-learn, in time and memory.

S2: 2000 queries x `--base` x 512, beside torch (matrix product and top-k) and scikit-learn (brute force). S3: rate in pose
space. Both beside the matrix product alone, a bound for every exact search. Then the cost from 1,000 to 100 million rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import faiss
import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from benchmarks.report import best_seconds, finish, table
from tasks.metrics.neighbours import search

Figures = dict[str, Any]
DEFAULT = faiss.cvar.distance_compute_blas_threshold  # before a search sets it


def _normal(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)


def _torch_search(queries: np.ndarray, base: np.ndarray, k: int, block: int = 256) -> torch.Tensor:
    """The usual way: squared distances by matrix product in float32, then top-k, block by block."""
    q, x = torch.from_numpy(queries), torch.from_numpy(base)
    norms = x.square().sum(1)
    rows = [torch.topk(norms - 2 * part @ x.T, k, largest=False).indices for part in q.split(block)]
    return torch.cat(rows)


def _product(queries: np.ndarray, base: np.ndarray, block: int = 256) -> None:
    """The inner products of all pairs; the results are discarded."""
    q, x = torch.from_numpy(queries), torch.from_numpy(base)
    for part in q.split(block):
        part @ x.T


def _race(runs: Mapping[str, Callable[[], Any]], times: int = 3) -> dict[str, float]:
    """The shortest time of each after a warm-up. They take turns, so that a busy moment of the machine affects all of them."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(times + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: min(seconds[1:]) for name, seconds in taken.items()}


def against_peers(base: int) -> tuple[Figures, dict[str, bool]]:
    """S2, and small sets where overhead counts."""
    queries, rows = _normal(2000, 512, 0), _normal(base, 512, 1)
    sklearn = NearestNeighbors(algorithm="brute").fit(rows)
    seconds = _race(
        {
            "ours": partial(search, queries, rows, 2),
            "torch": partial(_torch_search, queries, rows, 2),
            "scikit-learn": partial(sklearn.kneighbors, queries, 2),
            "matrix product alone": partial(_product, queries, rows),
        },
        5,
    )
    recall = float((search(queries, rows, 2).index[:, :1] == _torch_search(queries, rows, 1).numpy()).mean())
    small = {}
    for n in (1000, 10_000):
        some = rows[:n]
        ours, theirs = partial(search, queries, some, 2), partial(_torch_search, queries, some, 2)
        raced = _race({"ours": ours, "torch": theirs}, 30)
        small[n] = raced["ours"] / raced["torch"]
    figures = {"seconds": seconds, "first neighbour as torch's": recall, "ours over torch, small": small}
    return figures, {
        f"S2 2000 x {base} x 512 in <= {1.3 * base / 100_000:.2f} s": seconds["ours"] <= 1.3 * base / 100_000,
        "S2 >= 1.4 times as fast as torch": seconds["torch"] >= 1.4 * seconds["ours"],
        "S2 >= 2 times as fast as scikit-learn": seconds["scikit-learn"] >= 2 * seconds["ours"],
        "S2 never above 1.1 of torch at n <= 10k": max(small.values()) <= 1.1,
    }


def pose_space(base: int) -> tuple[Figures, dict[str, bool]]:
    """S3: rate at width 99 with 1000 queries, with FAISS's own threshold and with ours."""
    queries, rows = _normal(1000, 99, 0), _normal(base, 99, 1)

    def by_default() -> None:
        faiss.cvar.distance_compute_blas_threshold = DEFAULT
        faiss.knn(queries, rows, 2)  # a search sets its own again

    runs: dict[str, Callable[[], Any]] = {
        "ours": partial(search, queries, rows, 2),
        "FAISS, threshold left at its default": by_default,
        "matrix product alone": partial(_product, queries, rows),
    }
    work = 2 * len(queries) * len(rows) * 99 / 1e9
    figures = {f"GFLOP/s, {name}": work / seconds for name, seconds in _race(runs, 10).items()}
    rate = figures["GFLOP/s, ours"]
    return figures, {"S3 >= 100 GFLOP/s at width 99": rate >= 100}


def cost(base: int) -> tuple[Figures, dict[str, bool]]:
    """Seconds for 1000 queries, measured from 1,000 to `base` rows and computed beyond: work / rate, where work is
    2 * queries * rows * width operations and the rate is that of the largest set measured."""
    figures: Figures = {"formula": "seconds = 2 * queries * rows * width / rate"}
    rows: list[tuple[str, ...]] = [("rows", "99 wide", "512 wide")]
    for width in (99, 512):
        queries = _normal(1000, width, 0)
        measured = {n: best_seconds(partial(search, queries, _normal(n, width, 1), 2), 1) for n in _powers(base)}
        largest = max(measured)
        rate = 2 * len(queries) * largest * width / measured[largest]
        computed = {n: 2 * len(queries) * n * width / rate for n in _powers(10**8) if n > largest}
        figures[f"width {width}"] = {"GFLOP/s": rate / 1e9, "measured": measured, "computed": computed}
    for n in _powers(10**8):
        cells = []
        for width in (99, 512):
            found = figures[f"width {width}"]
            kind = "measured" if n in found["measured"] else "computed"
            cells.append(f"{found[kind][n]:.3g} s {kind}")
        rows.append((f"{n:,}", *cells))
    print(table(rows))
    return figures, {}


def _powers(largest: int) -> list[int]:
    """1,000, 10,000, ... up to the largest."""
    return [10**power for power in range(3, 9) if 10**power <= largest]


def main() -> int:
    """Run everything; the last line printed is JSON, the exit code 1 if a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neighbours", description=__doc__)
    parser.add_argument("--base", type=int, default=100_000, help="rows of S2 and S3")
    parser.add_argument("--largest", type=int, default=1_000_000, help="rows up to which the cost is measured")
    options = parser.parse_args()
    figures: Figures = {}
    goals: dict[str, bool] = {}
    for section, rows in ((against_peers, options.base), (pose_space, options.base), (cost, options.largest)):
        figures[section.__name__], met = section(rows)
        goals |= {goal: bool(value) for goal, value in met.items()}
        print(section.__name__, json.dumps(figures[section.__name__]), flush=True)
    return finish("neighbours", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
