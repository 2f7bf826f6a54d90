"""What a worker process of the stage does: it extracts files, and encodes what it finds for the store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tasks.common.pool import Steps
from tasks.extract.cache import Encoded, Store, encoded
from tasks.extract.findings import Findings, Settings


class Answer(NamedTuple):
    """What a worker says of a file: its key and by which stamp to remember it, if it could be read and may be remembered.

    Findings that last are encoded for the store, here, where every core does its share of it; None if the store has them.
    """

    key: str | None
    stamp: str | None
    findings: Encoded | Findings | None


@contextmanager
def extracting(root: Path, digest: str, folder: Path, model: Path, settings: Settings) -> Iterator[Steps]:
    """The steps from a path below `folder` to its Answer; the store is that of the workspace `root`."""
    from tasks.extract.extractor import Subject, extractor

    def answer(subject: Subject) -> Answer:
        there = subject.findings
        findings = None if subject.known else encoded(there) if subject.key and there.lasting else there
        return Answer(subject.key, subject.stamp, findings)

    with Store(root, digest) as store, extractor(folder, model, settings, store.__contains__) as steps:
        yield *steps, answer
