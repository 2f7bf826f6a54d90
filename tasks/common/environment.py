"""The environment of a run, without variables that send data to other places than params.yaml and .dvc/config name."""

from __future__ import annotations

import os
import pwd
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tasks import paths
from tasks.common.errors import UserError

# Every variable of these programs is dropped, also those of their future versions, except the ones in KEPT. Files such as
# ~/.aws/config and .dvc/config.local are left alone: nobody puts an address there by accident.
DROPPED = re.compile(r"MLFLOW_|PREFECT_|DVC_|AWS_ENDPOINT_URL|DATABRICKS_|OTEL_EXPORTER_")
KEPT = re.compile(
    # the credentials and the patience of the connection to the server in `tracking.store`
    r"MLFLOW_TRACKING_(USERNAME|PASSWORD|TOKEN|AUTH|AWS_SIGV4|INSECURE_TLS|SERVER_CERT_PATH|CLIENT_CERT_PATH)|"
    r"MLFLOW_HTTP_REQUEST_\w+|"
    # set by DVC: the name of the experiment, by which its run in MLflow is found
    r"DVC_EXP_NAME|"
    # set by this project
    r"MLFLOW_(DISABLE_TELEMETRY|ENABLE_ARTIFACTS_PROGRESS_BAR|SERVER_ENABLE_JOB_EXECUTION)|"
    r"PREFECT__FLOW_RUN_ID"
)


# The path of a socket has at most 107 bytes, of which `multiprocessing` adds this many to the folder's.
_LONGEST_TEMPORARY = 107 - len("/pymp-xxxxxxxx/listener-xxxxxxxx")


def without_redirections(environment: Mapping[str, str]) -> dict[str, str]:
    """A copy without the variables of MLflow, Prefect, DVC and AWS that redirect data or configuration."""
    return {name: value for name, value in environment.items() if KEPT.fullmatch(name) or not DROPPED.match(name)}


def drop_redirections() -> None:
    """Remove those variables from this process's environment, and so from its children's."""
    for name in set(os.environ) - set(without_redirections(os.environ)):
        del os.environ[name]


def provide_home(root: Path) -> None:
    """If there is no home folder that can be written, let this process and its children use one in the state of the workspace.

    DVC, Prefect, matplotlib and torch keep settings and caches there, and some of them ask for the user's name; containers and
    system users often have neither. Raises UserError if `root` is no workspace.
    """
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("LOGNAME", str(os.getuid()))
    home = os.environ.get("HOME", os.path.expanduser("~"))
    if os.path.isabs(home) and os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK):
        return
    if not (root / paths.PARAMS).is_file():
        raise UserError(f"There is no home folder that can be written ({home}); set HOME to one.")
    substitute = (root / paths.HOME).absolute()
    substitute.mkdir(parents=True, exist_ok=True)
    os.environ["HOME"] = str(substitute)


def check() -> None:
    """Raise UserError unless file names are read as UTF-8 and worker processes can make their sockets.

    These are files in the folder for temporary files.
    """
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        raise UserError(f"This locale reads file names as {encoding}: set PYTHONUTF8=1, or a locale such as C.UTF-8.")
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError("There is no folder for temporary files that can be written; set TMPDIR to one.") from error
    if len(os.fsencode(folder)) > _LONGEST_TEMPORARY:
        raise UserError(
            f"The folder for temporary files ({folder}) has too long a path for the sockets of worker processes: set TMPDIR "
            f"to one of at most {_LONGEST_TEMPORARY} characters, such as /tmp."
        )
