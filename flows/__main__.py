"""`python -m flows FLOW [--raw DIR]`: run a flow here and now, with no server standing.

A private Prefect server (state in `.contrapposto/prefect`) lives for as long as the command: it starts while Prefect
is being imported, which takes as long as anything else when there is nothing to do. The exit code is the failing
stage's own (2: parameters, 3: data, 1: anything else), 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from flows import server, workspace
from tasks.errors import UserError

FLOWS = ("train-poses", "retrain", "curate", "generate", "evaluate")
WITH_RAW = ("train-poses", "curate")


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flows", description="Run a flow of the pipeline here.")
    flows = parser.add_subparsers(dest="flow", required=True)
    for name in FLOWS:
        command = flows.add_parser(name)
        if name in WITH_RAW:
            command.add_argument("--raw", metavar="DIR", help="folder of pictures, or the word mannequin")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the flow and say in the end where to look; returns the exit code."""
    options = _arguments(argv)
    parameters = {"raw": options.raw} if options.flow in WITH_RAW else {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    root = Path.cwd()
    try:
        workspace.prepare(root, **parameters)
        private = server.start(root / workspace.STATE / "prefect")
        atexit.register(private.stop)  # runs after Prefect's own exit handlers, which send it the last events
        code = _run(options.flow, parameters, private)
    except UserError as error:
        print(f"contrapposto: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("Interrupted; what was finished is kept.", file=sys.stderr)
        return 130
    if code == 0 and options.flow in ("train-poses", "retrain"):
        _show(root)
    return code


def _run(name: str, parameters: dict[str, Any], private: server.Server) -> int:
    """Run a flow against a server that is still starting."""
    quiet = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}  # the flow itself prints what happens
    environment = server.settings(private.home) | {"PREFECT_API_URL": private.api_url} | quiet
    os.environ.clear()
    os.environ.update(environment)
    flow = getattr(importlib.import_module("flows.train_poses"), name.replace("-", "_"))
    private.wait()
    state = flow(**parameters, return_state=True)
    if state.is_completed():
        return 0
    print(f"contrapposto: {state.message}", file=sys.stderr)
    error = state.result(raise_on_failure=False)
    return error.code if isinstance(error, UserError) else 1


def _show(root: Path) -> None:
    """A short table of what came out, and where to look."""
    from rich.console import Console
    from rich.table import Table

    summary = json.loads((root / "reports/summary/summary.json").read_bytes())
    table = Table(show_header=False, box=None, pad_edge=False)
    for label, value in summary["rows"]:
        table.add_row(label, str(value))
    console = Console()
    console.print(table)
    console.print(f"report  {root / 'reports/report.html'}", soft_wrap=True)
    console.print(f"MLflow  {root / 'mlflow.db'} (make ui)", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
