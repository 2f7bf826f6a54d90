"""A child process that runs one task after the other, so that Python and its libraries start once for many slices.

The child, `python -m flows.task_process REQUESTS`, reads a line of JSON for each task from the named pipe REQUESTS: the
workspace, the task and its arguments. It ends each with a line that begins with `ENDED`. It runs under a guard
(`tasks.common.process`), and so it ends with its owner, even if that is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tasks.common import process

ENDED = "contrapposto-task-ended "


class TaskProcess:
    """Runs tasks in a child process, which starts with the first task, and again if it has died. A context manager."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._guard: subprocess.Popen[str] | None = None
        self._folder, self._requests = "", -1

    def run(self, task: str, *arguments: str, root: Path | None = None) -> None:
        """Run `python -m tasks TASK ARGUMENT ...` in the workspace `root`, by default that of this object.

        Output and errors are those of `dvc_graph.run_task`.
        """
        from flows import dvc_graph  # not above: the child does without DVC

        if self._guard is None or self._guard.poll() is not None:
            self.close()
            self._start()
        guard = self._guard
        assert guard is not None and guard.stdout is not None
        os.write(self._requests, (json.dumps([str(root or self._root), task, *arguments]) + "\n").encode())
        errors: list[str] = []
        code: int | None = None
        try:
            while code is None and (line := guard.stdout.readline()):
                if line.startswith(ENDED):
                    code = int(line.removeprefix(ENDED))
                else:
                    dvc_graph.relay(line, errors)
        except BaseException:
            self.close()
            raise
        dvc_graph.check(task, guard.wait() if code is None else code, errors)

    def _start(self) -> None:
        from flows import dvc_graph

        self._folder = tempfile.mkdtemp(prefix="tasks-")
        pipe = Path(self._folder) / "requests"
        os.mkfifo(pipe)
        self._requests = os.open(pipe, os.O_RDWR)  # opening for writing alone would wait for the reader
        self._guard = dvc_graph.start_module(self._root, ["flows.task_process", str(pipe)])

    def close(self) -> None:
        """Stop the child."""
        if self._guard is not None:
            process.stop(self._guard)
            os.close(self._requests)
            shutil.rmtree(self._folder)
            self._guard = None

    def __enter__(self) -> TaskProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def main(arguments: Sequence[str]) -> int:
    """Run the tasks that are requested; returns the exit code."""
    from tasks.__main__ import call

    with open(arguments[0], encoding="utf-8") as requests:
        for line in requests:
            root, task, *given = json.loads(line)
            code = call(task, given, Path(root))
            sys.stderr.flush()
            print(f"\n{ENDED}{code}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
