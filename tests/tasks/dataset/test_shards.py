"""Shards: reproducible bytes, the same samples by index and by stream, damage is detected."""

import copy
import hashlib
import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tasks.common import files
from tasks.common.errors import DataError
from tasks.common.images import encode_png
from tasks.dataset import shard_index, shards
from tasks.dataset.shards import ShardDataset
from tests.support.project import PROJECT

GONE = object()


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
    assert set(names) == {
        "index.json", *(f"{split}.{kind}" for split in ("train", "val", "test") for kind in ("jsonl", "offsets")),
        *(f"train-{i:06d}.tar" for i in range(3)), "val-000000.tar",
    }  # fmt: skip
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_read_by_index_equals_stream(tmp_path: Path) -> None:
    import webdataset as wds

    _write(tmp_path / "s")
    dataset = ShardDataset(tmp_path / "s", "train")
    urls = [str(tmp_path / "s" / f"train-{i:06d}.tar") for i in range(3)]
    streamed = list(wds.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in streamed] == list(dataset.keys) == [key for key, _ in _samples(7)]
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
    lines = tmp_path / "s/val.jsonl"
    lines.write_bytes(lines.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"val\.jsonl is damaged"):
        ShardDataset(tmp_path / "s", "val")
    index = tmp_path / "s/index.json"
    index.write_bytes(index.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"index\.json is damaged"):
        ShardDataset(tmp_path / "s", "train")


def test_duplicate_and_dotted_keys_are_refused_and_leave_the_old_folder(tmp_path: Path) -> None:
    _write(tmp_path / "s")
    before = (tmp_path / "s/index.json").read_bytes()
    for bad in (_samples(2) + _samples(1), [("a.b", _samples(1)[0][1])]):
        for samples_per_shard in (10, 2):  # the same key in one shard, and in two
            with pytest.raises(ValueError, match="not unique"):
                shards.write(tmp_path / "s", {"train": bad}, samples_per_shard, {})
    with pytest.raises(ValueError, match="not unique"):
        shards.write(tmp_path / "s", {"train": _samples(2), "val": _samples(1)}, 10, {})
    assert (tmp_path / "s/index.json").read_bytes() == before


def test_a_subset_has_its_samples_shards_and_an_identity_of_its_own(tmp_path: Path) -> None:
    _write(tmp_path / "s")
    both = ShardDataset(tmp_path / "s", "val", "train")
    keys = [key for key, _ in (*_samples(3, 100), *_samples(7))]
    assert list(both.keys) == keys and both.keys[-1] == keys[-1] and both.keys[2:5] == keys[2:5]
    some = both.take([9, 0, 4]).take(np.array([2, 0]))
    assert list(some.keys) == [keys[4], keys[9]] and [meta["i"] for meta in some.metas()] == [1, 6]
    assert list(some.digests()) == ["train-000000.tar", "train-000002.tar"]
    assert list(both.take([]).keys) == [] and both.take([]).digests() == {}
    assert both.pictured() is both
    identities = [part.identity() for part in (both, some, both.take([9, 4]), ShardDataset(tmp_path / "s", "train"))]
    assert len(set(identities)) == 4
    assert both.take(range(len(both))).identity() == both.identity()
    with pytest.raises(IndexError):
        both.take([0, len(both)])
    copied = copy.deepcopy(some)  # as when it is sent to another process
    assert list(copied.keys) == list(some.keys) and copied.read(1, "png") == some.read(1, "png")


def test_samples_without_a_picture_are_left_out(tmp_path: Path) -> None:
    samples = [(key, members if i % 2 else {"json": members["json"]}) for i, (key, members) in enumerate(_samples(7))]
    shards.write(tmp_path / "s", {"train": samples}, 3, {})
    assert [meta["i"] for meta in ShardDataset(tmp_path / "s", "train").pictured().metas()] == [1, 3, 5]


def test_few_tars_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "OPEN", 2)
    shards.write(tmp_path / "s", {"train": _samples(9)}, 1, {})
    dataset = ShardDataset(tmp_path / "s", "train")
    assert [dataset.meta(i)["i"] for i in (*range(9), 3, 0)] == [*range(9), 3, 0]
    tars = {str(path) for path in (tmp_path / "s").glob("*.tar")}
    assert len([file for file in psutil.Process().open_files() if file.path in tars]) == 2


