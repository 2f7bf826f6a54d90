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

from flows import data_fingerprint, dvc_graph, notify, workspace
from flows.param_changes import Changes
from flows.remote_extract import share_out
from tasks import paths
from tasks.common.errors import UserError
from tasks.config.params import Params, load, set_values
from tasks.paths import MODELS


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def stage(name: str, place: str, root: Path, environment: dict[str, str]) -> State[Any]:
    """Make one stage, or find it unchanged (`Skipped`)."""
    began = time.monotonic()
    try:
        if dvc_graph.is_unchanged(root, name):
            print(f"{place} {name}: unchanged")
            return Completed(name="Skipped", message="unchanged")
        print(f"{place} {name}", flush=True)
        dvc_graph.run_stage(root, name, environment)
    except UserError as error:
        return _failed(error)
    print(f"{place} {name}: done in {time.monotonic() - began:.1f} s")
    return Completed()


def _failed(error: UserError) -> State[Any]:
    """The state that the error makes of a run; it carries the error, and so the exit code, as its data."""
    return Failed(
        name="TimedOut" if isinstance(error, dvc_graph.OutOfTime) else "Failed", message=str(error), data=error
    )


def _same(state: State[Any]) -> State[Any]:
    """A task run's failed state as the flow run's."""
    return Failed(name=state.name, message=state.message, data=state.result(raise_on_failure=False))


def walk(targets: Sequence[str], raw: str | None = None, changes: Changes | None = None) -> State[Any]:
    """Bring the targets up to date in the current folder, and return the flow run's last state.

    `raw` and `changes` as in `workspace.prepare`. A failed state carries the UserError, and so the exit code, as its data.
    """
    root = Path.cwd()
    try:
        with workspace.alone(root):
            params = workspace.prepare(root, raw, changes)
            plan = dvc_graph.order(root, targets)
            with dvc_graph.within(params.limits.hours):
                return _stages(params, root, plan, {}, {})
    except UserError as error:
        return _failed(error)


@task(name="task", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def outside(name: str, root: Path) -> State[Any]:
    """Run a task that is no stage of the graph: its result is not a function of the files here."""
    try:
        dvc_graph.run_task(root, name)
    except UserError as error:
        return _failed(error)
    return Completed()


def alone(name: str, changes: Changes | None = None) -> State[Any]:
    """Run such a task in the current folder, by itself; returns the flow run's last state."""
    root = Path.cwd()
    try:
        with workspace.alone(root):
            params = workspace.prepare(root, changes=changes)
            with dvc_graph.within(params.limits.hours):
                state = outside(name, root, return_state=True)
            return _same(state) if state.is_failed() else state
    except UserError as error:
        return _failed(error)


def train(
    targets: Sequence[str], raw: str | None = None, changes: Changes | None = None, *, again: bool = False
) -> State[Any]:
    """The same as a training: MLflow gets a run of the pipeline, unless there is nothing to do, data that arrive from now
    on count as new, and `notify.webhook` is told how it ended.

    `again`: the models are trained again because data have come; `retrain.warm_start` says from where.
    """
    root = Path.cwd()
    try:
        with workspace.alone(root):
            params = workspace.prepare(root, raw, changes)
            began_with = data_fingerprint.fingerprint(params, root)
            data_fingerprint.remember(root, began_with)
            try:
                plan = dvc_graph.order(root, targets)
                changed = [step.name for step in plan if not dvc_graph.is_unchanged(root, step.name)]
                if not changed:
                    _stages(params, root, plan, {}, {})
                    return Completed(name="Skipped", message="Nothing has changed since the last run.")
                if again:
                    params = _start_again(params, root, plan, changed)
                with dvc_graph.within(params.limits.hours):
                    return _recorded(params, root, plan)
            finally:  # the shards are this run's own; pictures that came meanwhile are not
                made = data_fingerprint.fingerprint(params, root).get(data_fingerprint.SHARDS)
                data_fingerprint.remember(root, began_with | ({data_fingerprint.SHARDS: made} if made else {}))
    except UserError as error:
        return _failed(error)


def _start_again(params: Params, root: Path, plan: Sequence[dvc_graph.Stage], changed: Sequence[str]) -> Params:
    """Write the champion's weights as the training's beginning into params.yaml, or none, as `retrain.warm_start` says.

    DVC sees it there, so that what is trained stays a function of the parameters. Nothing is written if no stage that leads
    to a training has changed: the beginning alone is no reason to train.
    """
    trained = [model for model in MODELS if f"train_{model}" in {step.name for step in plan}]
    leads = {step.name for step in dvc_graph.order(root, [f"train_{model}" for model in trained])}
    if not leads.intersection(changed):
        return params
    starts: dict[str, str | None] = {f"{model}.start": None for model in trained}
    if params.retrain.warm_start:
        from tasks.registry import model_registry, tracking  # imports MLflow, which takes seconds

        store = tracking.Store(params.tracking, root)
        for model in trained:
            if model_registry.version(store, model, model_registry.CHAMPION) is not None:
                starts[f"{model}.start"] = model_registry.fetch(store, root, model, model_registry.CHAMPION).name
    set_values(root / paths.PARAMS, starts)
    return load(root / paths.PARAMS)


def _stages(
    params: Params,
    root: Path,
    plan: Sequence[dvc_graph.Stage],
    environment: dict[str, str],
    states: dict[str, State[Any]],
) -> State[Any]:
    """Make the stages one after the other, up to the first that fails; `states` gets the state of each."""
    flow_run = runtime.flow_run.id
    if flow_run:
        environment = {**environment, "PREFECT__FLOW_RUN_ID": flow_run}
    try:
        share_out(params, root, plan)
    except UserError as error:
        return _failed(error)
    for number, step in enumerate(plan, start=1):
        parents = [states[parent] for parent in step.parents]
        place = f"[{number}/{len(plan)}]"
        state = stage(step.name, place, root, environment, return_state=True, wait_for=parents)
        states[step.name] = state
        if not state.is_completed():
            return _same(state)
    return Completed()


def _recorded(params: Params, root: Path, plan: Sequence[dvc_graph.Stage]) -> State[Any]:
    """The same with an MLflow run around it, which gets its end whatever happens."""
    from tasks.registry import tracking  # imports MLflow, which takes seconds

    flow_run = runtime.flow_run.id
    run_id = tracking.start_pipeline(params, root, flow_run)
    states: dict[str, State[Any]] = {}
    status, event, sentence = "KILLED", "failed", "The run was stopped."
    try:
        last = _stages(params, root, plan, {tracking.PIPELINE: run_id}, states)
        if last.is_completed():
            status, (event, sentence) = "FINISHED", notify.outcome(root)
        else:
            status, sentence = "FAILED", str(last.message)
        return last
    finally:
        ends = {name: str(state.name) for name, state in states.items()}
        try:
            tracking.finish_pipeline(params, root, run_id, status, ends)
        except UserError as error:
            if status == "FINISHED":
                raise
            print(f"{error} How this run ended is not on record there.")  # why it ended matters more
        finally:
            if event == "failed" or ends["promote"] != "Skipped":
                notify.send(params.notify, event, sentence, root, flow_run=flow_run, mlflow_run=run_id)
