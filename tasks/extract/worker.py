"""A worker process of the stage: it extracts files and encodes their findings for the cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tasks.common.pool import Steps
from tasks.extract.cache import Encoded, Store, encoded
from tasks.extract.findings import Findings, Settings
from tasks.extract.source_files import dvc_cache


class Answer(NamedTuple):
    """A worker's answer about one file.

    `key` is None if the file could not be read, `stamp` if the key must not be remembered (see `content_keys`). `findings`
    is None if the store has them already. Findings that may be cached are encoded in the worker, so that all cores share
    that work.
    """

    key: str | None
    stamp: str | None
    findings: Encoded | Findings | None


@contextmanager
def extracting(root: Path, digest: str, folder: Path, model: Path, settings: Settings) -> Iterator[Steps]:
    """The steps (see `tasks.common.pool`) from a path below `folder` to its Answer, with the store of the workspace `root`."""
    from tasks.extract.extractor import Subject, extractor

    def answer(subject: Subject) -> Answer:
        findings: Encoded | Findings | None = subject.findings
        if subject.known:
            findings = None
        elif subject.key and subject.findings.cacheable:
            findings = encoded(subject.findings)
        return Answer(subject.key, subject.stamp, findings)

    with Store(root, digest) as store, extractor(folder, model, settings, store.__contains__, dvc_cache(root)) as steps:
        yield *steps, answer
