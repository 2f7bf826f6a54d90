"""Reading the Parquet tables that stages write."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.common import files
from tasks.common.errors import DataError


def read(path: Path, schema: pa.Schema, stage: str) -> pa.Table:
    """The table in a file that a stage wrote.

    Raises DataError if there is none, it is damaged, or it was written by another version of this project.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; run the {stage} stage first.")
    with files.reading(path):
        table = pq.ParquetFile(path).read()  # pq.read_table would import half of pyarrow for datasets
    if not table.schema.equals(schema):
        raise DataError(f"{path} was written by another version (its columns differ); run the {stage} stage again.")
    return table
