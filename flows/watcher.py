"""`python -m flows.watcher`: look for new data now and then, and tell Prefect with an event; `make up` starts it.

The deployment `retrain` is triggered by the event (prefect.yaml). A delivery under way is left to settle: it must look
the same twice in a row. Nothing is announced while a pipeline run holds the workspace, and the same data only once.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from prefect.events import emit_event

from flows import data_fingerprint, workspace
from flows.data_fingerprint import Fingerprint
from tasks import paths
from tasks.common.errors import UserError
from tasks.config.params import Params, load

EVENT = "contrapposto.data.arrived"
RESOURCE = "contrapposto.workspace"


class Watch:
    """Decides when data that have arrived are to be announced."""

    def __init__(self) -> None:
        self.last: Fingerprint | None = None
        self.announced: Fingerprint | None = None

    def look(self, params: Params, root: Path) -> list[str]:
        """The folders to announce now; call it every `retrain.watch_seconds`."""
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
    """Emit the event; its payload names the folders."""
    resource = {"prefect.resource.id": f"{RESOURCE}.{root.name}", "prefect.resource.name": str(root)}
    emit_event(EVENT, resource=resource, payload={"folders": folders})
    print(f"new data in {', '.join(folders)}: announced", flush=True)


def main() -> int:
    """Watch the current folder until stopped; what is wrong in params.yaml meanwhile is said, and waited for."""
    root = Path.cwd()
    watch = Watch()
    pause = 1.0
    while True:
        try:
            params = load(root / paths.PARAMS)
            pause = max(params.retrain.watch_seconds, 1.0)
            folders = watch.look(params, root)
        except UserError as error:
            print(f"contrapposto: {error}", flush=True)
        else:
            if folders:
                announce(root, folders)
        time.sleep(pause)


if __name__ == "__main__":
    sys.exit(main())
