"""Walks the DVC graph as a Prefect flow run: one task run for each stage, in the graph's order.

DVC is the only cache: Prefect keeps no results, and a stage that DVC finds unchanged ends as `Skipped`. A stage's failure is
a state with one sentence, not an exception, so that a user's mistake leaves no traceback.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows import data_fingerprint, dvc_graph, engines, notify, workspace
from flows.param_changes import Changes
from flows.slices import EXTRACT
from tasks import paths
from tasks.common import log as logs
from tasks.common.errors import UserError
from tasks.config.params import Params, load, set_values
from tasks.paths import MODELS, UPSCALER

log = logging.getLogger(__name__)
logs.to_stdout()  # a worker imports the flows without any command of ours


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def stage(name: str, place: str, root: Path, environment: dict[str, str]) -> State[Any]:
    """Run one stage, unless it is unchanged (`Skipped`); if it is one of `engine.stages`, after its slices."""
    began = time.monotonic()
    try:
        if dvc_graph.is_unchanged(root, name):
            log.info(f"{place} {name}: unchanged")
            return Completed(name="Skipped", message="unchanged")
        log.info(f"{place} {name}")
        params = load(root / paths.PARAMS)
        if engines.cuts(params, name) and not name.startswith(f"{EXTRACT}@"):  # it finds everything in the cache
            engines.run(params, root, name, lambda _, found: dvc_graph.run_stage(root, name, {**environment, **found}))
        else:
            dvc_graph.run_stage(root, name, environment)
    except UserError as error:
        return _failed(error)
    log.info(f"{place} {name}: done in {time.monotonic() - began:.1f} s")
    return Completed()


def _failed(error: UserError) -> State[Any]:
    """The failed state of a run; its data is the error, which has the exit code."""
    name = "TimedOut" if isinstance(error, dvc_graph.OutOfTime) else "Failed"
    return Failed(name=name, message=str(error), data=error)


def _failed_like(state: State[Any]) -> State[Any]:
    """The flow run's state after a task run that failed."""
    return Failed(name=state.name, message=state.message, data=state.result(raise_on_failure=False))


def walk(targets: Sequence[str], raw: str | None = None, changes: Changes | None = None) -> State[Any]:
    """Bring the targets up to date in the current folder, and return the flow run's last state.

    `raw` and `changes` as in `workspace.prepare`. The data of a failed state is the UserError, which has the exit code.
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
def task_outside_graph(name: str, root: Path) -> State[Any]:
    """Run a task that is no stage of the graph, because its result is not a function of the workspace's files.

    If it is one of `engine.stages`, it runs after its slices.
    """
    try:
        params = load(root / paths.PARAMS)
        if engines.cuts(params, name):
            engines.run(params, root, name, lambda task, found: dvc_graph.run_task(root, *task, environment=found))
        else:
            dvc_graph.run_task(root, name)
    except UserError as error:
        return _failed(error)
    return Completed()


def run_task(name: str, changes: Changes | None = None) -> State[Any]:
    """Run a task that is no stage of the graph in the current folder, and return the flow run's last state."""
    root = Path.cwd()
    try:
        with workspace.alone(root):
            params = workspace.prepare(root, changes=changes)
            with dvc_graph.within(params.limits.hours):
                state = task_outside_graph(name, root, return_state=True)
            return _failed_like(state) if state.is_failed() else state
    except UserError as error:
        return _failed(error)


def train(
    targets: Sequence[str], raw: str | None = None, changes: Changes | None = None, *, again: bool = False
) -> State[Any]:
    """Walk to the targets as a training run.

    MLflow gets a run of the pipeline, unless there is nothing to do; data that arrive from now on count as new;
    `notify.webhook` is notified of the outcome. `again`: this is a retraining, which starts as `retrain.warm_start` says.
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
                    params = _set_start(params, root, plan, changed)
                with dvc_graph.within(params.limits.hours):
                    return _recorded(params, root, plan)
            finally:  # this run made the shards; pictures that arrived meanwhile still count as new
                made = data_fingerprint.fingerprint(params, root).get(data_fingerprint.SHARDS)
                data_fingerprint.remember(root, began_with | ({data_fingerprint.SHARDS: made} if made else {}))
    except UserError as error:
        return _failed(error)


def _set_start(params: Params, root: Path, plan: Sequence[dvc_graph.Stage], changed: Sequence[str]) -> Params:
    """Write into params.yaml which weights the training starts from: the champion's or none, as `retrain.warm_start` says.

    DVC sees it there, so that the models stay a function of the parameters. Nothing is written if no stage that leads to a
    training has changed: other initial weights alone are no reason to train.
    """
    models = MODELS if params.upscaler.size is None else (*MODELS, UPSCALER)
    trained = [model for model in models if f"train_{model}" in {step.name for step in plan}]
    upstream = {step.name for step in dvc_graph.order(root, [f"train_{model}" for model in trained])}
    if not upstream.intersection(changed):
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
    """Run the stages one after the other, up to the first that fails; the state of each is put into `states`."""
    flow_run = runtime.flow_run.id
    if flow_run:
        environment = {**environment, "PREFECT__FLOW_RUN_ID": flow_run}
    extractions = {f"extract@{part}": part for part in params.raw.parts} if engines.cuts(params, EXTRACT) else {}
    for number, step in enumerate(plan, start=1):
        if step.name in extractions:  # the first of them: what the others need is there, too
            planned = [extractions[other.name] for other in plan if other.name in extractions]
            extractions = {}
            try:
                changed = [part for part in planned if not dvc_graph.is_unchanged(root, f"extract@{part}")]
                if changed:
                    engines.extract(params, root, changed)
            except UserError as error:
                return _failed(error)
        parents = [states[parent] for parent in step.parents]
        place = f"[{number}/{len(plan)}]"
        state = stage(step.name, place, root, environment, return_state=True, wait_for=parents)
        states[step.name] = state
        if not state.is_completed():
            return _failed_like(state)
    return Completed()


def _recorded(params: Params, root: Path, plan: Sequence[dvc_graph.Stage]) -> State[Any]:
    """Run the stages inside an MLflow run, whose status is set whatever happens."""
    from tasks.registry import pipeline_run, tracking  # imports MLflow, which takes seconds

    flow_run = runtime.flow_run.id
    run_id = pipeline_run.start(params, root, flow_run)
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
            pipeline_run.finish(params, root, run_id, status, ends)
        except UserError as error:
            if status == "FINISHED":
                raise
            log.warning(f"{error} The end of this run is not recorded there.")  # the cause of the failure matters more
        finally:
            if event == "failed" or ends["promote"] != "Skipped":
                notify.send(params.notify, event, sentence, root, flow_run=flow_run, mlflow_run=run_id)
