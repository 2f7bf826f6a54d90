"""Findings that are kept: a file is extracted once, whatever it is called and in whichever part it arrives.

One SQLite file outside DVC's outputs holds the findings of each file under the key of its bytes and the digest of
everything else that they depend on, and the keys of files that have not been touched since. It is what makes extraction
resumable (a commit every second) and a growing part cheap. It may be deleted at any time.
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

_PATIENCE_S = 60.0  # for which another process is waited for
_COMMIT_S = 1.0  # so much work is lost at most when the process is killed

_ARRAYS = (("landmarks", "<f4", (33, 5)), ("world", "<f4", (33, 3)), ("fingerprint", "i1", (256,)))
_NAMES = tuple(name for name, _, _ in _ARRAYS)
Encoded = tuple[str, str, bytes]  # kind, scalars as JSON, arrays

_INSERT = "insert or replace into findings values (?, ?, ?, ?, ?)"
_SCHEMA = """
create table if not exists findings (
    digest text, key text, kind text, rows text, arrays blob, primary key (digest, key)
) without rowid
"""
_SEEN = """
create table if not exists seen (
    stamp text primary key, key text
) without rowid
"""


def findings_digest(settings: Settings, model: Path) -> str:
    """What findings depend on besides the file: parameters, model, this code, and the libraries that decode and detect."""
    sha = hashlib.sha256(repr(sorted(asdict(settings).items())).encode())
    sha.update(model.read_bytes())
    for library in ("mediapipe", "pillow", "pillow-heif", "av", "numpy"):
        sha.update(f"{library} {importlib.metadata.version(library)}\n".encode())
    sha.update(code_digest(["tasks/extract/*.py", "tasks/common/skeleton.py"]).encode())
    return sha.hexdigest()[:16]


def encoded(findings: Findings) -> Encoded:
    """Findings as the store keeps them, to the last bit."""
    arrays = np.array([tuple(getattr(f, name) for name in _NAMES) for f in findings.found], list(_ARRAYS))
    found = [{name: v for name, v in vars(f).items() if name not in _NAMES} for f in findings.found]
    rows = json.dumps([found, [[r.frame, r.reason, r.detail] for r in findings.refused]])
    return str(findings.kind), rows, arrays.tobytes()


def decoded(kind: str, rows: str, blob: bytes) -> Findings:
    """The findings that were encoded; ValueError or TypeError if they are none."""
    arrays = np.frombuffer(blob, np.dtype(list(_ARRAYS)))
    found, refused = json.loads(rows)
    return Findings(
        Kind(kind),
        [
            Finding(**scalars, **{name: row[name] for name in _NAMES})
            for scalars, row in zip(found, arrays, strict=True)
        ],
        [Refused(frame, Reason(reason), detail) for frame, reason, detail in refused],
    )


def _log_ahead(db: sqlite3.Connection) -> None:
    """Write-ahead logging: those who look something up need not wait for commits."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            db.execute("pragma journal_mode = wal")
            return
        except sqlite3.OperationalError as error:  # of others who do the same just now SQLite does not wait by itself
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


class Store:
    """The findings kept in the workspace `root` that belong to `digest`. A context manager.

    Several processes may use one file. Raises DataError if the file is not one that this class wrote.
    """

    def __init__(self, root: Path, digest: str) -> None:
        path = root / paths.FINDINGS
        path.parent.mkdir(parents=True, exist_ok=True)
        self.digest = digest
        self._waiting: list[tuple[str, str, str, str, bytes]] = []
        self._waiting_seen: list[tuple[str, str]] = []
        self._committed = time.monotonic()
        try:
            self._db = sqlite3.connect(path, timeout=_PATIENCE_S)
            _log_ahead(self._db)
            self._db.execute("pragma synchronous = normal")
            self._db.execute("pragma secure_delete = on")  # what is forgotten is not to be found in the file's gaps
            self._db.execute(_SCHEMA)
            self._db.execute(_SEEN)
            self._db.execute("select digest, key, kind, rows, arrays from findings limit 1")
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{path} is damaged ({error}); delete it, it holds nothing that cannot be made again."
            ) from error

    def __contains__(self, key: str) -> bool:
        """Whether something has been kept for the key since the last commit."""
        query = "select 1 from findings where digest = ? and key = ?"
        return self._db.execute(query, (self.digest, key)).fetchone() is not None

    def get(self, key: str) -> Findings:
        """What is kept for a key since the last commit; KeyError if nothing is."""
        query = "select kind, rows, arrays from findings where digest = ? and key = ?"
        row = self._db.execute(query, (self.digest, key)).fetchone()
        if row is None:
            raise KeyError(key)
        return decoded(*row)

    def put(self, key: str, findings: Encoded) -> None:
        """Keep what was found under a key."""
        self._waiting.append((self.digest, key, *findings))
        if time.monotonic() - self._committed > _COMMIT_S:
            self.commit()

    def commit(self) -> None:
        """Write what was put; between commits nobody else is kept from writing."""
        if self._waiting or self._waiting_seen:
            with self._db:
                self._db.executemany(_INSERT, self._waiting)
                self._db.executemany("insert or replace into seen values (?, ?)", self._waiting_seen)
        self._waiting, self._waiting_seen, self._committed = [], [], time.monotonic()

    def see(self, stamp: str, key: str) -> None:
        """Remember the key of a file's bytes by what else is known of the file (see `keys`)."""
        self._waiting_seen.append((stamp, key))
        if time.monotonic() - self._committed > _COMMIT_S:
            self.commit()

    def seen(self, stamp: str) -> str | None:
        """The key remembered by a stamp, if something has been kept for it since the last commit."""
        query = "select key from seen join findings using (key) where stamp = ? and digest = ?"
        row = self._db.execute(query, (stamp, self.digest)).fetchone()
        return row and row[0]

    def export(self, path: Path, keys: Iterable[str]) -> None:
        """Write what is kept for these keys into a new file of the same kind, for another machine."""
        self.commit()
        query = "select * from findings where digest = ? and key = ?"
        with closing(sqlite3.connect(path)) as copy, copy:
            copy.execute(_SCHEMA)
            for key in sorted(set(keys)):
                copy.executemany(_INSERT, self._db.execute(query, (self.digest, key)))

    def absorb(self, path: Path) -> int:
        """Keep what another machine found under the same digest; how many keys that were.

        Raises DataError, and keeps nothing, if the file is not one that `export` wrote.
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
        """Drop what any digest has kept under a key: somebody wants to be gone."""
        with self._db:
            self._db.execute("delete from findings where key = ?", (key,))
            self._db.execute("delete from seen where key = ?", (key,))

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.commit()  # what was put is whole, also when an error ends the run
        self._db.close()
