"""MLflow's page: the command that serves it, and the address that shows the runs.

`python -m tasks.registry.ui` serves it on 127.0.0.1 until interrupted (`make ui`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tasks import paths
from tasks.common import command, ports
from tasks.common.environment import without_redirections
from tasks.common.errors import UserError
from tasks.config.params import Params, Tracking, load
from tasks.registry import store_location
from tasks.registry.tracking import Store


def server_command(tracking: Tracking, root: Path, port: int) -> list[str]:
    """The command that serves the store and its page on 127.0.0.1."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store_location.uri(tracking, root)]
    command += ["--default-artifact-root", store_location.artifacts(root)]
    return [*command, "--host", "127.0.0.1", "--port", str(port)]


def address(params: Params, root: Path) -> str:
    """The address of the table of runs. MLflow's own start page shows its view for GenAI, which lists no runs.

    If there is no experiment yet, this opens the store, which creates it.
    """
    path = store_location.database(params.tracking, root)
    known = None if path is None else store_location.experiment_id(path, params.tracking.experiment)
    experiment = known or Store(params.tracking, root).experiment
    local = f"http://127.0.0.1:{params.services.mlflow_port}"
    server = params.tracking.store.rstrip("/") if store_location.is_server(params.tracking) else local
    return f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning"


def prepare(params: Params, root: Path) -> None:
    """Make the database of the store if there is none yet: MLflow's server, stopped while it does so, leaves a broken one."""
    path = store_location.database(params.tracking, root)
    if path is not None and not path.exists():
        Store(params.tracking, root)


def serve(params: Params, root: Path) -> int:
    """Print the address and serve the page until interrupted; returns the exit code of the server.

    Raises UserError if the port is taken.
    """
    port = params.services.mlflow_port
    served_elsewhere = store_location.is_server(params.tracking)
    if not served_elsewhere and not ports.is_free(port):
        raise UserError(
            f"Port {port} is taken. If `make up` runs, its MLflow shows the runs at {address(params, root)}; otherwise choose "
            "another services.mlflow_port in params.yaml."
        )
    Store(params.tracking, root)  # checks the store, and corrects it if the workspace was moved
    print(f"MLflow: {address(params, root)}", flush=True)
    if served_elsewhere:
        return 0
    command = server_command(params.tracking, root, port)
    try:
        return subprocess.call(command, cwd=root, env=without_redirections(os.environ))
    except KeyboardInterrupt:
        return 0


def main() -> int:
    """Serve the page of the workspace in the current folder; returns the exit code."""
    return command.run(lambda: serve(load(paths.PARAMS), Path.cwd()))


if __name__ == "__main__":
    sys.exit(main())
