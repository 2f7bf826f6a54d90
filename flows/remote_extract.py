"""Extraction distributed over the workers of a work pool: a part's slices as runs of the deployment `extract-slice`.

A slice is a pure function of its files and a digest, so machines only have to agree on names. Finished slices are in the DVC
remote (`remote_store`), whichever machine made them. The dataset does not depend on the slices or the workers.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Completed, Failed
from pydantic import Field

from flows import data_fingerprint, dvc_graph
from flows.remote_store import RemoteStore, fetch_slice
from tasks import paths
from tasks.common.errors import UserError
from tasks.config.data import PartName
from tasks.config.params import Params, load
from tasks.extract import slices

log = logging.getLogger(__name__)

DEPLOYMENT = "extract-slice/extract-slice"
POLL_SECONDS = 2.0
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]+$")]


def enter() -> dict[str, str]:
    """Prefect's pull step of that deployment: on any machine, change to the workspace that contains this code."""
    root = Path(__file__).resolve().parents[1]
    os.chdir(root)
    return {"directory": str(root)}


def _stored_name(part: str, digest: str, version: str, rank: int, world: int) -> str:
    return f"{part}/{digest}/{version}/{slices.name(rank, world)}"


@flow(name="extract-slice", flow_run_name="{part} {rank} of {world}")
def extract_slice(
    part: PartName,
    rank: Annotated[int, Field(ge=0)],
    world: Annotated[int, Field(ge=1)],
    digest: Digest,
    version: Digest,
) -> State[Any]:
    """Extract slice `rank` of `world` of a part and put it into the remote store, unless it is there.

    `digest` covers everything that the results depend on besides the files (`tasks.extract.slices.digest`), as the requesting
    machine has it; `version` is a digest of the part's content.
    """
    root = Path.cwd()
    try:
        params, store = load(root / paths.PARAMS), RemoteStore(root)
        if slices.digest(params, root) != digest:
            return Failed(
                message="This worker would get other results than the machine that sent the request: its parameters, code, "
                "model or packages differ. Check out the same commit and run make setup."
            )
        name = _stored_name(part, digest, version, rank, world)
        if store.has(name, slices.MARK):
            return Completed(name="Skipped", message="already done")
        arguments = [part, str(rank), str(world)]
        part_folder = params.raw.parts.get(part)
        result = root / paths.SLICES / part / slices.name(rank, world)
        fetched = result.with_name(f"{result.name}-files")
        if part_folder is not None and not (root / part_folder).is_dir():
            fetch_slice(root, part_folder, rank, world, fetched)
            arguments.append(str(fetched))
        dvc_graph.run_task(root, "extract_slice", *arguments)
        store.put(name, result, slices.MARK)
        for folder in (result, fetched):
            shutil.rmtree(folder, ignore_errors=True)
    except UserError as error:
        return Failed(message=str(error), data=error)
    return Completed()


def extract_on_workers(params: Params, root: Path, plan: Sequence[dvc_graph.Stage]) -> None:
    """Let the pool's workers extract the changed parts in slices, if `extract.slices` is above 0, and wait for them.

    Raises UserError if a slice failed; the others are kept, so that the next run requests only that one.
    """
    world = params.extract.slices
    stages = {f"extract@{part}": part for part in params.raw.parts}
    planned = [stages[step.name] for step in plan if step.name in stages]
    parts = [part for part in planned if world and not dvc_graph.is_unchanged(root, f"extract@{part}")]
    if not parts:
        return
    store, digest = RemoteStore(root), slices.digest(params, root)
    requests: dict[tuple[str, int], tuple[str, Any]] = {}  # (part, rank) -> name in the store, flow run or None
    for part in parts:
        version = data_fingerprint.content(root / params.raw.parts[part])
        for rank in range(world):
            name = _stored_name(part, digest, version, rank, world)
            parameters = {"part": part, "rank": rank, "world": world, "digest": digest, "version": version}
            requests[part, rank] = name, None if store.has(name, slices.MARK) else _request(parameters)
    _wait([run for _, run in requests.values() if run is not None])
    for part in parts:
        statistics = []
        for rank in range(world):
            folder = root / paths.SLICES / part / slices.name(rank, world)
            store.get(requests[part, rank][0], (slices.FINDINGS, slices.MARK), folder)
            statistics.append(slices.absorb(params, root, folder))
        total = slices.combine(statistics)
        log.info(
            f"{part}: {world} slices, {total.persons} persons in {total.files} files, {total.extracted} extracted in "
            f"{total.seconds:.0f} s of the workers' time"
        )


def _request(parameters: dict[str, Any]) -> Any:
    """Create a run of the deployment; returns its id."""
    try:
        run: Any = run_deployment(DEPLOYMENT, parameters=parameters, timeout=0, as_subflow=False)
        return run.id
    except ObjectNotFound as error:
        raise UserError(
            "extract.slices is above 0, which needs the deployment extract-slice on a standing server: `make up`, or "
            "extract.slices: 0 in params.yaml."
        ) from error


def _wait(runs: Sequence[Any]) -> None:
    """Wait until all runs have ended. Raises UserError if one has failed. An exception cancels the runs that are left."""
    with get_client(sync_client=True) as client:
        left = set(runs)
        failed = []
        try:
            while left:
                for run in sorted(left, key=str):
                    about = client.read_flow_run(run)
                    if about.state is not None and about.state.is_final():
                        left.remove(run)
                        log.info(f"slice {about.name}: {about.state.name} ({len(runs) - len(left)}/{len(runs)})")
                        if not about.state.is_completed():
                            failed.append(f"{about.name}: {about.state.message or about.state.name}")
                if left and not dvc_graph.seconds_left():
                    raise dvc_graph.OutOfTime("extraction in slices")
                if left:
                    time.sleep(POLL_SECONDS)
        finally:
            for run in left:
                client.set_flow_run_state(run, Cancelling(message="The run that requested this slice has ended."))
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} slices failed ({failed[0]}); the others are kept. Run this again.", 1
        )
