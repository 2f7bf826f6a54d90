"""Near-copies share a group and a group shares a split."""

from collections import Counter

import imagehash
import numpy as np
from PIL import Image, ImageFilter

from tasks.dataset.groups import group, near_pairs, split_of


def _hash(image: Image.Image) -> int:
    return int(str(imagehash.phash(image)), 16)


def _picture(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    return Image.fromarray(noise).resize((160, 160), Image.Resampling.BICUBIC)


def test_mirrored_and_reencoded_copies_join_their_original_and_nobody_else() -> None:
    pictures = [_picture(seed) for seed in range(40)]
    pictures.append(pictures[3].transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    pictures.append(pictures[7].resize((97, 97)).filter(ImageFilter.GaussianBlur(0.7)))
    hashes = np.array([_hash(p) for p in pictures], np.uint64)
    mirrored = np.array([_hash(p.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) for p in pictures], np.uint64)
    assert sorted(near_pairs(hashes, mirrored, 3)) == [(3, 40), (7, 41)]
    keys = [f"{i:03d}" for i in range(42)]
    groups = group(keys, [f"{k}.png" for k in keys], hashes, mirrored, 3)
    assert groups[40] == "003" and groups[41] == "007" and groups[:40] == keys[:40]


def test_groups_are_transitive_and_follow_the_source() -> None:
    chain = np.array([0b0, 0b111, 0b111111, 0xFFFF << 40], np.uint64)
    groups = group(list("dcba"), ["w", "x", "y", "z"], chain, ~chain, 3)
    assert groups == ["b", "b", "b", "a"]
    far = np.array([0, 2**40 - 1], np.uint64)
    assert group(["b", "a"], ["video", "video"], far, far, 3) == ["a", "a"]


def test_split_fractions_and_stability() -> None:
    names = [f"{i:x}" for i in range(20_000)]
    first = {name: split_of(name, 0, 0.2, 0.1) for name in names}
    counts = Counter(first.values())
    for split, fraction in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        assert abs(counts[split] / 20_000 - fraction) < 4 * (fraction * (1 - fraction) / 20_000) ** 0.5
    other = sum(split_of(name, 1, 0.2, 0.1) != split for name, split in first.items())
    assert other > 8000
