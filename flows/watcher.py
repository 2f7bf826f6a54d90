"""`python -m flows.watcher`: look for new data regularly and emit a Prefect event; `make up` starts it.

The event triggers the deployment `retrain` (prefect.yaml). New data are announced when they look the same twice in a row, so
that a copy in progress can finish. They are announced once, and never while a pipeline run holds the workspace.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from prefect.events import emit_event

from flows import data_fingerprint, workspace
from flows.data_fingerprint import Fingerprint
from tasks import paths
from tasks.common.errors import UserError, in_words
from tasks.common.log import to_stdout
from tasks.config.params import Params, load

log = logging.getLogger("flows.watcher")  # __name__ is "__main__" in the service

EVENT = "contrapposto.data.arrived"
RESOURCE = "contrapposto.workspace"


class Watch:
    """Decides when to announce new data."""

    def __init__(self) -> None:
        self.last: Fingerprint | None = None
        self.announced: Fingerprint | None = None

    def look(self, params: Params, root: Path) -> list[str]:
        """The folders to announce now. Called every `retrain.watch_seconds`."""
        now = data_fingerprint.fingerprint(params, root)
        settled = now == self.last
        self.last = now
        if not settled or now == self.announced or workspace.held(root):
            return []
        folders = data_fingerprint.arrived(root, now)
        if folders:
            self.announced = now
        return folders


def announce(root: Path, folders: list[str]) -> None:
    """Emit the event. Its payload names the folders."""
    resource = {"prefect.resource.id": f"{RESOURCE}.{root.name}", "prefect.resource.name": str(root)}
    emit_event(EVENT, resource=resource, payload={"folders": folders})
    log.info(f"new data in {', '.join(folders)}: announced")


def main() -> int:
    """Watch the current folder until stopped. A fault in params.yaml, in the state or of the disk is printed, and the watch
    goes on."""
    to_stdout()
    root = Path.cwd()
    watch = Watch()
    pause = 1.0
    while True:
        try:
            params = load(root / paths.PARAMS)
            pause = max(params.retrain.watch_seconds, 1.0)
            folders = watch.look(params, root)
        except UserError as error:
            log.error(f"contrapposto: {error}")
        except OSError as error:  # a full disk, or a folder that is not mounted for a while
            log.error(f"contrapposto: {in_words(error) or error}")
        else:
            if folders:
                announce(root, folders)
        time.sleep(pause)


if __name__ == "__main__":
    sys.exit(main())
