"""A small DVC project with the shape of the real graph, and stages that take no time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

# The shape of the real graph with commands that take no time. Every stage appends its name to runs.log.
GRAPH = """\
stages:
  mannequin:
    cmd: echo mannequin >> runs.log; mkdir -p data/raw/mannequin; echo ${mannequin.seed} > data/raw/mannequin/a
    params: [mannequin]
    outs: [{data/raw/mannequin: {cache: false}}]
  extract:
    foreach: ${raw.parts}
    do:
      cmd: >-
        echo extract@${key} >> runs.log; env > stage.env; mkdir -p data/poses/${key}; cat ${item}/* > data/poses/${key}/poses
      deps: ["${item}"]
      params: [extract.min_side]
      outs: ["data/poses/${key}"]
  curate:
    cmd: echo curate >> runs.log; cat data/poses/*/* > dataset
    deps: [data/poses]
    params: [curate.seed]
    outs: [dataset]
  train_poses:
    cmd: echo train_poses >> runs.log; cat dataset > weights; echo ${poses.seed} >> weights
    deps: [dataset]
    params: [poses.seed]
    outs: [weights]
  sample_poses:
    cmd: echo sample_poses >> runs.log; cp weights samples
    deps: [weights]
    outs: [samples]
  report:
    cmd: >-
      echo report >> runs.log; mkdir -p reports/summary; cp samples reports/report.html;
      echo '{"metrics": {"persons": 3.0}, "rows": [["persons kept", 3]]}' > reports/summary/summary.json
    deps: [dataset, samples]
    outs: [reports/summary, reports/report.html]
  promote:
    cmd: echo promote >> runs.log; cp weights promoted; mkdir -p reports/promote; \
echo '{"promote":true,"reasons":[]}' > reports/promote/promote.json
    deps: [weights]
    outs: [promoted]
"""
STAGES = ["mannequin", "extract@mannequin", "curate", "train_poses", "sample_poses", "report", "promote"]


def dvc(root: Path, *arguments: str) -> str:
    """Run a DVC command in a workspace; returns its output."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True, text=True).stdout


def ran(root: Path) -> list[str]:
    """The stages that ran since the last call."""
    log = root / "runs.log"
    stages = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return stages


def set_command(root: Path, stage: str, command: str) -> None:
    """Replace the command of a stage."""
    lines = (root / "dvc.yaml").read_text().splitlines()
    lines[lines.index(f"  {stage}:") + 1] = f"    cmd: {json.dumps(command)}"
    (root / "dvc.yaml").write_text("\n".join(lines))


def rename_stage(root: Path, stage: str, name: str) -> None:
    """Rename a stage, which makes it new to DVC."""
    graph = root / "dvc.yaml"
    graph.write_text(graph.read_text().replace(f"\n  {stage}:", f"\n  {name}:"))
