"""Kill a training with SIGKILL at random moments until it has had enough, and let it finish: `kills.py FOLDER MODEL KILLS`.

A process of its own that imports everything once and forks each attempt. Two workspaces: FOLDER/whole is never disturbed,
FOLDER/killed is. Prints at which image each kill found the training.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import mlflow  # noqa: F401  (imported once for all attempts)
import torch

from tasks.common import log
from tasks.config.params import load
from tasks.train import stage as train


def attempt(root: Path, model: str) -> int:
    """Start the training in a child; returns its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with (root / "log.txt").open("a", buffering=1) as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                log.to_stdout()
                train.run(load(root / "params.yaml"), root, model)
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    return child


def ended(child: int) -> int | None:
    """The exit status of a child, None if it still runs."""
    found, status = os.waitpid(child, os.WNOHANG)
    return status if found else None


def images(root: Path, model: str) -> int:
    """Images seen at the last checkpoint."""
    names = sorted(path.name for path in root.glob(f".contrapposto/training/{model}/*/checkpoint-*.safetensors"))
    return int(names[-1].partition("-")[2].partition(".")[0]) if names else 0


def training(child: int, root: Path, model: str, known: int) -> None:
    """Wait until the child steps: its progress bar appears in the log after the `known` bytes of earlier attempts."""
    while f"train {model}:".encode() not in (root / "log.txt").read_bytes()[known:]:
        assert ended(child) is None, (root / "log.txt").read_text()
        time.sleep(0.002)


def main(folder: Path, model: str, kills: int) -> None:
    """Train both; the second is killed all along its way, each time at a random moment after one more checkpoint or two."""
    torch.set_num_threads(1)
    for name in ("whole", "killed"):
        (folder / name / "log.txt").touch()
    assert os.waitpid(attempt(folder / "whole", model), 0)[1] == 0, (folder / "whole/log.txt").read_text()
    root, moments, total = folder / "killed", random.Random(0), images(folder / "whole", model)
    for kill in range(1, kills + 1):
        known, before = (root / "log.txt").stat().st_size, images(root, model)
        child = attempt(root, model)
        training(child, root, model, known)
        begun, reached = time.perf_counter(), before
        while reached < 0.9 * total * kill / kills:
            assert ended(child) is None, (root / "log.txt").read_text()
            time.sleep(0.001)
            reached = images(root, model)
        pace = (time.perf_counter() - begun) / max(reached - before, 256)
        time.sleep(moments.uniform(0, 256 * pace))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print(
            f"{model}: begun from image {before}, killed after the checkpoint at image {images(root, model)}",
            flush=True,
        )
    assert os.waitpid(attempt(root, model), 0)[1] == 0, (root / "log.txt").read_text()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
