"""Extraction shared out over the workers of a work pool: a part's slices as runs of the deployment `extract-slice`.

A slice is a pure function of its files and a digest, so nothing is agreed on but names: what is done lies in the DVC remote
(`shelf`), whoever did it, and what nobody has done is extracted where the flow runs. The dataset cannot depend on it.
"""

from __future__ import annotations

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
from flows.remote_store import Shelf, fetch_slice
from tasks import paths
from tasks.common.errors import UserError
from tasks.config.data import PartName
from tasks.config.params import Params, load
from tasks.extract import slices

DEPLOYMENT = "extract-slice/extract-slice"
LOOK_SECONDS = 2.0
Name = Annotated[str, Field(pattern=r"^[0-9a-f]+$")]


def enter() -> dict[str, str]:
    """Prefect's pull step of that deployment: whichever machine this is, go to the workspace that this code is part of."""
    root = Path(__file__).resolve().parents[1]
    os.chdir(root)
    return {"directory": str(root)}


def _on_shelf(part: str, digest: str, version: str, rank: int, world: int) -> str:
    return f"{part}/{digest}/{version}/{slices.name(rank, world)}"


@flow(name="extract-slice", flow_run_name="{part} {rank} of {world}")
def extract_slice(
    part: PartName,
    rank: Annotated[int, Field(ge=0)],
    world: Annotated[int, Field(ge=1)],
    digest: Name,
    version: Name,
) -> State[Any]:
    """Extract slice `rank` of `world` of a part and lay it on the shelf, unless it is there.

    `digest` is what the asking machine's findings depend on (`tasks.extract.slices.digest`); `version` names the
    part's content.
    """
    root = Path.cwd()
    try:
        params, shelf = load(root / paths.PARAMS), Shelf(root)
        if slices.digest(params, root) != digest:
            return Failed(
                message="This worker would find other things than the machine that asks: its parameters, its code, its model "
                "or its packages differ. Bring it to the same commit and run make setup."
            )
        name = _on_shelf(part, digest, version, rank, world)
        if shelf.has(name, slices.MARK):
            return Completed(name="Skipped", message="somebody has done it")
        arguments = [part, str(rank), str(world)]
        place = params.raw.parts.get(part)
        done = root / paths.SLICES / part / slices.name(rank, world)
        fetched = done.with_name(f"{done.name}-files")
        if place is not None and not (root / place).is_dir():
            fetch_slice(root, place, rank, world, fetched)
            arguments.append(str(fetched))
        dvc_graph.run_task(root, "extract_slice", *arguments)
        shelf.put(name, done, slices.MARK)
        for folder in (done, fetched):  # what was fetched, and findings have one place
            shutil.rmtree(folder, ignore_errors=True)
    except UserError as error:
        return Failed(message=str(error), data=error)
    return Completed()


def share_out(params: Params, root: Path, plan: Sequence[dvc_graph.Stage]) -> None:
    """Have the parts that are to be extracted anew extracted in slices by the pool's workers, if `extract.slices` says so.

    Waits for all of them. A slice that failed raises UserError; the others are kept, so that the next run asks for that one
    alone.
    """
    world = params.extract.slices
    stages = {f"extract@{part}": part for part in params.raw.parts}
    waiting = [stages[step.name] for step in plan if step.name in stages]
    parts = [part for part in waiting if world and not dvc_graph.is_unchanged(root, f"extract@{part}")]
    if not parts:
        return
    shelf, digest, asked = Shelf(root), slices.digest(params, root), {}
    for part in parts:
        version = data_fingerprint.content(root / params.raw.parts[part])
        for rank in range(world):
            name = _on_shelf(part, digest, version, rank, world)
            wish = {"part": part, "rank": rank, "world": world, "digest": digest, "version": version}
            asked[part, rank] = name, None if shelf.has(name, slices.MARK) else _ask(wish)
    _wait([run for _, run in asked.values() if run is not None])
    for part in parts:
        done = []
        for rank in range(world):
            folder = root / paths.SLICES / part / slices.name(rank, world)
            shelf.get(asked[part, rank][0], (slices.FINDINGS, slices.MARK), folder)
            done.append(slices.absorb(params, root, folder))
        total = slices.together(done)
        print(
            f"{part}: {world} slices, {total['persons']} persons in {total['files']} files, {total['extracted']} extracted in "
            f"{total['seconds']:.0f} s of the workers' time"
        )


def _ask(wish: dict[str, Any]) -> Any:
    """Create a run of the deployment; its id."""
    try:
        run: Any = run_deployment(DEPLOYMENT, parameters=wish, timeout=0, as_subflow=False)
        return run.id
    except ObjectNotFound as error:
        raise UserError(
            "extract.slices is above 0, which needs the deployment extract-slice on a standing server: `make up`, or "
            "extract.slices: 0 in params.yaml."
        ) from error


def _wait(runs: Sequence[Any]) -> None:
    """Until all of these runs have ended; raises UserError if one of them has not completed. Left early, it cancels them."""
    with get_client(sync_client=True) as client:
        left = set(runs)
        failed = []
        try:
            while left:
                for run in sorted(left, key=str):
                    about = client.read_flow_run(run)
                    if about.state is not None and about.state.is_final():
                        left.remove(run)
                        print(
                            f"slice {about.name}: {about.state.name} ({len(runs) - len(left)}/{len(runs)})", flush=True
                        )
                        if not about.state.is_completed():
                            failed.append(f"{about.name}: {about.state.message or about.state.name}")
                if left and not dvc_graph.seconds_left():
                    raise dvc_graph.OutOfTime("extraction in slices")
                if left:
                    time.sleep(LOOK_SECONDS)
        finally:
            for run in left:
                client.set_flow_run_state(run, Cancelling(message="The run that asked for this slice has ended."))
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} slices failed ({failed[0]}); the others are kept. Run this again.", 1
        )
