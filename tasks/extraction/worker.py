"""What a worker process of the extraction runs. The parent imports this module for the function's name alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.extraction.findings import Findings, Settings
from tasks.extraction.store import Encoded, encoded


@contextmanager
def encoding_extractor(
    folder: Path, model: Path, settings: Settings
) -> Iterator[Callable[[tuple[str, str]], tuple[str, Encoded | Findings]]]:
    """`extractor`, but with the key, and what lasts encoded for the store: here, where every core does its share of it."""
    from tasks.extraction.extractor import extractor  # its libraries take a second, and the parent has no use for them

    with extractor(folder, model, settings) as extract:

        def encode(item: tuple[str, str]) -> tuple[str, Encoded | Findings]:
            findings = extract(item)
            return item[1], encoded(findings) if findings.lasting else findings

        yield encode
