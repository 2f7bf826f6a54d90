"""The engine `prefect`: slices as runs of the deployment `extract-slice`, in the workers of its work pool."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Completed, Failed
from pydantic import Field

from flows import dvc_graph
from flows.slices import Slice, work
from tasks.common.errors import UserError
from tasks.config.data import PartName

log = logging.getLogger(__name__)

DEPLOYMENT = "extract-slice/extract-slice"
POLL_SECONDS = 2.0
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]+$")]


def enter() -> dict[str, str]:
    """Prefect's pull step of that deployment: on any machine, change to the workspace that contains this code."""
    root = Path(__file__).resolve().parents[1]
    os.chdir(root)
    return {"directory": str(root)}


@flow(name="extract-slice", flow_run_name="{part} {rank} of {world}")
def extract_slice(
    part: PartName,
    rank: Annotated[int, Field(ge=0)],
    world: Annotated[int, Field(ge=1)],
    digest: Digest,
    version: Digest,
) -> State[Any]:
    """Extract a slice (see `flows.slices.Slice`) and put it into the remote store, unless it is there."""
    try:
        if not work(Path.cwd(), Slice(part, rank, world, digest, version)):
            return Completed(name="Skipped", message="already done")
    except UserError as error:
        return Failed(message=str(error), data=error)
    return Completed()


class WorkPool:
    """The workers of the deployment's work pool: processes, containers of Kubernetes, or jobs of Slurm."""

    def run(self, root: Path, pieces: Sequence[Slice]) -> Mapping[Slice, str]:
        requested: dict[Any, Slice] = {}
        failures = {}
        with get_client(sync_client=True) as client:
            try:
                for piece in pieces:
                    requested[_request(asdict(piece))] = piece
                while requested:
                    for run in list(requested):
                        about = client.read_flow_run(run)
                        if about.state is not None and about.state.is_final():
                            piece = requested.pop(run)
                            log.info(f"slice {piece}: {about.state.name} ({len(requested)} of {len(pieces)} left)")
                            if not about.state.is_completed():
                                failures[piece] = about.state.message or str(about.state.name)
                    if requested and not dvc_graph.seconds_left():
                        raise dvc_graph.OutOfTime("extraction in slices")
                    if requested:
                        time.sleep(POLL_SECONDS)
            finally:
                for run in requested:
                    client.set_flow_run_state(run, Cancelling(message="The run that requested this slice has ended."))
        return failures


def _request(parameters: dict[str, Any]) -> Any:
    """Create a run of the deployment; returns its id."""
    try:
        run: Any = run_deployment(DEPLOYMENT, parameters=parameters, timeout=0, as_subflow=False)
        return run.id
    except ObjectNotFound as error:
        raise UserError(
            "engine.kind: prefect needs the deployment extract-slice on a standing server: `make up`, or engine.kind: local "
            "in params.yaml."
        ) from error
