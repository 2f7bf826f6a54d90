"""Notifies a webhook of how a run ended: promoted, refused or failed.

It gets a POST with JSON: `event`, `sentence`, `report` (the page's path), and `flow_run` and `mlflow_run` (ids). A webhook that
does not answer never fails a run.
"""

from __future__ import annotations

import http.client
import json
import logging
import urllib.request
from pathlib import Path
from typing import Any

from tasks import paths
from tasks.common import files
from tasks.config.operations import Notify

log = logging.getLogger(__name__)

SECONDS = 10.0  # for the webhook to answer


def outcome(root: Path) -> tuple[str, str]:
    """The last decision of the stage `promote`: `promoted` or `refused`, and a sentence."""
    decision = files.read_json(root / paths.PROMOTE / "promote.json")
    if decision["promote"]:
        return "promoted", " ".join(["The new models are now the champion.", *decision.get("warnings", [])])
    return "refused", " ".join(decision["reasons"])


def send(notify: Notify, event: str, sentence: str, root: Path, **ids: str | None) -> None:
    """POST to the webhook, if there is one; a failure to do so is logged."""
    if notify.webhook is None:
        return
    message: dict[str, Any] = {"event": event, "sentence": sentence, "workspace": str(root), **ids}
    message["report"] = str(root / paths.REPORT)
    message["text"] = f"Contrapposto: {event}. {sentence}"  # the key that chat programs show
    headers = {"Content-Type": "application/json"}
    try:
        request = urllib.request.Request(notify.webhook, json.dumps(message).encode(), headers, method="POST")
        with urllib.request.urlopen(request, timeout=SECONDS):
            pass
    # It does not answer, or what it says is no HTTP.
    except (OSError, http.client.HTTPException) as error:
        log.warning(f"The webhook {notify.webhook} could not be notified of the event {event}: {error}")
