"""The states of unfinished trainings in an object store (`store.checkpoints`), for machines that come and go.

Below the address the files of `state.TrainingFolder` have the same names: MODEL/DIGEST/checkpoint-000038400.safetensors. Every
file is copied there as soon as it is written. A training that begins first fetches what is newer than its own files, so that
any machine continues what another one began.
"""

from __future__ import annotations

import logging
from pathlib import Path

from tasks.common.object_store import ObjectStore, StoreFailed
from tasks.config.params import Params

log = logging.getLogger(__name__)


class CheckpointStore:
    """The part of the store that belongs to one training, whose folder on this machine is `folder`."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self._store, self._folder = store, folder
        self._prefix = f"{folder.parent.name}/{folder.name}/"

    def fetch(self) -> None:
        """Copy the files of the training that this machine lacks, if the last checkpoint in the store is newer than its own.

        Raises StoreFailed: a training must not begin anew because its checkpoint is out of reach.
        """
        stored = self._stored()
        newest = max((name for name in stored if name.startswith("checkpoint-")), default="")
        own = max((path.name for path in self._folder.glob("checkpoint-*.safetensors")), default="")
        if newest <= own:
            return
        for name in stored:
            if not name.startswith("checkpoint-") and not (self._folder / name).exists():
                self._store.get(self._prefix + name, self._folder / name)
        self._store.get(self._prefix + newest, self._folder / newest)  # last: with it the state is complete
        log.info(f"{self._folder.parent.name}: fetched {newest} from {self._store.url}")

    def put(self, path: Path) -> None:
        """Copy a file that was just written, then delete checkpoints and best weights that the folder no longer has.

        A failure is reported and the training goes on: its state is on this machine, and the next call may succeed.
        """
        try:
            self._store.put(path, self._prefix + path.relative_to(self._folder).as_posix())
            kind = path.name.split("-")[0]
            for name in self._stored():
                if name.startswith(f"{kind}-") and name < path.name and not (self._folder / name).exists():
                    self._store.remove(self._prefix + name)
        except StoreFailed as error:
            log.warning(f"{path.name} is only on this machine: {error}")

    def _stored(self) -> list[str]:
        return [name.removeprefix(self._prefix) for name in self._store.names(self._prefix)]


def of(params: Params, folder: Path) -> CheckpointStore | None:
    """The store that params.yaml names; None if there is none."""
    if params.store.checkpoints is None:
        return None
    return CheckpointStore(ObjectStore(params.store.checkpoints, params.store.endpoint), folder)
