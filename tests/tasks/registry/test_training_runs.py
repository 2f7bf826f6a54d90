"""The MLflow run of a training: an interrupted one is continued, one of another process that is alive is not."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from tasks.common import process
from tasks.config.evaluation import Tracking
from tasks.registry.tracking import Store


def test_only_the_run_of_an_interrupted_training_is_continued(tmp_path: Path) -> None:
    store = Store(Tracking(), tmp_path)
    first = store.model_run("poses", "same")
    first.tag(**{"contrapposto.owner": process.identity(psutil.Process(os.getppid()))})
    second = store.model_run("poses", "same")
    assert second.id != first.id
    first.tag(**{"contrapposto.owner": "1:0.00"})  # no process is or was that
    second.finish("FINISHED")
    assert store.model_run("poses", "same").id == first.id
