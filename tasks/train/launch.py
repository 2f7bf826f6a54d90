"""Training in several processes, on one machine or several: torchrun as a child that ends when this process does.

torchrun restarts nothing (`--max-restarts 0`): training resumes from its checkpoint when the stage is run again.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed

from tasks.common import files, machine, process
from tasks.common.errors import UserError, in_words
from tasks.config.optimisation import Optimisation

PER_RANK = 16  # images: with fewer a process waits for the others more than it computes
SHORT = 10_000  # images

GRACE_SECONDS = 20.0  # for the ranks to save their state after SIGTERM
REPORTS = "CONTRAPPOSTO_RANK_REPORTS"  # environment variable of a rank: the folder for what has stopped it
STOPPED = 75  # exit code: asked to stop, the state was saved, run again to resume (sysexits.h: EX_TEMPFAIL)


@dataclass(frozen=True)
class Node:
    """One of several machines that train together: number `rank` of `count`; all meet at `address`, HOST:PORT of number 0."""

    count: int
    rank: int
    address: str

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise UserError(f"The rendezvous has the form HOST:PORT, and {self.address!r} has not.")
        if not 0 <= self.rank < self.count:
            raise UserError(
                f"The nodes of {self.count} are numbered from 0 to {self.count - 1}: there is no {self.rank}."
            )


def ranks(config: Optimisation) -> int:
    """How many processes train. `auto` takes as many as there are GPUs, or cores if there is none, that divide every batch.

    On processors each of them gets at least PER_RANK images of a step, and a short training has only one: starting more would
    take longer than it saves.
    """
    if config.ranks != "auto":
        return config.ranks
    batch = math.gcd(*config.batches())
    gpus = torch.cuda.device_count()
    if gpus == 0 and config.images < SHORT:
        return 1
    most = gpus or min(machine.cores(), max(1, batch // PER_RANK))
    return max(number for number in range(1, most + 1) if batch % number == 0)


def ranks_per_node(config: Optimisation, nodes: int) -> int:
    """How many processes train on each of several machines. `auto` takes one for each GPU of this one, or else for each core.

    Raises UserError if they cannot share the work equally.
    """
    if config.ranks == "auto":
        each = torch.cuda.device_count() or machine.cores()
    elif config.ranks % nodes:
        raise UserError(f"{config.ranks} ranks cannot be divided among {nodes} nodes: change `ranks`.")
    else:
        each = config.ranks // nodes
    batch = math.gcd(*config.batches())
    if batch % (each * nodes):
        raise UserError(
            f"Batches of {batch} images cannot be divided among {each * nodes} ranks: change `ranks` or `batch`."
        )
    return each


def command(arguments: Sequence[str], ranks: int, node: Node | None = None) -> list[str]:
    """The command that runs `python -m ARGUMENTS` in `ranks` processes of this machine: torchrun, without restarts.

    The ranks of node 0 come first, whenever each node starts: the first rank reads and writes the checkpoints.
    """
    place = ["--standalone"]
    if node is not None:
        host, _, port = node.address.rpartition(":")
        place = [
            "--nnodes",
            str(node.count),
            "--node-rank",
            str(node.rank),
            "--master-addr",
            host,
            "--master-port",
            port,
        ]
    start = [sys.executable, "-m", "tasks.train.torchrun", *place, "--max-restarts", "0"]
    return [*start, "--nproc-per-node", str(ranks), "-m", *arguments]


def under_torchrun() -> bool:
    """Whether this process is one of torchrun's ranks."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def join() -> torch.device:
    """The device of this process. A torchrun rank joins the process group and gets a GPU of its own, if there are enough.

    Ranks that must share a GPU (more of them than there are GPUs) communicate through the CPU: NCCL refuses that.
    """
    gpus = torch.cuda.device_count()
    if not under_torchrun():
        return torch.device("cuda", 0) if gpus else torch.device("cpu")
    if not gpus:
        distributed.init_process_group("gloo")
        return torch.device("cpu")
    local_rank, local_world = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    device = torch.device("cuda", local_rank % gpus)
    torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if local_world <= gpus else "gloo")
    return device


@contextmanager
def device() -> Iterator[torch.device]:
    """The device of this process, for computations that have the same bits in every run; a rank leaves its group at the end."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA's products are not deterministic
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # no code reads such memory
    try:
        yield join()
    except (UserError, OSError) as error:
        _report(error)
        raise
    except RuntimeError as error:
        if not _lost(error):
            raise
        _report(UserError("A process on another machine has ended. Run the training again to resume.", STOPPED))
        raise
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _lost(error: RuntimeError) -> bool:
    """Whether this is what a rank sees of the end of another, on another machine."""
    several = int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1  # torchrun's name for the number of machines
    return several and (isinstance(error, distributed.DistError) or "gloo" in str(error))


def _report(error: UserError | OSError) -> None:
    """Leave what stops this rank to the process that started torchrun, and end.

    torchrun tells only that a rank has failed. Does nothing outside torchrun, and for an error that is a fault of the program.
    """
    sentence = str(error) if isinstance(error, UserError) else in_words(error)
    folder = os.environ.get(REPORTS)
    if not under_torchrun() or folder is None or sentence is None:
        return
    code = error.code if isinstance(error, UserError) else 1
    files.write_json(Path(folder) / f"{os.environ['RANK']}.json", {"sentence": sentence, "code": code})
    raise SystemExit(code) from error


def torchrun(arguments: Sequence[str], ranks: int, cwd: Path, node: Node | None = None) -> None:
    """Run `python -m ARGUMENTS` in `ranks` processes of this machine, one of several if `node` is given, and wait for them.

    When this function is left by an exception (SystemExit on SIGTERM, KeyboardInterrupt), and even when this process is killed,
    all ranks get SIGTERM, save their state and end; what is left after 20 s is killed. Raises UserError if a rank fails, with
    the sentence and the exit code of its own if it has one. On several machines the exit code is STOPPED if the ranks of
    another were stopped, or if a rank was killed.
    """
    threads = max(1, machine.cores() // ranks)
    with tempfile.TemporaryDirectory() as reports:
        environment = {
            **os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)), REPORTS: reports,
        }  # fmt: skip
        guard = process.start(command(arguments, ranks, node), cwd, environment, output=None, grace=GRACE_SECONDS)
        try:
            code = guard.wait()
        except SystemExit as error:
            killed = process.stop(guard) == 128 + signal.SIGKILL
            raise SystemExit(error.code if killed else STOPPED) from None
        finally:
            process.stop(guard)
        for report in sorted(Path(reports).glob("*.json")):
            told = files.read_json(report)
            if told["code"] != STOPPED or code == STOPPED:  # a fault matters more than what other ranks see of it
                raise UserError(told["sentence"], told["code"])
    if node is not None and code == STOPPED:
        raise SystemExit(STOPPED)
    if node is not None and code > 128:
        raise UserError(f"A rank was ended by signal {code - 128}; run the training again to resume.", STOPPED)
    if code:
        raise UserError(f"Training in {ranks} processes stopped with exit code {code}; run it again to resume.", code=1)
