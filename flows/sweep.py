"""The flow `sweep`: DVC experiments with other parameters, several at once, each in a folder of its own.

    contrapposto sweep FILE

FILE is YAML: `workers`, how many run at once; `grid`, dotted keys of params.yaml with lists of values, of which every
combination runs; or `runs`, a list of mappings of keys to values. The experiments are those of `dvc exp run --queue`: `dvc exp
show` is their table, `dvc exp apply` takes one over, and `contrapposto compare` compares their runs in MLflow, which have their
names.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows import dvc_graph
from flows.sweep_file import MOST, override, read, words
from tasks import paths
from tasks.common.errors import UserError
from tasks.config.params import load

POLL_SECONDS = 3.0
ENDED = ("Success", "Failed", "Killed")

log = logging.getLogger(__name__)


@task(name="experiment", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def wait(name: str, root: Path, stopped: threading.Event) -> State[Any]:
    """Wait until a worker of DVC's queue has finished the experiment, or the sweep is stopped."""
    while (state := dvc_graph.queue_state(root, name)) not in ENDED:
        if stopped.wait(POLL_SECONDS):
            return Failed(message=f"{name}: The sweep was stopped.")
    if state == "Success":
        return Completed()
    sentence = dvc_graph.queue_failure(root, name)
    return Failed(message=f"{name}: {sentence}", data=UserError(f"{name}: {sentence}", code=1))


# The tasks only wait: DVC's workers decide how many experiments run at once.
@flow(name="sweep", task_runner=ThreadPoolTaskRunner(max_workers=MOST))  # type: ignore[arg-type] # Prefect's own
def sweep(file: str) -> State[Any]:
    """Run the experiments of a file, and wait for them. The state fails if one of them does; the others run on."""
    root = Path.cwd()
    try:
        chosen = read(root, Path(file))
        names = {}
        for variation in chosen.variations:
            name = dvc_graph.queue_experiment(root, [override(key, value) for key, value in variation.items()])
            names[name] = variation
            log.info(f"queued {name}: {words(variation)}")
        dvc_graph.start_queue(root, min(chosen.workers, len(names)))
    except UserError as error:
        return Failed(message=str(error), data=error)
    finished, stopped = False, threading.Event()
    try:
        futures = [wait.submit(name, root, stopped) for name in names]
        for future in futures:
            future.wait()
        finished = True
    finally:
        if not finished:  # the flow was cancelled, and DVC's workers are processes of their own
            stopped.set()  # what is still queued never ends
            dvc_graph.stop_queue(root)
    failed = [state for future in futures if not (state := future.state).is_completed()]
    if failed:
        problem = UserError(" ".join(str(state.message) for state in failed), code=1)
        return Failed(message=str(problem), data=problem)
    try:
        recorded = _recorded(root, names)
    except UserError as error:
        log.warning(f"{error} `dvc exp show` has the results.")
        return Completed()
    for name in names:
        if name not in recorded:
            log.info(f"{name} has no run of its own in MLflow, because its results were there before")
    if len(recorded) > 1:
        log.info(f"compare them: contrapposto compare {' '.join(recorded)}")
    return Completed()


def _recorded(root: Path, names: Iterable[str]) -> list[str]:
    """The experiments that have a run in MLflow. One whose parameters were run before has none: DVC restores its outputs."""
    from tasks.registry.tracking import Store  # imports MLflow, which takes seconds

    store = Store(load(root / paths.PARAMS).tracking, root)
    runs = store.client.search_runs([store.experiment], max_results=1000, order_by=["attributes.start_time DESC"])
    known = {run.info.run_name for run in runs}
    return [name for name in names if name in known]
