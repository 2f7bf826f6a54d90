"""Shards: reproducible bytes, the same samples by index and by stream, damage is detected."""

import hashlib
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest

from tasks.common.errors import DataError
from tasks.common.images import encode_png
from tasks.dataset import shards
from tasks.dataset.shards import ShardDataset


def _samples(n: int, offset: int = 0) -> list[tuple[str, dict[str, bytes]]]:
    rng = np.random.default_rng(offset)
    return [
        (
            f"{offset + i:016x}",
            {
                "png": encode_png(rng.integers(0, 256, (16, 16, 3), np.uint8)),
                "pose.npy": shards.encode_pose(rng.normal(size=(33, 3))),
                "json": shards.encode_json({"category": "t", "i": i}),
            },
        )
        for i in range(n)
    ]


def _write(folder: Path) -> dict[str, object]:
    return shards.write(folder, {"train": _samples(7), "val": _samples(3, 100), "test": []}, 3, {"parts": ["p"]})


def test_written_twice_is_byte_identical(tmp_path: Path) -> None:
    _write(tmp_path / "a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        _write(tmp_path / "b")
    time.tzset()
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["index.json", *(f"train-{i:06d}.tar" for i in range(3)), "val-000000.tar"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_read_by_index_equals_stream(tmp_path: Path) -> None:
    import webdataset as wds

    _write(tmp_path / "s")
    dataset = ShardDataset(tmp_path / "s", "train")
    urls = [str(tmp_path / "s" / f"train-{i:06d}.tar") for i in range(3)]
    streamed = list(wds.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in streamed] == dataset.keys == [key for key, _ in _samples(7)]
    for i, sample in enumerate(streamed):
        for extension in ("png", "pose.npy", "json"):
            assert sample[extension] == dataset.read(i, extension) == _samples(7)[i][1][extension]
    expected = np.stack([np.load(io.BytesIO(members["pose.npy"])) for _, members in _samples(7)])
    assert np.array_equal(dataset.poses(), expected)
    assert dataset.meta(4)["i"] == 4
    assert dataset.categories() == ["t"]
    assert len(ShardDataset(tmp_path / "s", "test")) == 0


def test_pictures_are_reduced_by_area(tmp_path: Path) -> None:
    _write(tmp_path / "s")
    dataset = ShardDataset(tmp_path / "s", "train")
    whole = dataset.picture(0).astype(float)
    reduced = whole.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3))
    assert np.array_equal(dataset.pictures_uint8(8)[0], np.floor(reduced + 0.5))


def test_the_index_matches_the_files(tmp_path: Path) -> None:
    _write(tmp_path / "s")
    for shard in json.loads((tmp_path / "s/index.json").read_bytes())["shards"]:
        data = (tmp_path / "s" / shard["name"]).read_bytes()
        assert len(data) == shard["bytes"] and hashlib.sha256(data).hexdigest() == shard["sha256"]


def test_damage_is_detected(tmp_path: Path) -> None:
    _write(tmp_path / "s")
    tar = tmp_path / "s/train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DataError, match=r"train-000001\.tar is damaged"):
        ShardDataset(tmp_path / "s", "train").verify()
    tar.write_bytes(data[:-10])
    with pytest.raises(DataError, match="does not match its index"):
        ShardDataset(tmp_path / "s", "train")
    with pytest.raises(DataError, match="no split 'dev'"):
        ShardDataset(tmp_path / "s", "dev")
    index = tmp_path / "s/index.json"
    index.write_bytes(index.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"index\.json is damaged"):
        ShardDataset(tmp_path / "s", "train")


def test_duplicate_and_dotted_keys_are_refused_and_leave_the_old_folder(tmp_path: Path) -> None:
    _write(tmp_path / "s")
    before = (tmp_path / "s/index.json").read_bytes()
    for bad in (_samples(2) + _samples(1), [("a.b", _samples(1)[0][1])]):
        with pytest.raises(ValueError, match="not unique or has a dot"):
            shards.write(tmp_path / "s", {"train": bad}, 10, {})
    assert (tmp_path / "s/index.json").read_bytes() == before
