"""Fingerprints, searches and groups: copies are found, different pictures are not."""

from __future__ import annotations

import io

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tasks.common import skeleton
from tasks.dataset import dedup
from tasks.dataset.dedup import SAME_PICTURE, same_picture
from tasks.dataset.groups import Near, group, join, join_near, thin
from tasks.extract.perceptual_hash import SIDE, bits, cosine, fingerprint, mirrored
from tasks.synthetic import stage as mannequin

COUNT = 24


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Figures of twelve kinds in similar rooms, two of each."""
    return [Image.fromarray(mannequin.picture(3, i, 128).image) for i in range(COUNT)]


def prints(images: list[Image.Image]) -> np.ndarray:
    return np.array([fingerprint(np.asarray(image)) for image in images])


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def pairs(found) -> set[tuple[int, int]]:
    return {(int(i), int(j)) for rows, others in found for i, j in zip(rows, others, strict=True)}


def some_poses(n: int, seed: int = 0, spread: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    pose = rng.normal(size=(33, 3)) + rng.normal(scale=spread, size=(n, 33, 3))
    pose[:, [11, 12]] += [0, -3, 0]
    return skeleton.normalise(pose).astype(np.float32)


def test_planted_copies_are_found_and_different_figures_in_one_room_are_not(pictures):
    kinds = {
        "as is": pictures,
        "encoded again": [jpeg(image, 40) for image in pictures],
        "reduced": [image.resize((70, 70), Image.Resampling.LANCZOS) for image in pictures],
        "mirrored": [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in pictures],
        "brighter": [ImageEnhance.Brightness(image).enhance(1.3) for image in pictures],
    }
    assert pairs(same_picture(prints(pictures))) == set()
    for kind, copies in kinds.items():
        found = pairs(same_picture(np.concatenate([prints(pictures), prints(copies)])))
        assert found == {(i, COUNT + i) for i in range(COUNT)}, kind


def test_the_hash_search_finds_what_comparing_all_pairs_finds():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(40, 256)) * np.linspace(3, 0.3, 256)
    near = base[rng.integers(0, 40, 300)] + rng.normal(size=(300, 256)) * np.linspace(3, 0.3, 256) * 0.35
    # without the copies' own copies: 340 rows whose cosines lie all around the threshold
    x = np.concatenate([base, near])
    x = np.rint(x * (127 / np.abs(x).max(axis=1, keepdims=True))).astype(np.int8)
    unit = x / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    reflected = mirrored(x) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    both = np.maximum(unit @ unit.T, reflected @ unit.T)
    expected = {(i, j) for i, j in np.argwhere(np.triu(both, 1) >= SAME_PICTURE).tolist()}
    assert len(expected) > 100
    assert pairs(same_picture(x)) == expected


def test_the_fingerprint_of_a_mirror_image_differs_by_signs_only(pictures):
    square = [image.resize((SIDE, SIDE)) for image in pictures]  # reducing would round
    reflected = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in square]
    assert np.array_equal(mirrored(prints(square)), prints(reflected))
    assert np.array_equal(mirrored(mirrored(prints(square))), prints(square))


def test_the_hash_is_that_of_imagehash_up_to_its_threshold(pictures):
    ours = np.unpackbits(bits(prints(pictures)), axis=1).reshape(-1, 16, 16)
    for image, mine in zip(pictures, ours, strict=True):
        theirs = imagehash.phash(image, hash_size=16, highfreq_factor=2).hash  # above the median instead of above 0
        assert (mine != theirs).mean() < 0.1


def test_a_single_colour_and_a_missing_picture_are_copies_of_nothing():
    flat = prints([Image.new("RGB", (50, 40), (c, c, c)) for c in (0, 128, 255)])
    assert not flat.any()
    assert pairs(same_picture(flat)) == set()
    assert cosine(flat, flat).tolist() == [0, 0, 0]


def test_the_block_size_does_not_matter(pictures, monkeypatch):
    x = np.concatenate([prints(pictures)] * 2)
    whole = pairs(same_picture(x))
    monkeypatch.setattr(dedup, "_BLOCK", 5)
    assert pairs(same_picture(x)) == whole


def test_groups_are_transitive_and_named_by_their_smallest_key():
    n = 7
    far = np.random.default_rng(0).integers(-127, 128, (n, 256)).astype(np.int8)
    far[5] = far[3]
    keys = list("gfedcba")
    videos = ["v", "v", "", "", "w", "w", ""]
    near = Near(np.array([6]), np.array([2]), np.array([0.05]))
    groups, joins = group(keys, [videos], far, near, 0.2, np.arange(n))
    # 3 shares a picture with 5, and 5 a video with 4; 2 and 6 are near
    assert groups == ["f", "f", "a", "b", "b", "b", "a"]
    assert joins == {"same_name": 2, "same_picture": 1, "near_duplicate": 1}


def joined(
    distances: dict[tuple[int, int], float], n: int, groups: list[int] | None = None, small: int = 2
) -> list[set[int]]:
    """The groups of more than one row after joining pairs with these distances at a cut of 0.2."""
    rows, others = np.array(list(distances), np.int64).reshape(-1, 2).T
    near = Near(rows, others, np.array(list(distances.values())))
    found = join_near(np.arange(n) if groups is None else np.array(groups), near, 0.2, np.arange(n), small)
    return [set(rows) for rows in (np.flatnonzero(found == g).tolist() for g in range(n)) if len(rows) > 1]


def test_certain_pairs_chain_and_pairs_above_the_cut_join_nothing():
    assert joined({(0, 1): 0.1, (1, 2): 0.05, (2, 3): 0.01, (3, 4): 0.21}, 5) == [{0, 1, 2, 3}]


def test_doubtful_pairs_do_not_chain():
    assert joined({(i, i + 1): 0.15 + 0.001 * i for i in range(7)}, 8) == [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
    # two frames of a video and one doubtful picture
    assert joined({(1, 2): 0.15}, 3, [0, 0, 1]) == [{0, 1}]


def test_doubtful_pairs_chain_up_to_a_small_group():
    """Three frames of one scene, of which the first and the last are not near."""
    chain = {(i, i + 1): 0.15 + 0.001 * i for i in range(7)}
    assert joined(chain, 8, small=4) == [{0, 1, 2, 3}, {4, 5, 6, 7}]
    assert joined({(0, 1): 0.12, (1, 2): 0.15}, 3, small=4) == [{0, 1, 2}]


def test_a_doubtful_pair_joins_where_a_second_pair_supports_it():
    assert joined({(0, 1): 0.02, (0, 2): 0.15, (1, 2): 0.18}, 3) == [{0, 1, 2}]
    # 2 and 3 each have one pair with the first two; united they support each other
    assert joined({(0, 1): 0.02, (0, 2): 0.15, (1, 3): 0.16, (2, 3): 0.17}, 4) == [{0, 1, 2, 3}]


def test_joining_pairs_block_by_block_gives_the_sets_that_the_pairs_connect():
    rng = np.random.default_rng(0)
    i, j = rng.integers(0, 200, (2, 150))
    groups = np.arange(200)
    for k in range(0, 150, 40):
        groups = join(groups, i[k : k + 40], j[k : k + 40])
    expected = [{n} for n in range(200)]
    for a, b in zip(i.tolist(), j.tolist(), strict=True):
        united = expected[a] | expected[b]
        for n in united:
            expected[n] = united
    assert all(set(np.flatnonzero(groups == groups[n]).tolist()) == expected[n] for n in range(200))
    assert set(groups.tolist()) == set(range(len({min(members) for members in expected})))


def test_of_a_group_each_pose_is_kept_once_and_the_best_file_of_it():
    poses = some_poses(4, spread=0.5)
    rows = np.concatenate([poses, poses[:2] + 0.01])
    rank = np.array([3, 1, 2, 4, 0, 5])
    repeats, above = thin(["g"] * 6, rows, rank, cap=10)
    assert (repeats, above) == ([0, 5], [])
    assert thin(["a", "b", "c", "d", "e", "f"], rows, rank, cap=1) == ([], [])


def test_above_the_cap_the_most_different_poses_stay():
    line = np.repeat(some_poses(1), 11, axis=0)
    line[:, 15, 0] += np.linspace(0, 11, 11, dtype=np.float32)  # a wrist that moves away
    repeats, above = thin(["video"] * 11, line, np.arange(11), cap=3)
    assert repeats == []
    assert sorted(set(range(11)) - set(above)) == [0, 5, 10]