def test_an_index_of_an_older_version_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "s")
    (tmp_path / "s/index.json").write_text(json.dumps({"format": 1, "about": {}, "shards": [], "samples": {}}))
    with pytest.raises(DataError, match="older version"):
        ShardDataset(tmp_path / "s", "train")


@pytest.mark.parametrize("name", ["../train.tar", "/etc/passwd", "..", ""])
def test_an_index_names_no_files_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    _write(tmp_path / "s")
    whole = files.read_json(tmp_path / "s/index.json")
    shards = [{**shard, "name": name} for shard in whole["shards"]]
    splits = {**whole["splits"], name: whole["splits"]["train"]}
    for wrong in ({**whole, "shards": shards}, {**whole, "splits": splits}):
        files.write_json(tmp_path / "s/index.json", wrong)
        with pytest.raises(DataError, match="outside"):
            ShardDataset(tmp_path / "s", "train")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((), []),
        ((), None),
        (("about",), []),
        (("splits",), None),
        (("splits",), ["train"]),
        (("splits", "train"), None),
        (("splits", "train", "samples"), "7"),
        (("splits", "train", "samples"), -1),
        (("splits", "train", "sha256"), None),
        (("splits", "train", "members"), ["png"]),
        (("shards",), {}),
        (("shards", 0), "train-000000.tar"),
        (("shards", 0, "name"), 1),
        (("shards", 0, "split"), []),
        (("shards", 0, "samples"), 1.5),
        (("shards", 0, "bytes"), None),
        (("shards", 0, "sha256"), 1),
        (("about",), GONE),
        (("shards",), GONE),
        (("splits",), GONE),
        (("splits", "val", "sha256"), GONE),
        (("shards", 0, "name"), GONE),
        (("shards", 0, "bytes"), GONE),
    ],
)
def test_an_index_with_a_wrong_or_missing_part_is_refused(
    tmp_path: Path, place: tuple[str | int, ...], value: object
) -> None:
    _write(tmp_path / "s")
    whole = {"index": files.read_json(tmp_path / "s/index.json")}
    *outer, last = "index", *place
    part: Any = whole
    for key in outer:
        part = part[key]
    if value is GONE:
        del part[last]
    else:
        part[last] = value
    files.write_json(tmp_path / "s/index.json", whole["index"])
    with pytest.raises(DataError):
        ShardDataset(tmp_path / "s", "train")


@pytest.mark.parametrize("offset", [0, 1, 2**63, 2**64 - 1])
def test_wrong_offsets_are_told(tmp_path: Path, offset: int) -> None:
    _write(tmp_path / "s")
    offsets = np.fromfile(tmp_path / "s/train.offsets", shard_index.OFFSET)
    offsets[3] = offset
    offsets.tofile(tmp_path / "s/train.offsets")
    dataset = ShardDataset(tmp_path / "s", "train")
    assert dataset.key(0) and dataset.key(4)
    for row in (2, 3):
        with pytest.raises(DataError):
            dataset.key(row)


MEMORY = """
import sys, tracemalloc
from pathlib import Path
from tasks.dataset import shards

def peak(n):
    tracemalloc.start()
    samples = ((f"{i:08d}", {"json": b"{}"}) for i in range(n))
    shards.write(Path(sys.argv[1]) / str(n), {"train": samples}, 100, {})
    dataset = shards.ShardDataset(Path(sys.argv[1]) / str(n), "train")
    assert sum(1 for _ in dataset.keys) == n and dataset.pictured().keys[:] == []
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return used

peak(1)  # modules that are imported when they are first used
print(peak(300), peak(1500))
"""


def test_writing_and_reading_take_constant_memory(tmp_path: Path) -> None:
    """Beyond what one shard takes, a sample takes less than its key. No other thread shares the process."""
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    told = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    few, many = (int(number) for number in told.split())
    assert many - few < 40 * (1500 - 300)


@pytest.mark.parametrize("collide", [False, True])
def test_repeated_keys_are_found_in_several_passes(
    collide: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_index, "AT_ONCE", 16)
    if collide:  # different keys with the same digest are no repetition
        monkeypatch.setattr(shard_index, "_digest", lambda key: int(key) % 50)
    keys = [str(i) for i in range(100)]
    for repeated in (None, "73"):
        added = [*keys, repeated] if repeated else keys
        unique = shard_index.UniqueKeys(tmp_path)
        for key in added:
            unique.add(key)
        assert unique.repeated(iter(added)) == repeated
        unique.close()
    assert list(tmp_path.iterdir()) == []
