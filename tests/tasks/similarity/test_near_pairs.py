"""Near pairs are found once, and a region of them can be compared by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tasks.similarity.alignment import correlation_within
from tasks.similarity.gallery import Gallery, gallery
from tasks.similarity.near_pairs import NearPairs, near_pairs
from tasks.synthetic import stage as mannequin

COUNT = 12


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [Image.fromarray(mannequin.picture(6, i, 112).image) for i in range(COUNT)]


@pytest.fixture(scope="module")
def copies(pictures: list[Image.Image]) -> list[Image.Image]:
    """Parts of the pictures, every other one mirrored."""
    parts = [picture.crop((0, 8, 104, 112)) for picture in pictures]
    return [ImageOps.mirror(part) if i % 2 else part for i, part in enumerate(parts)]


def made_ready(pictures: list[Image.Image]) -> Gallery:
    return gallery(np.asarray(picture) for picture in pictures)


def numbers(pairs: NearPairs) -> list[tuple[int, int]]:
    return sorted((min(pair), max(pair)) for pair in zip(pairs.query.tolist(), pairs.reference.tolist(), strict=True))


def test_among_themselves_each_pair_is_found_once(pictures: list[Image.Image], copies: list[Image.Image]) -> None:
    both = made_ready([*pictures, *copies])
    found = near_pairs(both, both, 0.15)
    assert numbers(found) == [(i, COUNT + i) for i in range(COUNT)]
    mirrored = torch.minimum(found.query, found.reference) % 2 == 1
    assert torch.equal(found.mirrored, mirrored)
    assert float(found.distance.max()) < 0.1


def test_pictures_of_one_group_are_no_pair(pictures: list[Image.Image], copies: list[Image.Image]) -> None:
    both = made_ready([*pictures, *copies])
    group = torch.arange(2 * COUNT) % COUNT
    group[0] = 99
    assert numbers(near_pairs(both, both, 0.15, (group, group))) == [(0, COUNT)]


def test_copies_are_found_among_the_pictures_that_are_looked_for(
    pictures: list[Image.Image], copies: list[Image.Image]
) -> None:
    wanted = made_ready([pictures[i] for i in (7, 2)])
    found = near_pairs(made_ready(copies), wanted, 0.15)
    assert sorted(zip(found.query.tolist(), found.reference.tolist(), strict=True)) == [(2, 1), (7, 0)]
    assert len(near_pairs(made_ready([]), wanted, 0.15).query) == 0
    assert len(near_pairs(wanted, made_ready([]), 0.15).query) == 0


def test_another_person_in_the_same_room_differs_inside_the_person_only() -> None:
    rng = np.random.default_rng(0)
    rooms, persons = rng.integers(0, 256, (4, 24, 24, 3), np.uint8), rng.integers(0, 256, (4, 10, 6, 3), np.uint8)

    def shown(room: int, person: int) -> Image.Image:
        large = np.array(Image.fromarray(rooms[room]).resize((96, 96), Image.Resampling.BICUBIC))
        large[20:60, 50:74] = np.asarray(Image.fromarray(persons[person]).resize((24, 40), Image.Resampling.BICUBIC))
        return Image.fromarray(large)

    one = made_ready([shown(0, 0), shown(1, 1)])
    other = made_ready([ImageOps.mirror(shown(0, 2)), ImageOps.mirror(shown(1, 1))])
    found = near_pairs(one, other, 0.4)
    assert numbers(found) == [(0, 0), (1, 1)]
    assert float(found.distance[0]) < 0.3
    person = torch.tensor([[50 / 48 - 1, 20 / 48 - 1, 74 / 48 - 1, 60 / 48 - 1]]).expand(2, 4)
    inside = correlation_within(one, other, found.query, found.reference, found.mirrored, found.transform, person)
    assert float(inside[0]) < 0.4 and float(inside[1]) > 0.98
    empty = correlation_within(
        one, other, found.query, found.reference, found.mirrored, found.transform, person * 0 + 3
    )
    assert empty.tolist() == [0, 0]
