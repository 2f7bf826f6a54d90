"""Runs a flow in the current folder and waits for it, without a standing server if there is none.

A flow uses the workspace's standing Prefect server if it is up. Otherwise a private one (state in `.contrapposto/prefect`)
runs for as long as the command. It starts while Prefect is being imported, which takes about as long.
"""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from flows import private_server, services, workspace
from tasks import paths
from tasks.common import files
from tasks.common.errors import UserError
from tasks.common.text import one_line

FLOWS = ("train-poses", "train-motion", "train-video", "retrain", "curate", "generate", "evaluate")
WITH_REPORT = ("train-poses", "retrain")  # flows that end with the report


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def run_flow(name: str, module: str = "flows.train_poses", **parameters: Any) -> int:
    """Run the flow of this name in a module, print where its results are, and return the exit code.

    The code is that of the failed stage (2: parameters, 3: data, 1: anything else), 130 after Ctrl-C, and 143 after SIGTERM.
    Raises UserError if the run cannot start.
    """
    private_server.bypass_proxy()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    root = Path.cwd()
    try:
        changed = {key: value for key, value in parameters.items() if key in ("raw", "changes")}
        params = workspace.plan(root, **changed).params  # the flow itself writes, when it holds the workspace
        if services.standing(params, root):
            code = _run(module, name, parameters, services.prefect_environment(params, root), None)
        else:
            private = private_server.start(root / paths.PREFECT)
            atexit.register(private.stop)  # runs after Prefect's own exit handlers, which send it the last events
            environment = private_server.settings(private.home) | {"PREFECT_API_URL": private.api_url}
            code = _run(module, name, parameters, environment, private)
    except KeyboardInterrupt:
        print("Interrupted; finished stages are kept.", file=sys.stderr)
        return 130
    if code == 0 and name in WITH_REPORT:
        _show(root)
    return code


def _run(
    module: str,
    name: str,
    parameters: dict[str, Any],
    environment: dict[str, str],
    private: private_server.Server | None,
) -> int:
    """Run a flow against the standing server, or a private one that is still starting."""
    quiet = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}  # the flows print their own messages
    os.environ.clear()
    os.environ.update(environment | quiet)
    flow = getattr(importlib.import_module(module), name.replace("-", "_"))
    if private is not None:
        private.wait()
    state = flow(**parameters, return_state=True)
    if state.is_completed():
        return 0
    print(f"contrapposto: {one_line(str(state.message))}", file=sys.stderr)
    error = state.result(raise_on_failure=False)
    return error.code if isinstance(error, UserError) else 1


def _show(root: Path) -> None:
    """Print a short table of the results, and where to look."""
    from rich.console import Console
    from rich.table import Table

    from tasks.config.params import load
    from tasks.registry import ui

    summary = files.read_json(root / paths.SUMMARY / "summary.json")
    table = Table(show_header=False, box=None, pad_edge=False)
    for label, value in summary["rows"]:
        table.add_row(label, str(value))
    console = Console(markup=False, emoji=False)  # paths and categories may have brackets and colons
    console.print(table)
    console.print(f"report  {root / paths.REPORT}", soft_wrap=True)
    console.print(f"MLflow  make ui, then {ui.address(load(root / paths.PARAMS), root)}", soft_wrap=True)
