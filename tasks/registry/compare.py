"""`python -m tasks compare RUN RUN ...`: MLflow runs side by side, as a table and as a figure with intervals.

A RUN is an id or the beginning of one, a run's name, such as that of a DVC experiment, or one of `champion`, `challenger` and
`previous`, which stand for the pipeline run that judged this version. The table, and which differences are beyond the
intervals, are printed and written to `reports/compare/` (compare.md, compare.json, compare.png).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import paths
from tasks.common import files
from tasks.common.errors import UserError
from tasks.config.params import Params
from tasks.plots import interval_plot
from tasks.plots.interval_plot import Row
from tasks.registry import model_registry
from tasks.registry.tracking import Store

log = logging.getLogger(__name__)

ALIASES = (model_registry.CHAMPION, model_registry.CHALLENGER, model_registry.PREVIOUS)
LOW, HIGH = "_low", "_high"
TAGS = {  # shown even if the runs do not differ
    "contrapposto.verdict.poses": "memorization, poses",
    "contrapposto.verdict.pictures": "memorization, pictures",
    "contrapposto.promoted": "promoted",
}


@dataclass(frozen=True)
class Entry:
    """A run in the table. `numbers`: metric -> (value, low, high); low and high equal the value if there is no interval."""

    run_id: str
    name: str
    status: str
    numbers: dict[str, tuple[float, float, float]]
    params: dict[str, str]
    tags: dict[str, str]


def numbers(metrics: Mapping[str, float]) -> dict[str, tuple[float, float, float]]:
    """Metrics with their intervals, whose ends are the metrics `<name>_low` and `<name>_high`."""
    ends = {name + end for name in metrics for end in (LOW, HIGH) if name + LOW in metrics and name + HIGH in metrics}
    return {
        name: (value, metrics.get(name + LOW, value), metrics.get(name + HIGH, value))
        for name, value in metrics.items()
        if name not in ends
    }


def find(store: Store, runs: Sequence[Any], wanted: str) -> Entry:
    """The run that an argument names. Raises UserError if there is none, or more than one."""
    if wanted in ALIASES:
        version = model_registry.version(store, "poses", wanted)
        if version is None:
            raise UserError(f"There is no {wanted} yet.")
        judged = version.tags.get("judged_in", version.run_id)
        matches = [run for run in runs if run.info.run_id == judged]
    else:
        matches = [run for run in runs if run.info.run_id == wanted or run.info.run_name == wanted]
        matches = matches or [run for run in runs if run.info.run_id.startswith(wanted)]
    if len(matches) != 1:
        names = ", ".join(f"{run.info.run_id[:8]} ({run.info.run_name})" for run in matches or runs[:10])
        what = "no run" if not matches else "more than one run"
        raise UserError(f"{wanted!r} means {what}; there are {names or 'no runs at all'}.")
    run = matches[0]
    return Entry(
        run.info.run_id,
        f"{run.info.run_name} {run.info.run_id[:6]}",
        run.info.status,
        numbers(run.data.metrics),
        dict(run.data.params),
        dict(run.data.tags),
    )


def _cell(number: tuple[float, float, float] | None) -> str:
    if number is None:
        return "absent"
    value, low, high = number
    return f"{value:.4g}" if low == high else f"{value:.4g} [{low:.4g}, {high:.4g}]"


def rows(entries: Sequence[Entry]) -> list[list[str]]:
    """The table: verdicts, every parameter in which the runs differ, and every metric. The first cell names the row."""
    table = [["status", *(entry.status for entry in entries)]]
    table += [[label, *(entry.tags.get(tag, "") for entry in entries)] for tag, label in TAGS.items()]
    keys = sorted({key for entry in entries for key in entry.params})
    for key in keys:
        values = [entry.params.get(key, "") for entry in entries]
        if len(set(values)) > 1:
            table.append([key, *values])
    for key in sorted({key for entry in entries for key in entry.numbers}):
        table.append([key, *(_cell(entry.numbers.get(key)) for entry in entries)])
    return table


def panels(entries: Sequence[Entry]) -> list[tuple[str, list[Row]]]:
    """A panel for each metric that has an interval in some run, with one row per run."""
    with_interval = sorted({key for entry in entries for key, (_, low, high) in entry.numbers.items() if low < high})
    return [
        (key, [Row(e.name, *e.numbers[key], series=i) for i, e in enumerate(entries) if key in e.numbers])
        for key in with_interval
    ]


def beyond(entries: Sequence[Entry]) -> list[str]:
    """A sentence for each metric and pair of runs whose intervals do not overlap. That is stricter than a test of the
    difference at the same level."""
    sentences = []
    for key in sorted({key for entry in entries for key, (_, low, high) in entry.numbers.items() if low < high}):
        having = sorted((entry for entry in entries if key in entry.numbers), key=lambda entry: entry.numbers[key])
        for lower in having:
            above = [entry.name for entry in having if entry.numbers[key][1] > lower.numbers[key][2]]
            if above:
                sentences.append(f"{key}: {lower.name} is below {', '.join(above)}.")
    return sentences


def run(params: Params, root: Path, *runs: str) -> None:
    """Compare the runs. Raises UserError if fewer than two are given or one cannot be found."""
    if len(runs) < 2:
        raise UserError("Give two or more runs to compare: ids, names, champion, challenger or previous.")
    store = Store(params.tracking, root)
    known = store.client.search_runs([store.experiment], max_results=1000, order_by=["attributes.start_time DESC"])
    entries = [find(store, known, wanted) for wanted in runs]
    table = rows(entries)
    heading = ["", *(entry.name for entry in entries)]
    widths = [max(len(cells[column]) for cells in (heading, *table)) for column in range(len(heading))]
    for cells in (heading, *table):
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    differences = beyond(entries)
    print("\nDifferences beyond the intervals:", *(differences or ["none"]), sep="\n  ")
    lines = ["| " + " | ".join(cells) + " |" for cells in (heading, ["---"] * len(heading), *table)]
    with files.new_folder(root / paths.COMPARE) as folder:
        listed = ["", "Differences beyond the intervals:", "", *(f"* {one}" for one in differences or ["none"])]
        (folder / "compare.md").write_text("\n".join([*lines, *listed]) + "\n", encoding="utf-8")
        files.write_json(
            folder / "compare.json", [{"run": e.run_id, "name": e.name, "metrics": e.numbers} for e in entries]
        )
        if drawn := panels(entries):
            interval_plot.draw(folder / "compare.png", drawn)
    log.info(f"written to {root / paths.COMPARE}")
