"""The cache of findings: a file is extracted once, whatever its name and part.

One SQLite file outside DVC's outputs stores the findings of each file under the key of its bytes and the digest of everything
else that they depend on. It also stores the keys of files that have not changed since they were hashed. The cache makes
extraction resumable (it commits every second) and extending a part cheap. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import numpy as np

from tasks import paths
from tasks.common.code_digest import code_digest
from tasks.common.errors import DataError
from tasks.extract.findings import Finding, Findings, Kind, Reason, Refused, Settings

_LOCK_TIMEOUT_S = 60.0  # how long to wait for another process
_COMMIT_S = 1.0  # seconds between commits: the work that is lost if the process is killed

_ARRAYS = (
    ("landmarks", "<f4", (33, 5)),
    ("world", "<f4", (33, 3)),
    ("fingerprint", "i1", (256,)),
    ("thumbnail", "u1", (48, 48)),
)
_NAMES = tuple(name for name, _, _ in _ARRAYS)
Encoded = tuple[str, str, bytes]  # kind, scalars as JSON, arrays

_INSERT = "insert or replace into findings values (?, ?, ?, ?, ?)"
_SCHEMA = """
create table if not exists findings (
    digest text, key text, kind text, rows text, arrays blob, primary key (digest, key)
) without rowid
"""
_STAMPS = """
create table if not exists seen (
    stamp text primary key, key text
) without rowid
"""


def findings_digest(settings: Settings, model: Path) -> str:
    """A digest of everything but the file that findings depend on: parameters, model, this code, and the libraries used."""
    about, libraries = asdict(settings), ["mediapipe", "pillow", "pillow-heif", "av", "numpy"]
    if settings.second_opinion is not None:
        del about["second_opinion"]["path"]  # machines have their workspaces in other places
        libraries.append("torch")
    sha = hashlib.sha256(repr(sorted(about.items())).encode())
    sha.update(model.read_bytes())
    for library in libraries:
        sha.update(f"{library} {importlib.metadata.version(library)}\n".encode())
    sha.update(code_digest(["tasks/extract/*.py", "tasks/common/skeleton.py", "tasks/common/thumbnail.py"]).encode())
    return sha.hexdigest()[:16]


def encoded(findings: Findings) -> Encoded:
    """Findings in the form that the store keeps; the conversion is exact."""
    arrays = np.array([tuple(getattr(f, name) for name in _NAMES) for f in findings.persons], list(_ARRAYS))
    scalars = [{name: v for name, v in vars(f).items() if name not in _NAMES} for f in findings.persons]
    rows = json.dumps([scalars, [[r.frame, r.reason, r.detail] for r in findings.refused]])
    return str(findings.kind), rows, arrays.tobytes()


def decoded(kind: str, rows: str, blob: bytes) -> Findings:
    """The inverse of `encoded`; raises ValueError or TypeError if the arguments are not encoded findings."""
    arrays = np.frombuffer(blob, np.dtype(list(_ARRAYS)))
    persons, refused = json.loads(rows)
    return Findings(
        Kind(kind),
        [
            Finding(**scalars, **{name: row[name] for name in _NAMES})
            for scalars, row in zip(persons, arrays, strict=True)
        ],
        [Refused(frame, Reason(reason), detail) for frame, reason, detail in refused],
    )


def _use_write_ahead_log(db: sqlite3.Connection) -> None:
    """Switch to write-ahead logging, so that readers do not wait for commits."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            db.execute("pragma journal_mode = wal")
            return
        except sqlite3.OperationalError as error:
            # If another process does the same at this moment, SQLite fails at once instead of waiting.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


