"""Stage `curate`: which of the persons found are kept, which belong together, and which split each is in.

Reads `data/poses/<part>/`, writes `data/dataset/` (see `dataset_table`).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from tasks import files
from tasks.dataset import dataset_table
from tasks.dataset.crop import square
from tasks.dataset.dataset_table import Gate, Gated, Persons
from tasks.dataset.groups import group, split_of
from tasks.errors import DataError
from tasks.extraction import poses_table
from tasks.params import Params
from tasks.skeleton import normalise


def run(params: Params, root: Path) -> None:
    """Gate, crop, normalise, group and split; raises DataError if nobody is kept or nothing is left to train on."""
    choice = params.curate
    found = poses_table.read_poses(root / "data/poses" / params.raw.part)
    visible = found.limb_visibility >= choice.min_visibility
    gated = [
        Gated(found.key[i], found.source[i], found.category[i], Gate.LOW_VISIBILITY) for i in np.flatnonzero(~visible)
    ]
    kept = np.flatnonzero(visible)
    if len(kept) == 0:
        raise DataError(
            f"None of the {len(found)} persons found is kept: the mean visibility of their limbs is below "
            f"curate.min_visibility ({choice.min_visibility})."
        )
    keys, sources = [found.key[i] for i in kept], [found.source[i] for i in kept]
    groups = group(keys, sources, found.phash[kept], found.phash_mirrored[kept], choice.duplicate_bits)
    persons = Persons(
        key=keys,
        source=sources,
        category=[found.category[i] for i in kept],
        group=groups,
        split=[split_of(name, choice.seed, choice.val, choice.test) for name in groups],
        crop=np.array([square(found.pixels[i], choice.margin) for i in kept], np.int32),
        pose=normalise(found.world[kept]),
    )
    splits = {split: len(persons.of(split)) for split in dataset_table.SPLITS}
    if splits["train"] == 0:
        raise DataError(f"All {len(kept)} persons kept fell into val or test: there is nobody to train on.")
    with files.new_folder(root / "data/dataset") as folder:
        dataset_table.write(folder, persons, gated)
        summary = {
            "persons_found": len(found),
            "persons_kept": len(kept),
            "gated": dict(Counter(row.reason for row in gated)),
            "splits": splits,
            "categories": dict(Counter(persons.category)),
            "groups": len(set(groups)),
            "largest_group": max(Counter(groups).values()),
        }
        files.write_json(folder / "summary.json", summary)
    print(f"{len(kept)} of {len(found)} persons kept: " + ", ".join(f"{n} {s}" for s, n in splits.items()))
