"""Pictures with captions: a user's folder, or the pictures of the shards.

The caption of a picture is what tasks/extract/captions.py finds, or else a template with the category: the name of the
sub-folder, or of the folder itself. That of a sample is in the shards, or else the template with its category.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tasks import paths
from tasks.common.errors import DataError, UserError
from tasks.config.adapt import Adaptation
from tasks.dataset.shards import ShardDataset, readable, resized
from tasks.extract import captions as caption_files
from tasks.extract.captions import CAPTIONS
from tasks.extract.decode import decode
from tasks.extract.scan import is_ignored, walk
from tasks.extract.source_files import Refusal, content_key, open_regular, printable

BESIDE = frozenset(
    {".txt", ".caption", ".csv", ".json", ".jsonl", ".md", ".npz", ".safetensors", ".toml", ".yaml", ".yml"}
)
MIN_SIDE = 32  # pixels of the shorter side
FEWEST_HELD_OUT = 2  # pictures that are held out; where the share gives fewer, none is

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captioned:
    """Square pictures with captions."""

    names: list[str]  # of samples, or of files, relative to their folder
    keys: list[str]  # of samples, or content hashes of files
    captions: list[str]
    pictures: np.ndarray  # uint8 [n, size, size, 3]
    poses: np.ndarray | None = None  # float32 [n, 33, 3], of samples

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: Sequence[int]) -> Captioned:
        """Some of them."""
        names, keys, captions = ([values[i] for i in rows] for values in (self.names, self.keys, self.captions))
        poses = None if self.poses is None else self.poses[list(rows)]
        return Captioned(names, keys, captions, self.pictures[list(rows)], poses)

    @property
    def digest(self) -> str:
        """sha256 of keys, captions and size."""
        lines = [f"{key} {caption}" for key, caption in zip(self.keys, self.captions, strict=True)]
        return hashlib.sha256("\n".join([str(self.pictures.shape), *lines]).encode()).hexdigest()


@dataclass(frozen=True)
class Splits:
    """What is trained on, what is held out, and the shards they come from, if any."""

    train: Captioned
    val: Captioned
    shards: ShardDataset | None = None


def load(root: Path, config: Adaptation, size: int) -> Splits:
    """The pictures that the section names, `size` pixels. Raises DataError if there are none, UserError if a path is wrong."""
    if config.pictures is not None:
        found = from_folder(root / config.pictures, config.template, size)
        trained, held_out = split(found.keys, config.val, config.seed)
        return Splits(found.take(trained), found.take(held_out))
    train_set, val_set = (ShardDataset(root / paths.SHARDS, name).pictured() for name in ("train", "val"))
    if not len(train_set):
        raise DataError("No training person has a picture: there is nothing to learn from.")
    train, val = (_from_shards(part, config.template, size) for part in (train_set, val_set))
    return Splits(train, val, train_set)


def split(keys: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the pictures to train on, and of those that are held out; equal files are on the same side.

    A picture's side depends on its content and the seed, so that adding pictures moves few others.
    """
    order = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).hexdigest())
    count = round(share * len(order))
    held_out = set(order[:count]) if count >= FEWEST_HELD_OUT else set()
    sides: tuple[list[int], list[int]] = ([], [])
    for i, key in enumerate(keys):
        sides[key in held_out].append(i)
    return sides


def _from_shards(dataset: ShardDataset, template: str, size: int) -> Captioned:
    captions = dataset.captions(template)
    keys = list(dataset.keys)
    return Captioned(keys, keys, captions, dataset.pictures_uint8(size), dataset.poses())


def from_folder(folder: Path, template: str, size: int) -> Captioned:
    """The pictures in a folder and its sub-folders, cropped to the square in the middle.

    What is no picture is named in the log. Raises UserError if there is no folder, DataError if it has no picture.
    """
    if not folder.is_dir():
        raise UserError(f"adapt: the folder {folder} does not exist.")
    listed = caption_files.in_list(folder)
    names = sorted(entry.path for entry in walk(folder) if entry.path)
    used, keys, captions, pictures = [], [], [], []
    for name in names:
        file_name = name.split("/")[-1]
        if is_ignored(file_name) or os.path.splitext(name)[1].lower() in BESIDE:
            continue
        try:
            with open_regular(folder / name) as file:
                key, picture = content_key(file), decode(file, MIN_SIDE)
        except Refusal as refusal:
            log.info(f"{printable(name)} is not used: {refusal.detail or refusal.reason.value}.")
            continue
        category = name.split("/")[-2] if "/" in name else folder.resolve().name
        used.append(name)
        keys.append(key)
        captions.append(
            caption_files.beside(folder / name) or listed.get(name) or template.format(category=readable(category))
        )
        pictures.append(square(picture, size))
    if not pictures:
        raise DataError(f"The folder {folder} holds no picture.")
    unused = sorted(set(listed) - set(names))
    if unused:
        raise UserError(f"{folder / CAPTIONS} names {unused[0]}, which is not there.")
    return Captioned(used, keys, captions, np.stack(pictures))


def square(picture: np.ndarray, size: int) -> np.ndarray:
    """The square in the middle of a picture uint8 `[h, w, 3]`, `[size, size, 3]`."""
    side = min(picture.shape[:2])
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    cut = picture[top : top + side, left : left + side]
    if side < size:
        return np.asarray(Image.fromarray(cut).resize((size, size), Image.Resampling.BICUBIC))
    return resized(size, cut)
