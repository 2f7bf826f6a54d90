"""The last line of every benchmark: JSON with its figures, its goals, and the goals it missed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def finish(benchmark: str, figures: Mapping[str, Any], goals: Mapping[str, bool]) -> int:
    """Print the line; `goals` maps each goal to whether it was reached. Returns the exit code, 1 if any was missed."""
    missed = [goal for goal, reached in goals.items() if not reached]
    line = {"benchmark": benchmark, "figures": dict(figures), "goals": list(goals), "missed": missed}
    print(json.dumps(line), flush=True)
    return 1 if missed else 0


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as text, columns aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def best_seconds(run: Callable[[], Any], times: int = 3) -> float:
    """The shortest of several runs after a warm-up, the fairest figure on a shared machine."""
    run()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)
