"""The distance of two pictures counts the persons of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tasks.common import blocks
from tasks.dataset import near_duplicates
from tasks.dataset.near_duplicates import WHOLE, Pictures, duplicates, moved, with_persons
from tasks.similarity import candidates
from tasks.similarity.gallery import gallery
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


def test_duplicates_have_the_same_bits_whoever_searched_for_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    originals = [rng.integers(0, 256, (12, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(40)]
    shown = [*originals, *(picture[4:, 2:] for picture in originals), *(picture[:, ::-1] for picture in originals[:20])]
    these = Pictures(
        np.arange(100), np.arange(100), gallery(shown), torch.tensor([[-0.5, -0.5, 0.5, 0.5]]).repeat(100, 1),
        torch.arange(100),
    )  # fmt: skip
    whole = near_pairs(these.gallery, these.gallery, WHOLE * 0.17, (these.source, these.source))
    expected = duplicates(these, 0.17)
    assert torch.equal(expected.query, whole.query) and len(whole.query) >= 40
    monkeypatch.setattr(candidates, "_COSINES", 100 * 7 * 16)  # sixteen queries at a time
    assert candidates.together(100) == 16
    expected = duplicates(these, 0.17)
    monkeypatch.setattr(near_duplicates, "BLOCK", 32)
    for rank in range(3):
        with pytest.raises(blocks.ShareDone) as done, blocks.slice_of(rank, 3, tmp_path):
            duplicates(these, 0.17)
        assert done.value.total == 4
    monkeypatch.setenv(blocks.BLOCKS, str(tmp_path))
    monkeypatch.setattr(near_duplicates, "candidates", None)
    assert all(torch.equal(*pair) for pair in zip(duplicates(these, 0.17), expected, strict=True))
