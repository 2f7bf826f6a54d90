"""Curation: every row is kept or refused with a reason, and groups stay in one split."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tasks.common import files
from tasks.common.errors import DataError
from tasks.common.skeleton import LIMBS
from tasks.config.params import load
from tasks.dataset import curate, dataset_table, shard
from tasks.dataset.dataset_table import Gate
from tasks.dataset.shards import ShardDataset
from tasks.extract.findings import Kind
from tests.support.curation_workspace import PART, motion, part_of, person, picture, write
from tests.support.workspaces import write_params


def curated(root: Path, persons, **changes):
    write(root, persons)
    curate.run(load(write_params(root, **changes)), root)
    return dataset_table.read(root / "data/dataset"), dataset_table.read_gated(root / "data/dataset")


def with_landmarks(number: int, **columns: float):
    row = person(number)
    landmarks = row.landmarks.copy()
    for name, value in columns.items():
        landmarks[list(LIMBS), {"x": 0, "visibility": 3}[name]] = value
    return person(number, landmarks=landmarks)


def test_each_gate_refuses_its_own_rows_and_no_other(tmp_path):
    cut = person(2).landmarks.copy()
    cut[list(LIMBS)[:4], 1] = 1.2
    bad = {
        Gate.LOW_VISIBILITY: with_landmarks(1, visibility=0.69),
        Gate.TRUNCATED: person(2, landmarks=cut),
        Gate.PERSON_TOO_SMALL: person(3, width=40, height=40),
        Gate.BLURRED: person(4, sharpness=49.0),
        Gate.TOO_DARK: person(5, exposure=0.04),
        Gate.TOO_BRIGHT: person(6, exposure=0.96),
    }
    edge = [with_landmarks(11, visibility=0.71), person(14, sharpness=50.0), person(15, exposure=0.05)]
    kept, gated = curated(tmp_path, [*bad.values(), *edge, person(20)])
    assert {row.key: row.reason for row in gated} == {row.key: reason for reason, row in bad.items()}
    assert sorted(kept.key) == sorted(row.key for row in [*edge, person(20)])
    detail = {row.reason: row.detail for row in gated}
    assert detail[Gate.BLURRED] == "49, at least 50.0 variance of the Laplacian"


def test_a_row_has_the_first_reason_of_the_list(tmp_path):
    _, gated = curated(tmp_path, [person(1), person(2), person(3), person(4, sharpness=1.0, exposure=0.0)])
    assert [row.reason for row in gated] == [Gate.BLURRED]


def test_rows_are_conserved(tmp_path):
    rows = [person(i, sharpness=10.0 if i % 5 == 0 else 500.0) for i in range(40)]
    kept, gated = curated(tmp_path, rows)
    assert len(kept) + len(gated) == 40 and not set(kept.key) & {row.key for row in gated}
    summary = files.read_json(tmp_path / "data/dataset/summary.json")
    assert (
        summary["persons_kept"] == len(kept) == sum(summary["splits"].values()) == sum(summary["categories"].values())
    )
    assert summary["gated"] == dict(Counter(row.reason for row in gated)) == {"blurred": 8}
    assert set(kept.split) == {"train", "val", "test"}


def test_frames_of_a_video_and_copies_share_a_group_and_a_split(tmp_path):
    video = [
        person(i, source="clip.mp4", source_kind=Kind.VIDEO, key=f"{'c' * 16}-f{i:05d}", frame=i)
        for i in range(100, 112)
    ]
    copy = person(50, key="f" * 16, source="wild/copy.png", fingerprint=person(7).fingerprint)
    kept, _ = curated(tmp_path, [*(person(i) for i in range(30)), *video, copy])
    group, split = (dict(zip(kept.key, column, strict=True)) for column in (kept.group, kept.split))
    assert {group[row.key] for row in video} == {video[0].key}
    assert group[copy.key] == group[person(7).key] and split[copy.key] == split[person(7).key]
    assert len(set(kept.group)) == 31
    assert all(len({s for g, s in zip(kept.group, kept.split, strict=True) if g == name}) == 1 for name in kept.group)


def test_a_part_of_a_picture_shares_its_group_and_the_cut_can_be_changed(tmp_path):
    copy = part_of(7, 0, 8, 88, world=person(60).world)
    rows = [*(person(i) for i in range(30)), copy]
    kept, _ = curated(tmp_path, rows)
    group = dict(zip(kept.key, kept.group, strict=True))
    assert group[copy.key] == group[person(7).key]
    assert len(set(kept.group)) == 30
    summary = files.read_json(tmp_path / "data/dataset/summary.json")
    assert summary["joins"] == {"same_name": 0, "same_picture": 0, "near_duplicate": 1}
    (pair,) = [pair for pair in summary["pairs_near_the_cut"] if pair["one_group"]]
    assert {pair["key"], pair["other"]} == {copy.key, person(7).key} and pair["distance"] < 0.1
    kept, _ = curated(tmp_path, rows, curate__near_duplicate=0.0)
    assert len(set(kept.group)) == 31


def test_a_repeated_pose_and_the_cap_leave_rows_out_with_a_reason(tmp_path):
    same = person(200)
    video = [
        person(i, source="clip.mp4", source_kind=Kind.VIDEO, key=f"{'c' * 16}-f{i:05d}", frame=i)
        for i in range(100, 112)
    ]
    still = [person(200, key=f"{'d' * 16}-{i}", source="still.png", world=same.world + 0.001 * i) for i in range(3)]
    kept, gated = curated(tmp_path, [person(1), person(2), person(3), *video, *still], curate__group_cap=5)
    assert Counter(row.reason for row in gated) == {Gate.REPEATED_POSE: 2, Gate.ABOVE_CAP: 7}
    assert sum(key.startswith("c") for key in kept.key) == 5
    assert {row.group for row in gated if row.reason is Gate.REPEATED_POSE} == {still[0].key}


def test_the_same_file_of_another_part_is_kept_once(tmp_path):
    twice = [person(5), person(5, source="wild/again.png")]
    kept, gated = curated(tmp_path, [person(1), person(2), person(3), *twice])
    assert kept.key.count(person(5).key) == 1
    assert [(row.reason, row.detail) for row in gated] == [
        (Gate.IN_ANOTHER_PART, "the same bytes as mannequin/wild/0005.png")
    ]


def test_a_row_without_a_label_is_named_after_its_pose_cluster(tmp_path):
    rows = [person(i, category="" if i >= 10 else "calm") for i in range(60)]
    kept, _ = curated(tmp_path, rows)
    for category, cluster, key in zip(kept.category, kept.cluster, kept.key, strict=True):
        assert category == ("calm" if int(key, 16) < 10 else f"pose-{cluster:02d}")


def test_curated_twice_is_byte_identical(tmp_path):
    for name in ("a", "b"):
        curated(tmp_path / name, [person(i) for i in range(30)])
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / n / "data/dataset").iterdir()} for n in ("a", "b")
    )
    assert one == two and set(one) == {"persons.parquet", "gated.parquet", "summary.json", "clusters.json"}


def test_nobody_kept_is_an_error_with_the_reasons(tmp_path):
    with pytest.raises(DataError, match=r"None of the 3 persons found is kept \(too_dark 2, blurred 1\)"):
        curated(tmp_path, [person(1, exposure=0.0), person(2, exposure=0.0), person(3, sharpness=0.0)])


def test_warnings_name_small_categories_and_a_dominant_source(tmp_path):
    video = [
        person(i, source="clip.mp4", source_kind=Kind.VIDEO, key=f"{'c' * 16}-f{i:05d}", frame=i)
        for i in range(100, 190)
    ]
    curated(tmp_path, [*(person(i) for i in range(10)), *video])
    warnings = files.read_json(tmp_path / "data/dataset/summary.json")["warnings"]
    assert any(text.startswith("90 of 100 persons are in the group of mannequin/clip.mp4") for text in warnings)
    assert not any("is empty" in text for text in warnings)
    write_params(tmp_path)
    curated(tmp_path / "few", [person(0), *(person(2 * i + 1) for i in range(60))])
    warnings = files.read_json(tmp_path / "few/data/dataset/summary.json")["warnings"]
    assert any("in 1 category: calm (1)" in text for text in warnings) and not any("wild" in text for text in warnings)


def test_many_small_categories_are_one_warning_and_those_without_training_persons_another(tmp_path):
    curated(tmp_path, [person(i, category=f"c{i:03d}") for i in range(120)])
    warnings = files.read_json(tmp_path / "data/dataset/summary.json")["warnings"]
    persons = dataset_table.read(tmp_path / "data/dataset")
    train, held_out = len(persons.of("train")), len(persons) - len(persons.of("train"))
    assert train and held_out and len(warnings) == 2
    assert f"in {train} categories: c" in warnings[0] and warnings[0].endswith(f"... and {train - 10} more.")
    assert f"in {held_out} categories, which the models will not know: c" in warnings[1]


def test_motion_capture_reaches_the_shards_as_poses_without_pictures(tmp_path):
    persons, gated = curated(tmp_path, [*(person(i) for i in range(20)), *(motion(i) for i in range(8))])
    assert not gated and int((~persons.pictured).sum()) == 8
    shard.run(load(tmp_path / "params.yaml"), tmp_path)
    parts = [ShardDataset(tmp_path / "data/shards", split) for split in dataset_table.SPLITS]
    assert sum(map(len, parts)) == 28 and sum(len(part.pictured()) for part in parts) == 20
    for part in parts:
        assert part.poses().shape == (len(part), 33, 3)
        seen = part.pictured()
        assert seen.pictures_uint8(16).shape == (len(seen), 16, 16, 3)
        side = dict(zip(persons.key, persons.crop[:, 2].tolist(), strict=True))
        assert seen.sides() == [side[key] for key in seen.keys]  # an enlarged picture can be told by it
        assert all(seen.meta(i)["category"] != "walk" for i in range(len(seen)))


def test_several_persons_of_a_picture_have_their_own_crops(tmp_path):
    right = person(8).landmarks.copy()
    right[:, 0] += 0.2
    two = person(9, key=f"{person(8).key}-1", person=1, source=person(8).source, category="calm", landmarks=right,
                 fingerprint=person(8).fingerprint)  # fmt: skip
    persons, _ = curated(tmp_path, [person(8), two, *(person(i) for i in range(4))])
    shard.run(load(tmp_path / "params.yaml"), tmp_path)
    from PIL import Image

    from tasks.dataset.crop import crop

    found = {}
    for split in dataset_table.SPLITS:
        part = ShardDataset(tmp_path / "data/shards", split)
        found |= {key: part.read(i, "png") for i, key in enumerate(part.keys)}
    for key in (person(8).key, two.key):
        x0, y0, side = persons.crop[persons.key.index(key)].tolist()
        with Image.open(io.BytesIO(found[key])) as image:
            assert np.array_equal(np.asarray(image), crop(picture(8), x0, y0, side, 16))
    assert found[person(8).key] != found[two.key]


def test_processes_write_the_same_shards_as_one(tmp_path, monkeypatch):
    curated(tmp_path, [*(person(i) for i in range(12)), *(motion(i) for i in range(4))])
    written = []
    for few in (1000, 0):
        monkeypatch.setattr(shard, "_FEW", few)
        shard.run(load(tmp_path / "params.yaml"), tmp_path)
        written.append({path.name: path.read_bytes() for path in (tmp_path / "data/shards").iterdir()})
    assert written[0] == written[1]
    names = {f"{split}{end}" for split in dataset_table.SPLITS for end in ("-000000.tar", ".jsonl", ".offsets")}
    assert names | {"index.json"} == set(written[0])


@pytest.mark.parametrize("few", [1000, 0])
def test_a_missing_picture_is_a_data_error(tmp_path, monkeypatch, few):
    monkeypatch.setattr(shard, "_FEW", few)
    curated(tmp_path, [person(i) for i in range(6)])
    (tmp_path / "data/raw" / PART / person(3).source).unlink()
    with pytest.raises(DataError, match="can no longer be read"):
        shard.run(load(tmp_path / "params.yaml"), tmp_path)
    assert not (tmp_path / "data/shards").exists()
