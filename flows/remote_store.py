"""What machines hand to each other beside the graph: folders of few files, kept in the workspace's DVC remote.

The remote may be a folder or an object store; the credentials and addresses are DVC's. Only finished work is put here, the
file that marks it last, and what is here can be made again: `dvc gc` does not touch it, deleting it costs time alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo

from tasks.common import files
from tasks.common.errors import UserError
from tasks.extract.decode import is_aside

FOLDER = "slices"  # in the remote, beside what DVC keeps there


class Shelf:
    """The part of a workspace's remote that DVC does not use. Raises UserError if there is no remote."""

    def __init__(self, root: Path) -> None:
        try:
            with Repo(str(root)) as repository:
                remote = repository.cloud.get_remote()
        except DvcException as error:
            raise UserError(f"Work cannot be shared without a DVC remote: {' '.join(str(error).split())}") from error
        self._fs, self._path = remote.fs, remote.path

    def _at(self, *names: str) -> str:
        return str(self._fs.join(self._path, FOLDER, *names))

    def has(self, name: str, mark: str) -> bool:
        """Whether a folder is here whole: its mark is."""
        return bool(self._fs.exists(self._at(name, mark)))

    def put(self, name: str, folder: Path, mark: str) -> None:
        """Lay a folder's files here under a name, the mark last."""
        self._fs.makedirs(self._at(name), exist_ok=True)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == mark):
            self._fs.put_file(str(path), self._at(name, path.name))

    def get(self, name: str, members: Sequence[str], folder: Path) -> None:
        """Bring files of a folder here into `folder`, which is made anew."""
        with files.new_folder(folder) as fresh:
            for member in members:
                self._fs.get_file(self._at(name, member), str(fresh / member))


def fetch_slice(root: Path, folder: str, rank: int, world: int, wanted: Path) -> None:
    """Bring every `world`-th file of a tracked folder (`dvc add`) from DVC's cache or remote into `wanted`, in order of their
    names and from number `rank` on. Raises UserError if DVC does not know the folder, or cannot reach what is in it.
    """
    try:
        fs = DVCFileSystem(str(root))
        names = sorted(name for name in map(str, fs.find(folder)) if not any(map(is_aside, name.split("/"))))
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
    "This machine has no {folder}, and DVC cannot bring it: `dvc add {folder}`, `dvc push` and a commit of {folder}.dvc "
    "make it known to every worker."
)
