"""`python -m benchmarks.scale_out`: a part extracted by each engine with as many cores: bytes, overhead, memory, and kills.

    local      a process with CORES worker processes, beside the stage alone
    prefect    a server and CORES process workers, each of which extracts with one process
    ray        a cluster of CORES nodes with one core each

Every engine has a workspace of its own. Timed are `start` (server, deployment and workers; cluster) and `run` (from the
request to the tables of the stage `extract`). `cpu` are the core-seconds of all processes of the engine together, start
included, which other work on the machine hardly changes, and `peak_mb` is their memory; both are sampled five times a second.

Every engine extracts twice, the second time in four times as many slices. From the difference come the core-seconds of a
slice. The overhead at other sizes is computed: in core-seconds, over those of the stage alone, with a slice for every thousand
pictures.

With `--kills K` each engine extracts once more in twice as many slices, while K times a random process that runs a slice is
killed with SIGKILL: the process that runs slices (local), the flow run (prefect), the worker or, once, its node (ray).
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.extraction import PROJECT
from benchmarks.incremental import _dvc
from benchmarks.ray_nodes import RayNodes, ray_nodes, runs_slices
from benchmarks.report import finish, table
from flows import private_server
from flows.services import POOL
from tasks import paths
from tasks.common import files, process
from tasks.config.params import set_values
from tasks.synthetic import stage as mannequin

ENGINES = ("local", "prefect", "ray")
ALLOWED = 0.10  # overhead at 10,000 pictures
ALLOWED_LATER = 0.05  # at 100,000
FINER = 4  # times as many slices in the second run
EXTRACT = "from flows import engines; from tasks.config.params import load; from pathlib import Path; "
EXTRACT += "engines.extract(load(Path('params.yaml')), Path.cwd(), ['raw'])"


@dataclass
class Run:
    """What one engine took."""

    start: float = 0.0
    run: float = 0.0
    cpu: float = 0.0
    peak_mb: float = 0.0
    kills: list[str] = field(default_factory=list)


class Workspace:
    """A copy of the code with one part, a DVC repository and a remote, and the environment of the commands in it."""

    def __init__(self, root: Path, raw: Path, **engine: Any) -> None:
        self.root = root
        for name in ("flows", "tasks", "diffusion_core"):
            shutil.copytree(PROJECT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("params.yaml", "dvc.yaml", "forgotten.json", "prefect.yaml", "pyproject.toml"):
            shutil.copy(PROJECT / name, root / name)
        (root / "models").symlink_to((PROJECT / "models").resolve())
        changes = {f"engine.{key}": value for key, value in engine.items()}
        set_values(root / paths.PARAMS, {"raw.folder": None, "raw.parts": {"raw": str(raw)}, **changes})
        _dvc(root, "init", "--no-scm", "--quiet")
        _dvc(root, "remote", "add", "--quiet", "--default", "store", str(root.with_name(f"{root.name}-remote")))
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = os.environ | {"PYTHONPATH": str(root), "PATH": path, "OMP_NUM_THREADS": "1"}

    def call(self, *command: str) -> None:
        """Run a Python command in the workspace, quietly."""
        done = subprocess.run(
            [sys.executable, *command], cwd=self.root, env=self.environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")

    def outputs(self) -> dict[str, bytes]:
        """The tables of the part."""
        return {path.name: path.read_bytes() for path in (self.root / paths.POSES / "raw").iterdir()}


@contextmanager
def _prefect(workspace: Workspace, cores: int) -> Iterator[None]:
    """A server with the deployment, and process workers."""
    home = workspace.root / ".contrapposto/prefect"
    server = private_server.start(home)
    with ExitStack() as stack:
        stack.callback(server.stop)
        server.wait()
        workspace.environment |= private_server.settings(home) | {
            "PREFECT_API_URL": server.api_url, "PYTHONPATH": str(workspace.root), "OMP_NUM_THREADS": "1",
            "PATH": workspace.environment["PATH"],
        }  # fmt: skip
        workspace.call("-m", "prefect", "work-pool", "create", POOL, "--type", "process")
        workspace.call("-m", "prefect", "--no-prompt", "deploy", "--name", "run-slices")
        log = stack.enter_context(open(workspace.root / "workers.log", "w", encoding="utf-8"))
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--limit", "1"]
        for _ in range(cores):
            stack.callback(process.stop, process.start(command, workspace.root, workspace.environment, log))
        yield


@contextmanager
def _engine(kind: str, workspace: Workspace, cores: int) -> Iterator[RayNodes | None]:
    """The engine, started."""
    if kind == "prefect":
        with _prefect(workspace, cores):
            yield None
    elif kind == "ray":
        with ray_nodes(workspace.root, cores) as nodes:
            workspace.environment |= nodes.environment
            set_values(workspace.root / paths.PARAMS, {"engine.address": nodes.address})
            yield nodes
    else:
        yield None


class Watch(threading.Thread):
    """Measures the memory and the core-seconds of all child processes, and kills some of them."""

    nodes: RayNodes | None = None

    def __init__(self, kind: str, kills: int, pause: float) -> None:
        super().__init__(daemon=True)
        self.kind, self.kills, self.pause = kind, kills, pause
        self.peak, self.killed, self.over = 0, list[str](), threading.Event()
        self.random, self.seconds = random.Random(0), dict[psutil.Process, float]()

    def run(self) -> None:
        due = time.monotonic() + self.random.expovariate(1 / self.pause)
        while not self.over.wait(0.2):
            family = process.descendants(psutil.Process())
            memory = 0
            for child in family:
                try:
                    memory += child.memory_info().rss
                    self.seconds[child] = sum(child.cpu_times()[:2])
                except psutil.Error:
                    continue
            self.peak = max(self.peak, memory)
            if len(self.killed) < self.kills and time.monotonic() > due:
                running = [child for child in family if runs_slices(child)]
                if running and (victim := self._victim(self.random.choice(running))) is not None:
                    name, number = victim
                    os.kill(number, signal.SIGKILL)
                    self.killed.append(name)
                    due = time.monotonic() + self.random.expovariate(1 / self.pause)

    def _victim(self, slice: psutil.Process) -> tuple[str, int] | None:
        """What is killed instead of, or with, a process that extracts a slice; None if it has ended by now."""
        try:
            if self.kind == "local":
                return "process", slice.pid
            if self.nodes is not None:
                node, worker = self.nodes.node(slice), self.nodes.worker(slice)
                if "node" not in self.killed and node not in (None, self.nodes.nodes[0]):
                    return "node", int(node or 0)
                return None if worker is None else ("worker", worker.pid)
            return "flow run", slice.parents()[1].pid  # its parent is the guard of the flow run's child
        except (psutil.NoSuchProcess, IndexError):
            return None


def measure(
    kind: str, workspace: Workspace, cores: int, kills: int = 0, pause: float = 1.0, plain: bool = False
) -> Run:
    """Extract the part of a workspace with an engine; `plain`: with the stage alone."""
    began = time.perf_counter()
    watch = Watch(kind, kills, pause)
    watch.start()
    with _engine(kind, workspace, cores) as watch.nodes:
        started = time.perf_counter()
        if not plain:
            workspace.call("-c", EXTRACT)
        workspace.call("-m", "tasks", "extract", "raw")
        done = time.perf_counter()
    watch.over.set()
    watch.join()
    return Run(started - began, done - started, sum(watch.seconds.values()), watch.peak / 1e6, watch.killed)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale_out", description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="pictures")
    parser.add_argument("--cores", type=int, default=3, help="worker processes, workers, nodes")
    parser.add_argument("--slices", type=int, help="default: one for every 1,000 pictures, at least one for each core")
    parser.add_argument("--kills", type=int, default=20, help="of each engine, in a run of its own; 0: none")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    options = parser.parse_args()
    slices = options.slices or max(options.cores, options.count // 1000)
    figures: dict[str, Any] = {"pictures": options.count, "cores": options.cores, "slices": slices}
    goals: dict[str, bool] = {}
    rows = [("engine", "start s", "run s", "core s", "peak MB", "core s a slice", "at 10,000", "at 100,000")]
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        raw = place / "raw"
        raw.mkdir()
        mannequin.draw_all(raw, 0, 224, options.count, options.cores)
        for path in raw.rglob("*.json"):
            path.unlink()
        alone = Workspace(place / "alone", raw)
        set_values(alone.root / paths.PARAMS, {"extract.workers": options.cores})
        local = measure("local", alone, options.cores, plain=True)
        expected = alone.outputs()
        known = measure("local", alone, options.cores, plain=True)
        figures["alone"] = {
            "run_s": round(local.run, 2),
            "cpu_s": round(local.cpu, 1),
            "known_cpu_s": round(known.cpu, 2),
        }
        rows.append(("the stage alone", "", f"{local.run:.1f}", f"{local.cpu:.0f}", f"{local.peak_mb:.0f}", "", "", ""))
        for kind in options.engines:
            workers = options.cores if kind == "local" else 1

            def workspace(name: str, cut: int, kind: str = kind, workers: int = workers) -> Workspace:
                runs = {"runs": options.cores} if kind == "prefect" else {}
                made = Workspace(place / f"{kind}-{name}", raw, kind=kind, slices=cut, **runs)
                set_values(made.root / paths.PARAMS, {"extract.workers": workers})
                return made

            first, second = workspace("few", slices), workspace("many", FINER * slices)
            few, many = (measure(kind, one, options.cores) for one in (first, second))
            goals[f"{kind}: identical bytes"] = first.outputs() == second.outputs() == expected
            of_slice = max(many.cpu - few.cpu, 0) / ((FINER - 1) * slices)
            of_engine = max(few.cpu - local.cpu - of_slice * slices, 0)
            shares = []
            for count in (10_000, 100_000):
                of_local = known.cpu + (local.cpu - known.cpu) * count / options.count
                shares.append((of_engine + of_slice * max(options.cores, count // 1000)) / of_local)
            figures[kind] = {
                "start_s": round(few.start, 2), "run_s": round(few.run, 2), "cpu_s": round(few.cpu, 1),
                "many_cpu_s": round(many.cpu, 1), "engine_cpu_s": round(of_engine, 2), "slice_cpu_s": round(of_slice, 2),
                "at_10000": round(shares[0], 4), "at_100000": round(shares[1], 4),
                "peak_mb": round(few.peak_mb), "many_peak_mb": round(many.peak_mb),
            }  # fmt: skip
            shown = [f"{few.start:.1f}", f"{few.run:.1f}", f"{few.cpu:.0f}", f"{few.peak_mb:.0f}"]
            rows.append((kind, *shown, f"{of_slice:.2f}", f"{shares[0]:.1%}", f"{shares[1]:.1%}"))
            goals[f"{kind}: overhead at 10,000 <= 10 %"] = shares[0] <= ALLOWED
            goals[f"{kind}: overhead at 100,000 <= 5 %"] = shares[1] <= ALLOWED_LATER
            if options.kills:
                disturbed = workspace("killed", 2 * slices)
                killed = measure(kind, disturbed, options.cores, options.kills, few.run / (options.kills + 1))
                figures[kind] |= {"killed": killed.kills, "killed_run_s": round(killed.run, 2)}
                cached = files.read_json(disturbed.root / paths.EXTRACT_STATE / "raw.json")["extracted"] == 0
                goals[f"{kind}: nothing lost, nothing twice after kills"] = cached and disturbed.outputs() == expected
            print(kind, figures[kind], flush=True)
    print(table(rows))
    return finish("scale_out", figures, goals)


if __name__ == "__main__":
    raise SystemExit(main())
