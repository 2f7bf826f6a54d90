"""The command lines and launch files of trainings on several machines."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows import several_nodes
from flows.cli import main
from tasks.common.errors import UserError
from tasks.config.params import load
from tasks.train import launch
from tests.support.workspaces import write_params

# Of `man sbatch`, those that a script may need here.
SBATCH = {
    "account", "cpus-per-task", "exclusive", "gpus-per-node", "job-name", "mem", "nodes", "ntasks-per-node", "open-mode",
    "output", "partition", "requeue", "signal", "time",
}  # fmt: skip
# SkyPilot's schema of a task (get_task_schema), of resources, of job_recovery and of a mounted bucket.
TASK = {
    "name", "workdir", "num_nodes", "file_mounts", "volumes", "resources", "envs", "secrets", "service", "setup", "run",
    "config",
}  # fmt: skip
RESOURCES = {
    "accelerators", "cpus", "disk_size", "image_id", "infra", "instance_type", "job_recovery", "memory", "network_tier",
    "use_spot",
}  # fmt: skip
RECOVERY = {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"}
BUCKET = {"name", "source", "store", "persistent", "mode", "config"}
MODES = {"MOUNT", "COPY", "MOUNT_CACHED"}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_params(tmp_path, pictures__ranks=16, pictures__batch=240)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_of_each_node_is_printed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    for rank in ("0", "1"):
        arguments = ["train", "pictures", "--nodes", "2", "--node-rank", rank, "--rendezvous", "first:29500", "--print"]
        assert main(arguments) == 0
        lines.append(shlex.split(capsys.readouterr().out))
    expected = (
        "python -m tasks.train.torchrun --nnodes 2 --node-rank 0 --master-addr first --master-port 29500 --max-restarts 0 "
        "--nproc-per-node 8 -m tasks train pictures"
    ).split()
    assert lines[0] == expected
    assert lines[1] == [*expected[:6], "1", *expected[7:]]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--nodes", "2"],
        ["--nodes", "2", "--rendezvous", "first"],
        ["--nodes", "2", "--rendezvous", "first:x"],
        ["--nodes", "2", "--node-rank", "2", "--rendezvous", "first:1"],
        ["--nodes", "3", "--rendezvous", "first:1"],  # 16 ranks; 15 would divide the batch
        ["--nodes", "2", "--rendezvous", "first:1", "--folds", "3"],
    ],
)
def test_what_cannot_work_is_refused(wrong: list[str], root: Path) -> None:
    assert main(["train", "pictures", "--print", *wrong]) == 2


def test_auto_takes_what_each_node_has(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(root / "params.yaml").pictures.model_copy(update={"ranks": "auto", "batch": 64})
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert launch.ranks_per_node(config, 4) == 8
    with pytest.raises(UserError):
        launch.ranks_per_node(config, 16)  # 128 ranks for 64 images


def test_a_slurm_script_is_valid(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch-file", "slurm", "pictures", "--nodes", "2", "--hours", "5"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "job").write_text(text)
    subprocess.run(["bash", "-n", str(tmp_path / "job")], check=True)
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE))
    assert set(options) <= SBATCH and len(options) == text.count("#SBATCH")
    assert (options["nodes"], options["gpus-per-node"], options["ntasks-per-node"]) == ("2", "8", "1")
    assert (options["time"], options["signal"]) == ("5:00:00", "TERM@120") and "requeue" in options


STAND_INS = """\
scontrol() {{ if [ "$1" = show ]; then printf 'n1\\nn2\\n'; else echo "REQUEUED $2"; fi; }}
srun() {{ echo "srun $head:$port"; return {code}; }}
"""


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"), [(0, 0, False), (75, 0, True), (75, several_nodes.RESTARTS, False), (1, 0, False)]
)
def test_an_interrupted_slurm_job_is_requeued(code: int, restarts: int, requeued: bool) -> None:
    script = STAND_INS.format(code=code) + several_nodes.slurm("poses", 2, 4, 1)
    environment = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_RESTART_COUNT": str(restarts)}
    done = subprocess.run(["/bin/bash", "-uc", script], env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "srun n1:20007" in done.stdout and ("REQUEUED 7" in done.stdout) == requeued


def test_a_skypilot_job_has_keys_of_the_schema(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch-file", "skypilot", "pictures", "--nodes", "2", "--gpu", "A100", "--bucket", "mine"]) == 0
    job = YAML(typ="safe", pure=True).load(capsys.readouterr().out)
    assert set(job) <= TASK and set(job["resources"]) <= RESOURCES
    assert set(job["resources"]["job_recovery"]) <= RECOVERY
    assert job["resources"]["job_recovery"]["recover_on_exit_codes"] == [launch.STOPPED]
    assert (job["num_nodes"], job["resources"]["accelerators"]) == (2, "A100:8")
    (bucket,) = job["file_mounts"].values()
    assert set(bucket) <= BUCKET and bucket["mode"] in MODES and bucket["name"] == "mine"
    for script in (job["setup"], job["run"]):
        subprocess.run(["bash", "-nc", script], check=True)
    assert '--nodes "$SKYPILOT_NUM_NODES"' in job["run"] and "dvc pull data/shards artifacts/codec" in job["run"]


def test_a_launch_file_needs_a_number_of_ranks(root: Path) -> None:
    write_params(root, pictures__ranks="auto")
    assert main(["launch-file", "slurm", "pictures", "--nodes", "2"]) == 2
