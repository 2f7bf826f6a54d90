"""Requests to a Prefect server. Its flow runs are read over HTTP, because `prefect flow-run ls` takes seconds each time."""

from __future__ import annotations

import json
import urllib.request
from typing import Any


def flow_runs(api_url: str, flow: str) -> list[dict[str, Any]]:
    """The runs of a flow as the server describes them (`id`, `name`, `state`, ...), the latest first."""
    query = {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_DESC"}
    request = urllib.request.Request(
        f"{api_url}/flow_runs/filter", json.dumps(query).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        runs: list[dict[str, Any]] = json.loads(answer.read())
    return runs


def make_pool(name: str) -> None:
    """Create a process work pool on the server that this process's Prefect uses."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))
