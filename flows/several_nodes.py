"""Training on several machines: this machine's share of it, and files with which Slurm or SkyPilot start all of them.

Exit code 75 of a training means that it was interrupted and its state is saved: run it again. The Slurm script then puts itself
back into the queue, and SkyPilot starts the job anew, on other machines if it must.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from flows import workspace
from tasks import paths
from tasks.__main__ import in_workspace
from tasks.common.errors import UserError
from tasks.config.params import Params
from tasks.train import launch, stage

RESTARTS = 20  # attempts, so that a job that always ends with 75 does not run for ever
NOTICE = 120  # seconds before its time limit at which a Slurm job saves its state
PORT = 29500

SLURM = """\
#!/bin/bash
#SBATCH --job-name=contrapposto-{model}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={ranks}
#SBATCH --time={hours}:00:00
#SBATCH --signal=TERM@{notice}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=train-{model}-%j.log

# Trains `{model}` on {nodes} nodes. Submit it in the workspace, with the project's environment active: sbatch FILE
# Every node has to see the workspace. Add the options that your cluster asks for, such as --partition and --account.

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
export head port

srun --kill-on-bad-exit=1 bash -c '
    exec contrapposto train {model} --nodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --rendezvous "$head:$port"
'
code=$?

# Exit code {stopped}: the training was interrupted, and its state is saved.
if [ "$code" -eq {stopped} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""

SKYPILOT_SETUP = """\
make setup
.venv/bin/uv pip install --python .venv/bin/python '.[s3]'
"""

SKYPILOT_RUN = """\
. .venv/bin/activate
dvc pull {inputs}
mkdir -p {state} {kept}/training
rm -rf {state}/training
ln -s {kept}/training {state}/training
contrapposto train {model} --nodes "$SKYPILOT_NUM_NODES" --node-rank "$SKYPILOT_NODE_RANK" \\
  --rendezvous "$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{port}" || exit $?
if [ "$SKYPILOT_NODE_RANK" -eq 0 ]; then cp -r artifacts {kept}/; fi
"""
KEPT = "/contrapposto-kept"  # where the bucket is mounted
INPUTS = {"pictures": "data/shards artifacts/codec", "motion": "data/shards data/clips"}  # of the others: data/shards


def train(model: str, nodes: int, node_rank: int, rendezvous: str, checkpoint: Path | None, show: bool) -> int:
    """This machine's share of a training on several, or with `show` the command line of it; returns the exit code.

    Only node 0 locks the workspace, because all may work in the same one on a shared disk.
    """
    given = None if checkpoint is None else str(checkpoint)

    def work(params: Params, root: Path) -> None:
        node = launch.Node(nodes, node_rank, rendezvous)
        if show:
            print(stage.node_command(params, root, node, model, given))
            return
        with workspace.alone(root) if node_rank == 0 else nullcontext():
            stage.run_node(params, root, node, model, given)

    return in_workspace(work)


def launch_file(kind: Literal["slurm", "skypilot"], model: str, nodes: int, hours: int, gpu: str, bucket: str) -> int:
    """Print a Slurm batch script or a SkyPilot job; returns the exit code. `ranks` of the model must be a number."""

    def work(params: Params, root: Path) -> None:
        config = stage.config_of(params, root, model)
        if config.ranks == "auto":
            raise UserError(
                f"{model}.ranks is auto, and this machine does not know the GPUs of others: set it to the GPUs of all "
                "nodes together."
            )
        ranks = launch.ranks_per_node(config, nodes)
        if kind == "slurm":
            print(slurm(model, nodes, ranks, hours), end="")
        else:
            print(_as_yaml(skypilot(model, nodes, ranks, gpu, bucket)), end="")

    return in_workspace(work)


def slurm(model: str, nodes: int, ranks: int, hours: int) -> str:
    """A batch script for `sbatch`: one task on each node starts `ranks` processes, one for each GPU."""
    return SLURM.format(
        model=model, nodes=nodes, ranks=ranks, hours=hours, notice=NOTICE, stopped=launch.STOPPED, restarts=RESTARTS
    )


def skypilot(model: str, nodes: int, ranks: int, gpu: str, bucket: str) -> dict[str, Any]:
    """A job for `sky jobs launch`, on interruptible machines, whose checkpoints and models are kept in a bucket."""
    inputs = INPUTS.get(model, "data/shards")
    run = SKYPILOT_RUN.format(model=model, inputs=inputs, state=paths.STATE.as_posix(), kept=KEPT, port=PORT)
    return {
        "name": f"contrapposto-{model}",
        "num_nodes": nodes,
        "workdir": ".",
        "resources": {
            "accelerators": f"{gpu}:{ranks}",
            "use_spot": True,
            "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [launch.STOPPED]},
        },
        "file_mounts": {KEPT: {"name": bucket, "mode": "MOUNT_CACHED"}},
        "setup": LiteralScalarString(SKYPILOT_SETUP),
        "run": LiteralScalarString(run),
    }


def _as_yaml(value: dict[str, Any]) -> str:
    from io import StringIO

    stream = StringIO()
    YAML().dump(value, stream)
    return stream.getvalue()
