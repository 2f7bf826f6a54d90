"""`python -m flows FLOW [--raw DIR]`: run a flow here and now; `python -m flows up|down|status`: the standing services.

A flow uses the standing Prefect server if there is one. Otherwise a private one (state in `.contrapposto/prefect`) lives
for as long as the command: it starts while Prefect is being imported, which takes as long as anything else when there
is nothing to do. The exit code is the failing stage's own (2: parameters, 3: data, 1: anything else), 130 after Ctrl-C,
143 after SIGTERM.
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

from flows import parts, private_server, services, workspace
from tasks import paths
from tasks.common.errors import UserError
from tasks.config.params import load

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
    flows.add_parser("parts", help="take the parts that are there now into params.yaml, and name them")
    flows.add_parser("up", help="start Prefect's server, MLflow's, a worker and the watch on the data")
    flows.add_parser("down", help="stop them")
    flows.add_parser("status", help="how they are")
    foreground = flows.add_parser("service", help="be one of them, for a service manager such as systemd")
    foreground.add_argument("name")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the flow and say in the end where to look; returns the exit code."""
    options = _arguments(argv)
    private_server.past_the_proxy()
    if options.flow not in FLOWS:
        return _other(options)
    parameters = {"raw": options.raw} if options.flow in WITH_RAW else {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    root = Path.cwd()
    try:
        params = workspace.prepare(root, **parameters)
        if services.standing(params, root):
            code = _run(options.flow, parameters, services.prefect_environment(params, root), None)
        else:
            private = private_server.start(root / paths.PREFECT)
            atexit.register(private.stop)  # runs after Prefect's own exit handlers, which send it the last events
            environment = private_server.settings(private.home) | {"PREFECT_API_URL": private.api_url}
            code = _run(options.flow, parameters, environment, private)
    except UserError as error:
        print(f"contrapposto: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("Interrupted; what was finished is kept.", file=sys.stderr)
        return 130
    if code == 0 and options.flow in ("train-poses", "retrain"):
        _show(root)
    return code


def _other(options: argparse.Namespace) -> int:
    """The commands that are no flow: about parts and the standing services; `status` ends with 1 unless all are up."""
    root = Path.cwd()
    try:
        if options.flow == "down":
            services.down(root)
            return 0
        params = load(root / paths.PARAMS)
        if options.flow == "parts":
            for name, folder in parts.update(root, params).raw.parts.items():
                print(f"{name}  {folder}")
            return 0
        if options.flow == "service":
            services.foreground(params, root, options.name)
        if options.flow == "status":
            found = services.status(params, root)
            services.show(found, root)
            return 0 if all(service.state == "up" for service in found) else 1
        services.up(params, root)
    except UserError as error:
        print(f"contrapposto: {error}", file=sys.stderr)
        return error.code
    return 0


def _run(
    name: str, parameters: dict[str, Any], environment: dict[str, str], private: private_server.Server | None
) -> int:
    """Run a flow against the standing server, or a private one that is still starting."""
    quiet = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}  # the flow itself prints what happens
    os.environ.clear()
    os.environ.update(environment | quiet)
    flow = getattr(importlib.import_module("flows.train_poses"), name.replace("-", "_"))
    if private is not None:
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

    summary = json.loads((root / paths.SUMMARY / "summary.json").read_bytes())
    table = Table(show_header=False, box=None, pad_edge=False)
    for label, value in summary["rows"]:
        table.add_row(label, str(value))
    console = Console()
    console.print(table)
    console.print(f"report  {root / paths.REPORT}", soft_wrap=True)
    console.print(f"MLflow  {root / 'mlflow.db'} (make ui)", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
