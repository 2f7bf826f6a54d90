"""The environment of a run, without variables that send data to other places than params.yaml and .dvc/config name."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

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


def without_redirections(environment: Mapping[str, str]) -> dict[str, str]:
    """A copy without the variables of MLflow, Prefect, DVC and AWS that redirect data or configuration."""
    return {name: value for name, value in environment.items() if KEPT.fullmatch(name) or not DROPPED.match(name)}


def drop_redirections() -> None:
    """Remove those variables from this process's environment, and so from its children's."""
    for name in set(os.environ) - set(without_redirections(os.environ)):
        del os.environ[name]
