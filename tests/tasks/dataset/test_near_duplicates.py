"""The distance of two pictures counts the persons of both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tasks.dataset.near_duplicates import moved, with_persons
from tasks.similarity.alignment import gallery
from tasks.similarity.near_pairs import near_pairs

SIDE = 96


def scene(person: tuple[int, int] | None) -> Image.Image:
    """One room, with somebody at a place or with nobody."""
    rng = np.random.default_rng(0)
    room, body = (rng.integers(0, 256, shape, np.uint8) for shape in ((24, 24, 3), (10, 6, 3)))
    picture = np.array(Image.fromarray(room).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    if person:
        x, y = person
        picture[y : y + 40, x : x + 24] = np.asarray(Image.fromarray(body).resize((24, 40), Image.Resampling.BICUBIC))
    return Image.fromarray(picture)


def box(x: int, y: int) -> torch.Tensor:
    return torch.tensor([[x, y, x + 24, y + 40]]) / (SIDE / 2) - 1


def test_a_person_who_is_in_one_picture_only_counts_whichever_is_the_query() -> None:
    here, nobody = gallery([np.asarray(scene((60, 40)))]), gallery([np.asarray(ImageOps.mirror(scene(None)))])
    elsewhere = box(SIDE - 24 - 4, 4)  # a detector's mistake: there is nobody in this box
    distances = []
    for queries, references, boxes in (
        (here, nobody, (box(60, 40), elsewhere)),
        (nobody, here, (elsewhere, box(60, 40))),
    ):
        pairs = near_pairs(queries, references, 0.5)
        assert len(pairs.query) == 1 and bool(pairs.mirrored)
        distances.append(float(with_persons(queries, references, pairs, boxes).distance))
    assert min(distances) > 0.3
    assert distances[0] == pytest.approx(distances[1], abs=0.05)


def test_a_box_comes_back_to_its_place() -> None:
    here = gallery([np.asarray(scene((60, 40)))])
    part = gallery([np.asarray(ImageOps.mirror(scene((60, 40)).crop((8, 8, SIDE, SIDE))))])
    pairs = near_pairs(part, here, 0.3)
    seen = torch.tensor([[12, 32, 36, 72]]) / 44 - 1  # 8 to the left and above are missing, then it is mirrored
    there = moved(seen, pairs)
    assert there.flatten().tolist() == pytest.approx(box(60, 40).flatten().tolist(), abs=0.06)
    assert moved(there, pairs, back=True).flatten().tolist() == pytest.approx(seen.flatten().tolist(), abs=0.06)
