"""`python -m benchmarks.neighbours`: exact neighbour search against torch and scikit-learn, in time and memory.

S2: 2000 queries x `--base` x 512, beside torch (matrix product and top-k) and scikit-learn (brute force). S3: rate in pose
space. S5: memory of the search over shards. Cost from 1k to 1M rows is measured up to `--base`, beyond it is computed:
seconds = 2 * queries * rows * width / rate.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import faiss
import numpy as np
import psutil
import torch
from sklearn.neighbors import NearestNeighbors

from benchmarks.report import best_seconds
from tasks.copies.neighbours import search

Figures = dict[str, Any]


def _normal(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)


def _torch_search(queries: np.ndarray, base: np.ndarray, k: int, block: int = 256) -> torch.Tensor:
    """The usual way: squared distances by matrix product in float32, then top-k, block by block."""
    q, x = torch.from_numpy(queries), torch.from_numpy(base)
    norms = x.square().sum(1)
    rows = [torch.topk(norms - 2 * part @ x.T, k, largest=False).indices for part in q.split(block)]
    return torch.cat(rows)


def against_peers(base: int) -> tuple[Figures, dict[str, bool]]:
    """S2, and small sets where overhead counts."""
    queries, rows = _normal(2000, 512, 0), _normal(base, 512, 1)
    sklearn = NearestNeighbors(algorithm="brute").fit(rows)
    seconds = {
        "ours": best_seconds(lambda: search(queries, rows, 2)),
        "torch": best_seconds(lambda: _torch_search(queries, rows, 2)),
        "scikit-learn": best_seconds(lambda: sklearn.kneighbors(queries, 2), 1),
    }
    recall = float((search(queries, rows, 2).index[:, :1] == _torch_search(queries, rows, 1).numpy()).mean())
    small = {}
    for n in (1000, 10_000):
        some = rows[:n]
        ours, theirs = partial(search, queries, some, 2), partial(_torch_search, queries, some, 2)
        small[n] = best_seconds(ours) / best_seconds(theirs)
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
    work = 2 * len(queries) * len(rows) * 99 / 1e9
    rate = work / best_seconds(lambda: search(queries, rows, 2))
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = 20
    default = work / best_seconds(lambda: faiss.knn(queries, rows, 2))
    faiss.cvar.distance_compute_blas_threshold = before
    figures = {"GFLOP/s": rate, "GFLOP/s, threshold left at its default": default}
    return figures, {"S3 >= 100 GFLOP/s at width 99": rate >= 100}


class Shards(Sequence[np.ndarray]):
    """Blocks made when they are asked for, as shards are read."""

    def __init__(self, shards: int, rows: int, width: int) -> None:
        self._shape = shards, rows, width

    def __len__(self) -> int:
        return self._shape[0]

    def __getitem__(self, i: Any) -> Any:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return _normal(self._shape[1], self._shape[2], 10 + i)


def streaming(base: int) -> tuple[Figures, dict[str, bool]]:
    """S5: growth of resident memory, and answers, of 8 shards one after another against one array."""
    shards, queries = Shards(8, base // 8, 512), _normal(500, 512, 0)
    search(queries, Shards(1, 1000, 512), 3)  # the libraries' own buffers
    process = psutil.Process()
    before = process.memory_info().rss
    parts = search(queries, shards, 3)
    grown = (process.memory_info().rss - before) / 2**20
    shard = base // 8 * 512 * 4 / 2**20
    whole = search(queries, np.concatenate(list(shards)), 3)
    same = bool((parts.index == whole.index).all() and (parts.distance == whole.distance).all())
    figures = {"MiB grown": grown, "MiB of one shard": shard, "same answers": same}
    # One shard read, one centred copy of it, and what the allocator keeps of the one before.
    return figures, {"S5 memory stays within a few shards": grown <= 4 * shard + 64, "S5 same answers": same}


def cost(base: int) -> tuple[Figures, dict[str, bool]]:
    """Seconds for 1000 queries at width 99, measured up to `base` rows and computed beyond."""
    queries = _normal(1000, 99, 0)
    measured, rows = {}, 1000
    while rows <= base:
        block = _normal(rows, 99, 1)
        measured[rows] = best_seconds(partial(search, queries, block, 2), 1)
        rows *= 10
    largest = max(measured)
    computed = {n: measured[largest] * n / largest for n in (10**6, 10**7, 10**8) if n > largest}
    return {"measured": measured, "computed": computed}, {}


def main() -> None:
    """Run everything; the last line printed is JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neighbours", description=__doc__)
    parser.add_argument("--base", type=int, default=100_000, help="rows searched in")
    options = parser.parse_args()
    figures: Figures = {}
    goals: dict[str, bool] = {}
    for section in (against_peers, pose_space, streaming, cost):
        figures[section.__name__], met = section(options.base)
        goals |= {goal: bool(value) for goal, value in met.items()}
        print(section.__name__, json.dumps(figures[section.__name__]), flush=True)
    missed = [goal for goal, met in goals.items() if not met]
    print(json.dumps({"benchmark": "neighbours", "figures": figures, "goals": goals, "missed": missed}))


if __name__ == "__main__":
    main()
