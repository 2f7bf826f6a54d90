"""Lets Prefect accept a deployment's bare name: `prefect deployment run train-poses` means `train-poses/train-poses`.

Prefect loads this module itself (entry point group `prefect.plugins`) in every process where plugins are enabled, so it
imports only what Prefect has already imported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from prefect.plugins import HookContext, register_hook


def full_name(name: str) -> str:
    """`name` -> `name/name`; `flow/deployment` stays as it is."""
    return name if "/" in name else f"{name}/{name}"


def _accept_bare_names(read: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(read)
    def read_deployment_by_name(client: Any, name: str) -> Any:
        return read(client, full_name(name))

    return read_deployment_by_name


@register_hook
def setup_environment(*, ctx: HookContext) -> None:
    """Prefect's start-up hook: patch both clients."""
    from prefect.client.orchestration import PrefectClient, SyncPrefectClient

    for client in (PrefectClient, SyncPrefectClient):
        client.read_deployment_by_name = _accept_bare_names(client.read_deployment_by_name)  # type: ignore[method-assign]
