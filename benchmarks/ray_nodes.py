"""A Ray cluster of several nodes on this machine, in a process of its own: for benchmarks and tests, which kill parts of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tasks.common import process

PROGRAM = """
import json, os, signal, sys
from flows.on_ray import cluster
with cluster([1] * int(sys.argv[1])) as (address, nodes):
    settings = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    print(json.dumps({"address": address, "environment": settings, "nodes": nodes}), flush=True)
    signal.pause()
"""


def runs_slices(child: psutil.Process) -> bool:
    """Whether this is a process that runs slices, one after the other (see `flows.task_process`)."""
    try:
        return child.cmdline()[1:3] == ["-m", "flows.task_process"]
    except psutil.Error:
        return False


@dataclass(frozen=True)
class RayNodes:
    """A running cluster; each node has one core."""

    address: str
    environment: dict[str, str]  # of a process that connects to it
    nodes: list[int]  # the process of each node, the head first
    process: int  # the parent of all

    def slices(self) -> list[psutil.Process]:
        """The processes that run slices, one after the other."""
        return [child for child in process.descendants(psutil.Process(self.process)) if runs_slices(child)]

    def worker(self, slice: psutil.Process) -> psutil.Process | None:
        """The worker of Ray that runs a slice; None if it has ended."""
        try:
            return next((p for p in slice.parents() if p.cmdline() and p.cmdline()[0].startswith("ray::")), None)
        except psutil.NoSuchProcess:
            return None

    def node(self, slice: psutil.Process) -> int | None:
        """The process of the node on which a slice runs; None if it has ended."""
        try:
            return next((p.pid for p in slice.parents() if p.pid in self.nodes), None)
        except psutil.NoSuchProcess:
            return None


@contextmanager
def ray_nodes(root: Path, count: int) -> Iterator[RayNodes]:
    """A cluster of `count` nodes whose slices work in the workspace `root`."""
    command = [sys.executable, "-c", PROGRAM, str(count)]
    with open(root / "ray.log", "w", encoding="utf-8") as log:
        guard = subprocess.Popen(
            [sys.executable, "-m", "tasks.common.process", "1", "inf", *command], cwd=root, env=dict(os.environ),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
    try:
        assert guard.stdout is not None
        line = guard.stdout.readline()
        assert line, (root / "ray.log").read_text()
        yield RayNodes(**json.loads(line), process=guard.pid)
    finally:
        process.stop(guard)
