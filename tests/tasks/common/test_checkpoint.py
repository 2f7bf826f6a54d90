"""Checkpoints on a disk that is full."""

import subprocess
import sys
from pathlib import Path

from tests.support.project import PROJECT


def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(tmp_path: Path) -> None:
    """A real one: a file system of a few pages where that is allowed, the limit of file sizes elsewhere."""
    code = (
        "import pathlib, resource, signal, sys, torch\n"
        "from tasks.common import checkpoint\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "checkpoint.save(path / 'checkpoint-1.safetensors', {'a': torch.ones(1000)}, {'n': 1})\n"
        "if sys.argv[2] == 'limit':\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "try: checkpoint.save(path / 'checkpoint-2.safetensors', {'a': torch.ones(100_000)}, {'n': 2})\n"
        "except checkpoint.NotWritten as error: print(error)\n"
        "print(checkpoint.load(path / 'checkpoint-1.safetensors')[1], sorted(p.name for p in path.iterdir()))\n"
    )
    small = tmp_path / "small"
    small.mkdir()
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True).returncode == 0
    )
    try:
        command = [sys.executable, "-c", code, str(small), "full" if mounted else "limit"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=PROJECT)
    finally:
        if mounted:
            subprocess.run(["umount", small], check=True)
    said, left = done.stdout.splitlines()
    why = "the disk is full" if mounted else "File too large"
    assert said.startswith(f"{small}/checkpoint-2.safetensors was not written: ") and why in said, done.stderr
    assert said.endswith("checkpoint-1.safetensors is intact.")
    assert left == "{'n': 1} ['checkpoint-1.safetensors']"