class Store:
    """The cached findings of the workspace `root` that belong to `digest`. A context manager.

    Several processes may use the file at the same time. Raises DataError if the file is not one that this class wrote.
    """

    def __init__(self, root: Path, digest: str) -> None:
        path = root / paths.FINDINGS
        path.parent.mkdir(parents=True, exist_ok=True)
        self.digest = digest
        self._new_findings: list[tuple[str, str, str, str, bytes]] = []
        self._new_stamps: list[tuple[str, str]] = []
        self._last_commit = time.monotonic()
        try:
            self._db = sqlite3.connect(path, timeout=_LOCK_TIMEOUT_S)
            _use_write_ahead_log(self._db)
            self._db.execute("pragma synchronous = normal")
            self._db.execute("pragma secure_delete = on")  # deleted rows must not remain in free pages of the file
            self._db.execute(_SCHEMA)
            self._db.execute(_STAMPS)
            self._db.execute("select digest, key, kind, rows, arrays from findings limit 1")
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{path} is damaged ({error}); delete it: everything in it can be extracted again."
            ) from error

    def __contains__(self, key: str) -> bool:
        """Whether committed findings exist for the key."""
        query = "select 1 from findings where digest = ? and key = ?"
        return self._db.execute(query, (self.digest, key)).fetchone() is not None

    def get(self, key: str) -> Findings:
        """The committed findings of a key; raises KeyError if there are none."""
        query = "select kind, rows, arrays from findings where digest = ? and key = ?"
        row = self._db.execute(query, (self.digest, key)).fetchone()
        if row is None:
            raise KeyError(key)
        return decoded(*row)

    def put(self, key: str, findings: Encoded) -> None:
        """Store findings under a key."""
        self._new_findings.append((self.digest, key, *findings))
        self._commit_if_due()

    def commit(self) -> None:
        """Write everything new to the file. Other processes can write between commits."""
        if self._new_findings or self._new_stamps:
            with self._db:
                self._db.executemany(_INSERT, self._new_findings)
                self._db.executemany("insert or replace into seen values (?, ?)", self._new_stamps)
        self._new_findings, self._new_stamps, self._last_commit = [], [], time.monotonic()

    def _commit_if_due(self) -> None:
        if time.monotonic() - self._last_commit > _COMMIT_S:
            self.commit()

    def remember_key(self, stamp: str, key: str) -> None:
        """Remember the key of a file's bytes under the file's stamp (see `content_keys`)."""
        self._new_stamps.append((stamp, key))
        self._commit_if_due()

    def key_of(self, stamp: str) -> str | None:
        """The key remembered for a stamp, if committed findings exist for it; else None."""
        query = "select key from seen join findings using (key) where stamp = ? and digest = ?"
        row: tuple[str] | None = self._db.execute(query, (stamp, self.digest)).fetchone()
        return row[0] if row else None

    def export(self, path: Path, keys: Iterable[str]) -> None:
        """Write the findings of these keys into a new file of the same format, for another machine."""
        self.commit()
        query = "select * from findings where digest = ? and key = ?"
        with closing(sqlite3.connect(path)) as copy, copy:
            copy.execute(_SCHEMA)
            for key in sorted(set(keys)):
                copy.executemany(_INSERT, self._db.execute(query, (self.digest, key)))

    def absorb(self, path: Path) -> int:
        """Store what another machine found under the same digest; returns the number of keys.

        Raises DataError and stores nothing if the file was not written by `export`.
        """
        try:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as other:
                rows = other.execute("select * from findings where digest = ?", (self.digest,)).fetchall()
            for _, key, *columns in rows:
                if not re.fullmatch(r"[0-9a-f]{16}", key):
                    raise ValueError(f"{key!r} is no key")
                decoded(*columns)
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            raise DataError(f"{path} holds no findings that can be read ({error}).") from error
        with self._db:
            self._db.executemany(_INSERT, rows)
        return len(rows)

    def forget(self, key: str) -> None:
        """Delete the findings of a key under every digest: the person has opted out."""
        with self._db:
            self._db.execute("delete from findings where key = ?", (key,))
            self._db.execute("delete from seen where key = ?", (key,))

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.commit()  # also after an error: what was stored is complete
        self._db.close()
