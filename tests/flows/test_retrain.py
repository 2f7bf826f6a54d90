"""A retraining starts from the champion's weights or anew, as `retrain.warm_start` says, and the lineage records it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from flows.private_server import Server
from tasks import paths
from tasks.common import files
from tasks.config.params import load, set_value
from tasks.dataset.shards import ShardDataset
from tasks.registry import lineage, model_registry
from tasks.registry.tracking import Store
from tests.support.dvc_project import dvc
from tests.support.project import PROJECT
from tests.support.workspaces import write_params, write_shards

pytestmark = pytest.mark.slow

GRAPH = """\
stages:
  shard:
    cmd: mkdir -p data && cp -r delivered data/shards
    deps: [delivered]
    outs: [data/shards]
  train_poses:
    cmd: python -m tasks train poses
    deps: [data/shards]
    params: [poses]
    outs: [artifacts/poses]
  promote:
    cmd: python promote.py
    deps: [artifacts/poses]
    outs: [reports/promote]
  report:
    cmd: >-
      mkdir -p reports/summary; echo '{"metrics": {}, "rows": []}' > reports/summary/summary.json
    deps: [reports/promote]
    outs: [reports/summary]
"""
PROMOTE = """\
from pathlib import Path
from tasks import paths
from tasks.common import files
from tasks.config.params import load
from tasks.registry import model_registry
from tasks.registry.tracking import Store

root = Path.cwd()
store = Store(load(root / "params.yaml").tracking, root)
number = store.register("poses", paths.model_folder(root, "poses"), paths.model_sha256(root, "poses"), "")
model_registry.make_champions(store, {"poses": number})
files.write_json(root / "reports/promote/promote.json", {"promote": True, "reasons": []})
"""


def _deliver(root: Path, people: int) -> None:
    """Replace the delivered shards by others."""
    shutil.rmtree(root / "delivered", ignore_errors=True)
    write_shards(root / "new", train=people)
    (root / "new/data/shards").rename(root / "delivered")
    shutil.rmtree(root / "new")


@pytest.fixture
def trained(tmp_path: Path, prefect_server: Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a champion and a new delivery."""
    from flows.train_poses import train_poses

    subprocess.run(["git", "init", "--quiet", "."], cwd=tmp_path, check=True)
    dvc(tmp_path, "init", "--quiet")
    write_params(tmp_path, poses__checkpoint_images=1024)
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    (tmp_path / "promote.py").write_text(PROMOTE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    _deliver(tmp_path, 60)
    assert train_poses(return_state=True).is_completed()
    _deliver(tmp_path, 80)
    return tmp_path


def _keep(root: Path) -> str:
    """Copy the current model to `kept/`; returns its digest."""
    sha256 = paths.model_sha256(root, "poses")
    shutil.copytree(paths.model_folder(root, "poses"), root / "kept" / sha256)
    return sha256


def test_a_retraining_starts_from_the_champion_or_anew(trained: Path) -> None:
    from flows.train_poses import retrain

    root = trained
    champion = _keep(root)
    first = set(ShardDataset(root / "data/shards", "train").keys)
    state: Any = retrain(return_state=True)
    assert state.is_completed() and state.name != "Skipped", state
    assert load(root / "params.yaml").poses.start == champion
    assert files.read_json(root / "artifacts/poses/trained_on.json")["start"] == champion
    warm = _keep(root)
    store = Store(load(root / "params.yaml").tracking, root)
    assert [str(model_registry.version(store, "poses", alias).version) for alias in ("champion", "previous")] == [
        "2",
        "1",
    ]
    run = store.client.get_run(model_registry.version(store, "poses", "champion").run_id)
    assert run.data.params["poses.start"] == champion

    # trained anew on the same data; the champion, which is the warm-started model now, is not used
    set_value(root / "params.yaml", "retrain.warm_start", False)
    _deliver(root, 81)
    assert retrain(return_state=True).is_completed()
    assert load(root / "params.yaml").poses.start is None
    assert files.read_json(root / "artifacts/poses/trained_on.json")["start"] is None
    cold = _keep(root)

    early, late, anew = (
        files.read_json(root / "kept" / one / "training.json")["loss"] for one in (champion, warm, cold)
    )
    assert late[0][1] < 0.97 * anew[0][1] and late[0][1] < 1.05 * early[-1][1]  # it started where the champion was
    assert late[-1][1] < 0.97 * early[-1][1]  # and further
    assert anew[0][1] > 0.95 * early[0][1]

    known, silent = lineage.trainings_on(load(root / "params.yaml"), root, first)
    assert silent == 0
    found = {one.name.partition(" of contrapposto")[0].rpartition("version ")[2]: one for one in known}
    assert {number: one.warm_started for number, one in found.items()} == {"1": False, "2": True, "3": False}
    assert json.loads((root / "reports/promote/promote.json").read_text())["promote"]
