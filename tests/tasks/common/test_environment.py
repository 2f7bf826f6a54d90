"""Nothing leaves the machine because of a variable in the environment."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import dvc.env
import mlflow.cli
import mlflow.environment_variables
import pytest

from flows import private_server
from tasks.common.environment import check, drop_redirections, without_redirections
from tasks.common.errors import UserError

PLACES = re.compile(r"_(URI|URL|ENDPOINT|DESTINATION|ROOT|TARGET|HOSTS?|DIR|TOKEN)$")
AWS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_STS")


def mlflow_variables() -> list[str]:
    """Every variable of the installed MLflow that names a place, those of its command line included."""
    names = {name for name in vars(mlflow.environment_variables) if name.startswith("MLFLOW_")}
    names |= set(re.findall(r'"(MLFLOW_\w+)"', Path(mlflow.cli.__file__).read_text()))
    return sorted(name for name in names if PLACES.search(name) and name != "MLFLOW_TRACKING_TOKEN")


def dvc_variables() -> list[str]:
    """Every variable of the installed DVC but the name of an experiment, which is no place."""
    return sorted({value for name, value in vars(dvc.env).items() if name.startswith("DVC_")} - {"DVC_EXP_NAME"})


@pytest.mark.parametrize(
    "names",
    [
        mlflow_variables(),
        dvc_variables(),
        AWS,
        ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_LOGGING_SERVER_API_URL"),
    ],
    ids=["MLflow", "DVC", "AWS", "Prefect"],
)
def test_variables_that_redirect_are_dropped(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(names) >= 3
    for name in names:
        monkeypatch.setenv(name, "http://elsewhere.example")
    for environment in (without_redirections(os.environ), private_server.settings(Path("/home"))):
        assert "http://elsewhere.example" not in environment.values()
    drop_redirections()
    assert not set(names) & set(os.environ)


def test_the_known_redirections_of_mlflow_are_among_them() -> None:
    names = (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_REGISTRY_URI",
        "MLFLOW_ARTIFACTS_DESTINATION",
        "MLFLOW_DEFAULT_ARTIFACT_ROOT",
    )
    assert set(names) <= set(mlflow_variables())


def test_credentials_and_everything_else_are_kept() -> None:
    kept = {
        "PATH": "/bin",
        "HOME": "/home",
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_PASSWORD": "secret",
        "MLFLOW_TRACKING_TOKEN": "secret",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_PROFILE": "me",
        "PREFECT__FLOW_RUN_ID": "id",
    }
    assert without_redirections({**kept, "MLFLOW_RUN_ID": "another", "DVC_STUDIO_TOKEN": "x"}) == kept


def test_a_temporary_folder_that_cannot_be_used_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes make sockets there, whose paths have at most 107 bytes."""
    monkeypatch.setattr(tempfile, "tempdir", f"/{'x' * 74}")
    check()
    monkeypatch.setattr(tempfile, "tempdir", f"/{'é' * 40}")
    with pytest.raises(UserError, match="TMPDIR"):
        check()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="TMPDIR"):
        check()


def test_a_locale_that_reads_file_names_differently_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of UTF-8 files would be other names, and their files refused."""
    check()
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    with pytest.raises(UserError, match="PYTHONUTF8=1"):
        check()
