"""The engine `prefect`: slices as runs of the deployment `run-slices`, in the workers of its work pool."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Completed, Failed
from pydantic import Field

from flows import dvc_graph
from flows.remote_store import RemoteStore
from flows.slices import Slice, work
from flows.task_process import TaskProcess
from tasks.common.blocks import MARK
from tasks.common.errors import UserError

log = logging.getLogger(__name__)

DEPLOYMENT = "run-slices/run-slices"
POLL_SECONDS = 2.0
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]+$")]


def enter() -> dict[str, str]:
    """Prefect's pull step of that deployment: on any machine, change to the workspace that contains this code."""
    root = Path(__file__).resolve().parents[1]
    os.chdir(root)
    return {"directory": str(root)}


@flow(name="run-slices", flow_run_name="{stage} {ranks} of {world}")
def run_slices(
    stage: Annotated[str, Field(pattern=r"^[a-z_]+(@[^/\\]+)?$")],
    ranks: list[Annotated[int, Field(ge=0)]],
    world: Annotated[int, Field(ge=1)],
    digest: Digest,
    version: Digest,
    first: Annotated[int, Field(ge=0)] = 0,
    last: Annotated[int, Field(ge=0)] = 0,
) -> State[Any]:
    """Do slices of a stage (see `flows.slices.Slice`), unless they are done, and put each into the remote store at once.

    They share one process, so that Python and its libraries start once. A slice that fails does not stop the others.
    """
    done, failed = 0, []
    with TaskProcess(Path.cwd()) as process:
        for rank in ranks:
            try:
                done += work(Path.cwd(), Slice(stage, rank, world, digest, version, first, last), process.run)
            except UserError as error:
                failed.append(error)
    if failed:
        return Failed(message=str(failed[0]), data=failed[0])
    return Completed() if done else Completed(name="Skipped", message="already done")


@dataclass(frozen=True)
class WorkPool:
    """The workers of the deployment's work pool: processes, containers of Kubernetes, or jobs of Slurm.

    `runs`: flow runs that share the slices; 0: one for each worker that is online. A flow run costs some ten core-seconds
    more than a slice, and so each does several slices.
    """

    runs: int = 0
    here: ClassVar[bool] = False  # the workers may be on other machines

    def run(self, root: Path, pieces: Sequence[Slice]) -> Mapping[Slice, str]:
        requested: dict[Any, list[Slice]] = {}
        failures: dict[Slice, str] = {}
        store = RemoteStore(root)
        with get_client(sync_client=True) as client:
            try:
                for share in shares(pieces, self.runs or _workers_online(client)):
                    parameters = asdict(share[0]) | {"ranks": [piece.rank for piece in share]}
                    del parameters["rank"]
                    requested[_request(parameters)] = share
                while requested:
                    for run in list(requested):
                        about = client.read_flow_run(run)
                        if about.state is not None and about.state.is_final():
                            share = requested.pop(run)
                            log.info(
                                f"slices {', '.join(map(str, share))}: {about.state.name} ({len(requested)} runs left)"
                            )
                            if not about.state.is_completed():
                                reason = about.state.message or str(about.state.name)
                                failures |= {piece: reason for piece in share if not store.has(piece.stored, MARK)}
                    if requested and not dvc_graph.seconds_left():
                        raise dvc_graph.OutOfTime("extraction in slices")
                    if requested:
                        time.sleep(POLL_SECONDS)
            finally:
                for run in requested:
                    client.set_flow_run_state(run, Cancelling(message="The run that requested this slice has ended."))
        return failures


def shares(pieces: Sequence[Slice], runs: int) -> list[list[Slice]]:
    """The slices divided among at most so many flow runs, each with slices of one stage only."""
    parts: dict[Slice, list[Slice]] = {}
    for piece in pieces:
        parts.setdefault(replace(piece, rank=0), []).append(piece)
    divided = []
    for part in parts.values():
        number = min(runs, len(part))
        divided += [part[first::number] for first in range(number)]
    return divided


def _workers_online(client: SyncPrefectClient) -> int:
    """How many workers serve the work pool of the deployment, at least 1."""
    try:
        pool = client.read_deployment_by_name(DEPLOYMENT).work_pool_name
    except ObjectNotFound as error:
        raise _no_deployment() from error
    workers = client.read_workers_for_work_pool(str(pool))
    return max(1, sum(worker.status == WorkerStatus.ONLINE for worker in workers))


def _request(parameters: dict[str, Any]) -> Any:
    """Create a run of the deployment; returns its id."""
    try:
        run: Any = run_deployment(DEPLOYMENT, parameters=parameters, timeout=0, as_subflow=False)
        return run.id
    except ObjectNotFound as error:
        raise _no_deployment() from error


def _no_deployment() -> UserError:
    return UserError(
        "engine.kind: prefect needs the deployment run-slices on a standing server: `make up`, or engine.kind: local "
        "in params.yaml."
    )
