"""Stage `shard`: the curated persons as WebDataset shards in `data/shards/`, pictures cropped and poses normalised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tasks.dataset import dataset_table, shards
from tasks.dataset.crop import crop
from tasks.dataset.dataset_table import SPLITS, Persons
from tasks.extraction.ingest import open_picture
from tasks.params import Params


def run(params: Params, root: Path) -> None:
    """Write the shards; one sample a person: `png` (square crop), `pose.npy` (float32 [33, 3]), `json` (who it is)."""
    persons = dataset_table.read(root / "data/dataset")
    raw = root / params.raw.folder
    with tqdm(total=len(persons), desc="shard", unit="person", mininterval=1) as bar:

        def samples(split: str) -> Iterator[tuple[str, dict[str, bytes]]]:
            for i in persons.of(split):
                picture = open_picture(raw / persons.source[i], params.extract.min_side)
                x0, y0, side = persons.crop[i].tolist()
                yield persons.key[i], _members(persons, i, crop(picture, x0, y0, side, params.shard.size))
                bar.update()

        about = {
            "categories": sorted(set(persons.category)),
            "part": params.raw.part,
            "size": params.shard.size,
            "margin": params.curate.margin,
        }
        shards.write(
            root / "data/shards",
            {split: samples(split) for split in SPLITS},
            params.shard.samples_per_shard,
            about,
        )


def _members(persons: Persons, i: int, picture: np.ndarray) -> dict[str, bytes]:
    about = {name: getattr(persons, name)[i] for name in ("source", "category", "group", "split")}
    return {
        "png": shards.encode_png(picture),
        "pose.npy": shards.encode_pose(persons.pose[i]),
        "json": shards.encode_json(about),
    }
