"""Walks the DVC graph as a Prefect flow run: one task run a stage, in the graph's order.

DVC is the only cache: no result of Prefect's is kept, and a stage that DVC finds unchanged ends as `Skipped`. A
stage's failure is a state with one sentence, not an exception: there is no trace to read where the user is at fault.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows import dag, workspace
from tasks.errors import UserError
from tasks.params import Params


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def stage(name: str, place: str, root: Path, environment: dict[str, str]) -> State[Any]:
    """Make one stage, or find it unchanged (`Skipped`)."""
    began = time.monotonic()
    try:
        if dag.is_unchanged(root, name):
            print(f"{place} {name}: unchanged")
            return Completed(name="Skipped", message="unchanged")
        print(f"{place} {name}", flush=True)
        dag.run_stage(root, name, environment)
    except UserError as error:
        return Failed(message=str(error), data=error)
    print(f"{place} {name}: done in {time.monotonic() - began:.1f} s")
    return Completed()


def walk(targets: Sequence[str], raw: str | None = None, *, record: bool = False) -> State[Any]:
    """Bring the targets up to date in the current folder, and return the flow run's last state.

    `raw` as in `workspace.prepare`. With `record`, MLflow gets a run of the pipeline, unless there is nothing to do.
    A failed state carries the UserError, and so the exit code, as its data.
    """
    root = Path.cwd()
    try:
        params = workspace.prepare(root, raw)
        with workspace.alone(root):
            plan = dag.order(root, targets)
            if record and not all(dag.is_unchanged(root, step.name) for step in plan):
                return _recorded(params, root, plan)
            return _stages(root, plan, {}, {})
    except UserError as error:
        return Failed(message=str(error), data=error)


def _stages(
    root: Path, plan: Sequence[dag.Stage], environment: dict[str, str], states: dict[str, State[Any]]
) -> State[Any]:
    """Make the stages one after the other, up to the first that fails; `states` gets the state of each."""
    flow_run = runtime.flow_run.id
    if flow_run:
        environment = {**environment, "PREFECT__FLOW_RUN_ID": flow_run}
    for number, step in enumerate(plan, start=1):
        parents = [states[parent] for parent in step.parents]
        place = f"[{number}/{len(plan)}]"
        state = stage(step.name, place, root, environment, return_state=True, wait_for=parents)
        states[step.name] = state
        if not state.is_completed():
            return Failed(message=state.message, data=state.result(raise_on_failure=False))
    return Completed()


def _recorded(params: Params, root: Path, plan: Sequence[dag.Stage]) -> State[Any]:
    """The same with an MLflow run around it, which gets its end whatever happens."""
    from tasks import tracking  # imports MLflow, which takes seconds

    flow_run = runtime.flow_run.id
    run_id = tracking.start_pipeline(params, root, flow_run)
    states: dict[str, State[Any]] = {}
    status = "KILLED"
    try:
        last = _stages(root, plan, {tracking.PIPELINE: run_id}, states)
        status = "FINISHED" if last.is_completed() else "FAILED"
        return last
    finally:
        tracking.finish_pipeline(
            params, root, run_id, status, {name: str(state.name) for name, state in states.items()}
        )
