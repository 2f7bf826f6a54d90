"""The engine `ray`: slices as tasks of a Ray cluster. The only module that uses Ray.

Ray's `ray.remote` is used directly. prefect-ray's task runner would report every slice from its node to Prefect's server, which
nodes cannot reach while a run has a server of its own, and its results would be a second cache beside the marks of the slices.

The program that talks to Ray, `python -m flows.on_ray REQUESTS`, is a child process: Ray changes the environment and the signal
handlers of its process, and everything that it started ends with it. A worker or a node that dies is Ray's business: it runs
the slice again elsewhere (`RETRIES`).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from flows import dvc_graph, slices
from flows.private_server import free_port
from flows.slices import Slice
from tasks import paths
from tasks.common import command, files, machine
from tasks.common.errors import UserError
from tasks.common.text import one_line

log = logging.getLogger(__name__)

RETRIES = 3  # of a slice whose worker or node has died
OBJECT_STORE = 80_000_000  # bytes, nearly the least that Ray accepts: the results of slices are in the remote
QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
LOOPBACK = {  # of a cluster on this machine
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on 127.0.0.1 only, as on systems with Ray for one machine
    "RAY_AUTH_MODE": "token",  # which this process and its children know
    "RAY_enable_metrics_collection": "0",
    "RAY_raylet_start_wait_time_s": "300",  # Ray's 30 are too few on a busy machine
    "RAY_worker_niceness": "0",  # Ray's 15 would let slices wait for everything else on the machine
}
# With ports of their own choice a node's agents have 15 seconds to start (ray#65983), too few on a busy machine.
AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster. `address` as in params.yaml: None is a cluster on this machine for the length of a run.

    `cores`: that a slice reserves, and uses.
    """

    address: str | None
    cores: int

    @property
    def here(self) -> bool:
        """See `flows.engines.Engine`."""
        return self.address is None

    def run(self, root: Path, pieces: Sequence[Slice]) -> Mapping[Slice, str]:
        if importlib.util.find_spec("ray") is None:
            raise UserError(
                "engine.kind: ray needs Ray: `.venv/bin/uv pip install --python .venv/bin/python '.[ray]'`, or engine.kind: "
                "local in params.yaml."
            )
        requests, failures = (root / paths.SLICES / f"ray-{name}.json" for name in ("requests", "failures"))
        files.write_json(
            requests, {"address": self.address, "cores": self.cores, "slices": [asdict(piece) for piece in pieces]}
        )
        failures.unlink(missing_ok=True)
        dvc_graph.run_module(root, "extraction on Ray", "flows.on_ray", str(requests), str(failures))
        return {pieces[int(number)]: reason for number, reason in files.read_json(failures).items()}


@contextmanager
def cluster(cores: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
    """A Ray cluster on 127.0.0.1 with a node for each number of cores, without a dashboard.

    Yields its address and the process of each node (its raylet), the head first. Slices work in the current folder. It has to
    be the first use of Ray in this process, whose environment it changes.
    """
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as session:
        os.environ |= QUIET | LOOPBACK | {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": session}
        from ray.cluster_utils import Cluster

        made = Cluster()
        nodes = []
        try:
            for number in cores:
                ports = {name: free_port() for name in AGENT_PORTS}
                # without the processes of the dashboard, of the logs and of the autoscaler
                nodes.append(
                    made.add_node(
                        num_cpus=number, object_store_memory=OBJECT_STORE, include_dashboard=False,
                        include_log_monitor=False, no_monitor=True, **ports,
                    )
                )  # fmt: skip
            yield made.address, [node.all_processes["raylet"][0].process.pid for node in nodes]
        finally:
            for node in reversed(nodes):
                made.remove_node(node, allow_graceful=False)


def _attempt(piece: Slice, cores: int) -> str:
    """In a worker of Ray: do the slice in the folder in which the node was started; returns what went wrong, or "".

    Ray uses a worker for one slice after the other, and they share one process for their tasks.
    """
    try:
        slices.work(Path.cwd(), piece, slices.task_process(Path.cwd()).run, cores)
    except UserError as error:
        return str(error)
    return ""


def run_slices(address: str, pieces: Sequence[Slice], cores: int) -> dict[int, str]:
    """Run the slices on the cluster and wait for them; returns the reason of each failure, by number.

    Raises UserError if there is no cluster at the address.
    """
    import ray

    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"There is no Ray cluster at engine.address {address}: {one_line(str(error))}", 1) from error
    try:
        attempt = ray.remote(num_cpus=cores, max_retries=RETRIES)(_attempt)
        pending = {attempt.options(name=str(piece)).remote(piece, cores): number for number, piece in enumerate(pieces)}
        failures = {}
        while pending:
            (done, *_), _ = ray.wait(list(pending), num_returns=1)
            number = pending.pop(done)
            try:
                reason = ray.get(done)
            except ray.exceptions.RayError as error:
                reason = one_line(str(error).strip().splitlines()[-1])
            if reason:
                failures[number] = reason
            log.info(f"slice {pieces[number]}: {reason or 'done'} ({len(pending)} of {len(pieces)} left)")
        return failures
    finally:
        ray.shutdown()


def main(requests: Path, failures: Path) -> int:
    """Run the slices in the file `requests` and write why some failed into `failures`; returns the exit code."""

    def work() -> int:
        wanted = files.read_json(requests)
        pieces, cores = [Slice(**piece) for piece in wanted["slices"]], wanted["cores"]
        os.environ |= QUIET
        if wanted["address"] is not None:
            failed = run_slices(wanted["address"], pieces, cores)
        else:
            with cluster([max(machine.cores(), cores)]) as (address, _):
                failed = run_slices(address, pieces, cores)
        files.write_json(failures, failed)
        return 0

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
