"""torchrun as a child process group that ends when its parent does.

torchrun restarts nothing here (`--max-restarts 0`): training resumes from its checkpoint when the stage is run again,
which is the same result with one mechanism less.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from torch import distributed

from tasks.common import machine
from tasks.common.errors import UserError

PARENT = "CONTRAPPOSTO_LAUNCHER"  # "pid:start time" of the process that called torchrun
GRACE_SECONDS = 20.0
STOPPED = 75  # exit code: asked to stop, the state was saved, run again to go on (sysexits.h: EX_TEMPFAIL)


def under_torchrun() -> bool:
    """Whether this process is one of torchrun's ranks."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def join() -> torch.device:
    """The device of this process; under torchrun it is a rank, with a GPU of its own, and meets the others.

    Ranks that must share a GPU (more of them than there are GPUs) talk through the CPU: NCCL refuses that.
    """
    gpus = torch.cuda.device_count()
    if not under_torchrun():
        return torch.device("cuda", 0) if gpus else torch.device("cpu")
    if not gpus:
        distributed.init_process_group("gloo")
        return torch.device("cpu")
    local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    device = torch.device("cuda", local % gpus)
    torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if here <= gpus else "gloo")
    return device


def _identity(process: psutil.Process) -> str:
    return f"{process.pid}:{process.create_time():.2f}"


def orphaned() -> bool:
    """Whether the process that launched this rank is gone (kill -9 on it leaves torchrun and the ranks alive)."""
    launcher = os.environ.get(PARENT)
    if launcher is None:
        return False
    try:
        return _identity(psutil.Process(int(launcher.partition(":")[0]))) != launcher
    except psutil.NoSuchProcess:
        return True


def torchrun(arguments: Sequence[str], ranks: int, cwd: Path) -> None:
    """Run `python -m ARGUMENTS` in `ranks` processes of this machine and wait for them.

    On any exception, SystemExit and KeyboardInterrupt among them, the whole group is asked to stop, given 20 s, then killed.
    Raises UserError if the ranks fail.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "0"]
    command += ["--nproc-per-node", str(ranks), "-m", *arguments]
    threads = max(1, machine.cores() // ranks)
    environment = {
        **os.environ,
        PARENT: _identity(psutil.Process()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }
    child = subprocess.Popen(command, cwd=cwd, env=environment, start_new_session=True)

    try:
        code = child.wait()
    except SystemExit as error:  # SIGTERM: the ranks save and end
        raise SystemExit(STOPPED if _end(child) else error.code) from None
    finally:
        if child.poll() is None:
            _end(child)
    if code:
        raise UserError(f"Training in {ranks} processes stopped with exit code {code}; run it again to resume.", code=1)


def _end(child: subprocess.Popen[bytes]) -> bool:
    """TERM the child's group, wait, KILL what is left. Returns whether all ended by themselves."""
    os.killpg(child.pid, signal.SIGTERM)
    try:
        child.wait(GRACE_SECONDS)
        ended = True
    except subprocess.TimeoutExpired:
        ended = False
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()
    return ended
