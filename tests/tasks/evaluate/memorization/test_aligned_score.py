"""Copy scores after alignment: which disguises are undone, groups, and the overlay."""

import numpy as np
from PIL import Image

from tasks.certify.folder import letterboxed
from tasks.evaluate.memorization.aligned_score import AlignedScorer, as_gallery, laid_over
from tests.support.photos import photo

TRAIN = np.stack([letterboxed(48, photo(seed)) for seed in range(40)])
GROUPS = np.arange(40)


def cut(seed: int, box: tuple[int, int, int, int], mirrored: bool = False) -> np.ndarray:
    picture = Image.fromarray(photo(seed)).resize((96, 72), Image.Resampling.BICUBIC, box=box)
    array = np.asarray(picture)[:, ::-1] if mirrored else np.asarray(picture)
    return letterboxed(48, np.ascontiguousarray(array))


def test_a_crop_is_near_its_original_and_to_nothing_else() -> None:
    items = np.stack([cut(5, (4, 3, 92, 69)), cut(6, (0, 0, 88, 66), mirrored=True)])
    scores = AlignedScorer(TRAIN, GROUPS).score(items)
    assert scores.first.tolist() == [5, 6] and scores.invariance.tolist() == [0, 1]
    assert (scores.first_distance < 0.15).all() and (scores.ratio < 0.3).all()
    unrelated = AlignedScorer(TRAIN, GROUPS).score(np.stack([letterboxed(48, photo(99))]))
    assert unrelated.ratio[0] > 0.6


def test_the_second_is_of_another_group_however_large_the_group_is() -> None:
    """Ten copies of one picture in the training set: more than are aligned at the finest level."""
    many = np.concatenate([TRAIN[:20], *[TRAIN[5:6]] * 10])
    groups = np.concatenate([np.arange(20), np.full(10, 5)])
    scores = AlignedScorer(many, groups).score(TRAIN[5:6])
    assert groups[scores.first[0]] == 5 and groups[scores.second[0]] != 5
    assert scores.first_distance[0] < 1e-3 < 0.3 < scores.second_distance[0]
    left_out = AlignedScorer(many, groups).score(TRAIN[5:6], np.array([5]))
    assert 5 not in (groups[left_out.first[0]], groups[left_out.second[0]])


def test_blocks_do_not_change_a_score() -> None:
    items = np.concatenate([TRAIN] * 8)[:300]  # two blocks
    scorer = AlignedScorer(TRAIN, GROUPS)
    together, alone = scorer.score(items, np.arange(300) % 40), scorer.score(items[290:], np.arange(290, 300) % 40)
    np.testing.assert_allclose(together.ratio[290:], alone.ratio, rtol=1e-4)


def test_the_overlay_shows_the_original() -> None:
    original = TRAIN[5]
    seen = laid_over(cut(5, (4, 3, 92, 69), mirrored=True), original)
    inside = (seen[..., 3] > 0.9) & (original[..., 3] == 255)
    assert inside.mean() > 0.5
    difference = np.abs(seen[..., :3] - original[..., :3] / 255)[inside].mean()
    before = np.abs(cut(5, (4, 3, 92, 69), mirrored=True)[..., :3] / 255 - original[..., :3] / 255).mean()
    assert difference < 0.3 * before


def test_pictures_of_any_kind_become_the_same_gallery() -> None:
    square = np.asarray(Image.fromarray(photo(3)).resize((48, 48)))
    whole = np.dstack([square, np.full((48, 48), 255, np.uint8)])
    galleries = [as_gallery(items[None]) for items in (square, square.astype(np.float32) / 255, whole)]
    assert all((gallery.luma == galleries[0].luma).all() for gallery in galleries)
    assert as_gallery(TRAIN[:1]).extent[0].tolist() == [1.0, 0.75]
