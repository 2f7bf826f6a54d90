"""Files in an object store (S3 and compatible ones) or in a folder, by name. The only module that uses fsspec."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from tasks.common import files
from tasks.common.errors import UserError
from tasks.common.text import one_line


class StoreFailed(UserError):
    """The store cannot be reached, or refuses what was asked of it."""


class ObjectStore:
    """What is below an address: `s3://BUCKET/PREFIX`, or the path of a folder.

    `endpoint`: of stores other than Amazon's. Credentials are those of the environment and of ~/.aws. Files appear under their
    names only when they are complete. Raises UserError if the kind of address is not supported or its package is missing.
    """

    def __init__(self, url: str, endpoint: str | None = None) -> None:
        self.url = url
        options: dict[str, Any] = {"client_kwargs": {"endpoint_url": endpoint}} if endpoint else {}
        try:
            self._fs, self._path = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
        except ImportError as error:
            raise UserError(
                f"{url} needs a package: `.venv/bin/uv pip install --python .venv/bin/python '.[s3]'`."
            ) from error
        except ValueError as error:
            raise UserError(f"{url} is no address of an object store or a folder.") from error
        self._local = "file" in self._fs.protocol

    def names(self, below: str = "") -> list[str]:
        """The names of all files, sorted; only of those in the folder `below`, if it is given."""
        with self._telling():
            found = self._fs.find(self._place(below) if below else self._path)
        return sorted(str(name)[len(self._path) :].lstrip("/") for name in found if not str(name).endswith(".tmp"))

    def put(self, path: Path, name: str) -> None:
        """Store a file."""
        with self._telling():
            if self._local:
                with files.new_file(Path(self._path) / name, durable=True) as temporary:
                    self._fs.put_file(str(path), str(temporary))
            else:
                self._fs.put_file(str(path), self._place(name))

    def get(self, name: str, path: Path) -> None:
        """Copy a stored file to `path`."""
        with self._telling(), files.new_file(path) as temporary:
            self._fs.get_file(self._place(name), str(temporary))

    def remove(self, name: str) -> None:
        """Delete a stored file."""
        with self._telling():
            self._fs.rm_file(self._place(name))

    def _place(self, name: str) -> str:
        return os.path.join(self._path, name)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreFailed(f"{self.url}: {one_line(str(error))}", 1) from error
        except Exception as error:
            # botocore, which is there only with the extra `s3`, has errors of its own
            if not type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp")):
                raise
            raise StoreFailed(f"{self.url}: {one_line(str(error))}", 1) from error
