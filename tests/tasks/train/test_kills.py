"""Killed with SIGKILL at 20 random moments, a training ends with the bits, the run and the points of an undisturbed one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tasks.dataset import clips as clips_stage
from tasks.paths import MOTION, VIDEO
from tasks.synthetic import animate
from tests.support import motion_workspace, video_workspace
from tests.support.project import PROJECT
from tests.support.workspaces import write_awake, write_params, write_shards

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("model", ["poses", "pictures", "motion", "video"])
def test_twenty_kills_leave_no_trace(model: str, tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        _prepare(tmp_path / name, model)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, str(PROJECT / "tests/support/kills.py"), str(tmp_path), model, "20"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    assert len(done.stdout.splitlines()) == 20
    whole, killed = (tmp_path / name / "artifacts" / model for name in ("whole", "killed"))
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(killed)) for path in killed.rglob("*") if path.is_file())
    assert any("snapshots" in name for name in names)
    for name in names:
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    steps = [_steps(tmp_path / name) for name in ("whole", "killed")]
    assert steps[0] == steps[1]
    assert all(found == sorted(set(found)) for found in steps[1].values())


def _prepare(root: Path, model: str) -> None:
    """What the training of a model needs; it has 32 checkpoints."""
    section = f"{model}__model" if model in (MOTION, VIDEO) else model
    changes: dict[str, Any] = {f"{section}__power_averages": [0.05, 0.1], f"{section}__keep": {"ema": 0.07}}
    clips = {f"{section}__images": 2048, f"{section}__checkpoint_images": 64}
    if model == MOTION:
        params = motion_workspace.params(
            root, motion__model__stills=2, motion__model__sharpening=2.0, **changes, **clips
        )
        animate.run(params, root)
        motion_workspace.write(root, [])
        clips_stage.run(params, root)
        write_shards(root)
    elif model == VIDEO:
        video_workspace.params(root, **changes, **clips)
        write_shards(root)
        video_workspace.write_clips(root)
        write_awake(root, "pictures")
    else:
        write_params(root, **changes, **{f"{section}__images": 8192})
        write_shards(root)


def _steps(root: Path) -> dict[str, list[int]]:
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(runs) == 1 and runs[0].info.status == "FINISHED"
    return {key: [m.step for m in client.get_metric_history(runs[0].info.run_id, key)] for key in runs[0].data.metrics}
