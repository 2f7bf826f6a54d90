"""Candidates that FAISS proposes are those of the exact search, but for a few."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.similarity import candidates as search
from tasks.similarity.candidates import candidates
from tasks.similarity.gallery import Gallery, gallery

COUNT, CUT = 1500, 200


@pytest.fixture(scope="module")
def originals() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (COUNT, 9, 9), np.uint8)
    return [np.asarray(Image.fromarray(one).resize((48, 48), Image.Resampling.BICUBIC)) for one in coarse]


@pytest.fixture(scope="module")
def references(originals: list[np.ndarray]) -> Gallery:
    return gallery(originals)


@pytest.fixture(scope="module")
def cut(originals: list[np.ndarray]) -> Gallery:
    """Parts of some of them, every other one mirrored."""
    parts = [picture[3:, 2:] for picture in originals[:CUT]]
    return gallery(part[:, ::-1] if i % 2 else part for i, part in enumerate(parts))


def test_the_original_of_a_part_is_proposed(references: Gallery, cut: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    exact, starts = candidates(cut, references)
    assert torch.equal(exact[:, 0], torch.arange(CUT))
    monkeypatch.setattr(search, "EXACT", 500)
    proposed, proposed_starts = candidates(cut, references)
    assert float((proposed[:, 0] == exact[:, 0]).float().mean()) > 0.98
    same = proposed[:, 0] == exact[:, 0]
    assert torch.equal(proposed_starts[same, 0], starts[same, 0])
    again = candidates(cut, gallery_again(references))
    assert torch.equal(again[0], proposed) and torch.equal(again[1], proposed_starts)


def gallery_again(one: Gallery) -> Gallery:
    """The same pictures, without an index."""
    return Gallery(one.luma, one.extent, one.levels)


def test_own_groups_are_no_candidates_however_large_they_are(
    references: Gallery, cut: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "EXACT", 500)
    groups = torch.arange(COUNT) // 500
    own = torch.zeros(CUT, 2, dtype=torch.int64)
    own[:, 1] = 1
    index, _ = candidates(cut, references, groups=(own, groups))
    assert (index >= 0).all() and (groups[index] == 2).all()
    everything = torch.arange(3).expand(CUT, 3)
    assert (candidates(cut, references, groups=(everything, groups))[0] == -1).all()


def test_a_reference_that_looks_different_is_no_candidate(
    references: Gallery, cut: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = candidates(cut, references, least=0.7)[0]
    monkeypatch.setattr(search, "EXACT", 500)
    proposed = candidates(cut, references, least=0.7)[0]
    assert (exact >= 0).sum(1).tolist() == pytest.approx((proposed >= 0).sum(1).tolist(), abs=1)
    assert (proposed[:, -1] == -1).all()


def test_no_queries_have_no_candidates(references: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    for exact in (COUNT, 500):
        monkeypatch.setattr(search, "EXACT", exact)
        index, starts = candidates(references.rows(slice(0, 0)), references)
        assert index.shape == (0, search.CANDIDATES) and starts.shape == (0, search.CANDIDATES, 2, 4)


def test_an_index_of_few_pictures_prints_no_warning(references: Gallery, capfd: pytest.CaptureFixture[str]) -> None:
    assert gallery_again(references.rows(slice(0, 300))).inverted.ntotal == 300
    assert "".join(capfd.readouterr()) == ""
