"""Folders of a few files that machines exchange through the workspace's DVC remote, outside the graph.

The remote may be a folder or an object store, with DVC's credentials and addresses. Only finished work is stored, its mark file
last. All of it can be made again, so deleting it only costs time; `dvc gc` does not touch it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo

from tasks.common import files
from tasks.common.errors import UserError
from tasks.extract.scan import is_ignored

FOLDER = "slices"  # in the remote, beside DVC's own files


class RemoteStore:
    """The folder `slices` of a workspace's DVC remote. Raises UserError if there is no remote."""

    def __init__(self, root: Path) -> None:
        try:
            with Repo(str(root)) as repository:
                remote = repository.cloud.get_remote()
        except DvcException as error:
            raise UserError(f"Work cannot be shared without a DVC remote: {' '.join(str(error).split())}") from error
        self._fs, self._path = remote.fs, remote.path

    def _path_of(self, *names: str) -> str:
        return str(self._fs.join(self._path, FOLDER, *names))

    def has(self, name: str, mark: str) -> bool:
        """Whether a folder is stored completely, that is, with its mark."""
        return bool(self._fs.exists(self._path_of(name, mark)))

    def put(self, name: str, folder: Path, mark: str) -> None:
        """Store a folder's files under a name, the mark last."""
        self._fs.makedirs(self._path_of(name), exist_ok=True)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == mark):
            self._fs.put_file(str(path), self._path_of(name, path.name))

    def put_file(self, path: Path, name: str, member: str) -> None:
        """Store one file; it appears under its name only when it is complete."""
        self._fs.makedirs(self._path_of(name), exist_ok=True)
        self._fs.put_file(str(path), self._path_of(name, member))

    def put_bytes(self, data: bytes, name: str, member: str) -> None:
        """Store these bytes as a file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / member
            path.write_bytes(data)
            self.put_file(path, name, member)

    def get_file(self, name: str, member: str, path: Path) -> None:
        """Copy one stored file."""
        self._fs.get_file(self._path_of(name, member), str(path))

    def get_bytes(self, name: str, member: str) -> bytes:
        """The bytes of a stored file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / member
            self.get_file(name, member, path)
            return path.read_bytes()

    def get(self, name: str, members: Sequence[str], folder: Path) -> None:
        """Copy files of a stored folder into `folder`, which replaces what was there."""
        with files.new_folder(folder) as fresh:
            for member in members:
                self._fs.get_file(self._path_of(name, member), str(fresh / member))


def fetch_slice(root: Path, folder: str, rank: int, world: int, wanted: Path) -> None:
    """Copy slice `rank` of `world` of a tracked folder (`dvc add`) from DVC's cache or remote into `wanted`.

    A slice is every `world`-th file in order of their names, starting at number `rank`. Raises UserError if DVC does not track
    the folder, or cannot reach its files.
    """
    try:
        fs = DVCFileSystem(str(root))
        names = sorted(name for name in map(str, fs.find(folder)) if not any(map(is_ignored, name.split("/"))))
        if not names:
            raise UserError(_UNTRACKED.format(folder=folder))
        with files.new_folder(wanted) as fresh:
            for name in names[rank::world]:
                target = fresh / Path(name).relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(name, str(target))
    except (DvcException, FileNotFoundError) as error:
        raise UserError(_UNTRACKED.format(folder=folder)) from error


_UNTRACKED = (
    "This machine has no {folder}, and DVC cannot fetch it: `dvc add {folder}`, `dvc push` and a commit of {folder}.dvc "
    "make it available to every worker."
)
