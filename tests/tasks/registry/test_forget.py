"""`forget`: the person leaves dataset and shards, stays out in any disguise, and the models trained on it are named."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tasks import paths
from tasks.common import files, skeleton
from tasks.common.errors import UserError
from tasks.common.thumbnail import thumbnail
from tasks.config.params import load
from tasks.dataset import curate, dataset_table, opt_outs, shard
from tasks.dataset.shards import ShardDataset
from tasks.extract.findings import Kind
from tasks.extract.perceptual_hash import fingerprint
from tasks.extract.poses_table import Pose, read_poses
from tasks.paths import MODEL_FILE as MODEL
from tasks.registry import forget, lineage, tracking
from tests.support.curation_workspace import PART, SIZE, motion, person, picture, write
from tests.support.workspaces import write_params

GONE = 4


def kept_keys(root) -> set[str]:
    curate.run(load(root / "params.yaml"), root)
    return set(dataset_table.read(root / "data/dataset").key)


def again(number: int, image: Image.Image, mirrored: bool = False, **changes) -> Pose:
    """The person `number` in another file of its picture, its landmarks read a little differently."""
    row = person(number)
    jitter = np.random.default_rng(7).normal(scale=0.01, size=(33, 3)).astype(np.float32)
    world, landmarks = row.world + jitter, row.landmarks.copy()
    if mirrored:
        world, landmarks = skeleton.mirror(world), landmarks[list(skeleton.MIRROR)]
        landmarks[:, 0] = 1 - landmarks[:, 0]
    values = {"key": "e" * 16, "source": "again.jpg", "world": world, "landmarks": landmarks, **changes}
    pixels = np.asarray(image.convert("RGB"))
    return person(number, fingerprint=fingerprint(pixels), thumbnail=thumbnail(pixels), **values)


@pytest.fixture
def workspace(tmp_path):
    write(tmp_path, [person(i) for i in range(12)])
    write_params(tmp_path)
    return tmp_path


def test_a_forgotten_person_leaves_dataset_and_shards_and_nobody_else_does(workspace, capsys):
    before = kept_keys(workspace)
    forget.run(load(workspace / "params.yaml"), workspace, person(GONE).key)
    assert f"{PART}/calm/0004.png: {person(GONE).key}" in capsys.readouterr().out
    assert kept_keys(workspace) == before - {person(GONE).key}
    gated = dataset_table.read_gated(workspace / "data/dataset")
    assert [(row.key, str(row.reason)) for row in gated] == [(person(GONE).key, "forgotten")]
    shard.run(load(workspace / "params.yaml"), workspace)
    keys = [key for split in dataset_table.SPLITS for key in ShardDataset(workspace / "data/shards", split).keys]
    assert sorted(keys) == sorted(before - {person(GONE).key})


def seen_in(left: int, top: int, side: int) -> np.ndarray:
    """The landmarks of the person who is taken out, in a part of the picture."""
    landmarks = person(GONE).landmarks.copy()
    landmarks[:, :2] = (landmarks[:, :2] * SIZE - [left, top]) / side
    return landmarks


def disguises() -> dict[str, Pose]:
    image = Image.fromarray(picture(GONE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=50)
    cut = image.crop((3, 2, SIZE - 2, SIZE - 3))
    part = image.crop((12, 0, SIZE, SIZE - 12))
    turned = image.rotate(4, Image.Resampling.BICUBIC).crop((4, 4, SIZE - 4, SIZE - 4))
    other_pose = np.random.default_rng(3).normal(scale=0.2, size=(33, 3)).astype(np.float32)
    return {
        "encoded again": again(GONE, Image.open(io.BytesIO(stream.getvalue()))),
        "reduced": again(GONE, image.resize((60, 60)), width=60, height=60),
        "mirrored": again(GONE, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), mirrored=True),
        "cropped": again(GONE, cut, width=cut.width, height=cut.height),
        "a part, in which the pose is read differently": again(
            GONE, part, width=part.width, height=part.height, landmarks=seen_in(12, 0, part.width), world=other_pose
        ),
        "turned, in other colours": again(
            GONE,
            Image.eval(turned, lambda level: round(255 * (level / 255) ** 0.7)),
            width=turned.width,
            height=turned.height,
            landmarks=seen_in(4, 4, turned.width),
            world=other_pose,
        ),
        "under another name": person(GONE, source="wild/other name.png"),
    }


@pytest.mark.parametrize("disguise", disguises())
def test_it_does_not_come_back(workspace, disguise):
    forget.run(load(workspace / "params.yaml"), workspace, person(GONE).key)
    write(workspace, [*(person(i) for i in range(12) if i != GONE), disguises()[disguise]])
    assert kept_keys(workspace) == {person(i).key for i in range(12) if i != GONE}


def test_of_two_in_a_picture_only_the_one_who_asked_goes(workspace):
    landmarks = person(30).landmarks.copy()
    landmarks[:, 0] -= 0.35
    other = person(
        30, key=f"{person(GONE).key}-1", person=1, source=person(GONE).source, landmarks=landmarks,
        fingerprint=person(GONE).fingerprint, thumbnail=person(GONE).thumbnail,
    )  # fmt: skip
    write(workspace, [*(person(i) for i in range(12)), other])
    forget.run(load(workspace / "params.yaml"), workspace, person(GONE).key)
    assert other.key in kept_keys(workspace) and person(GONE).key not in kept_keys(workspace)


def test_in_a_video_the_person_is_followed_and_a_files_key_means_everybody(workspace, capsys):
    def frame(number: int, track: int) -> Pose:
        return person(
            100 + 2 * number + track, key=f"{'c' * 16}-f{number:05d}" + (f"-{track}" if track else ""), source="clip.mp4",
            source_kind=Kind.VIDEO, frame=number, person=track, track=track,
        )  # fmt: skip

    video = [frame(number, track) for number in range(4) for track in range(2)]
    moving = [motion(i) for i in range(3)]
    write(workspace, [*(person(i) for i in range(12)), *video, *moving])
    forget.run(load(workspace / "params.yaml"), workspace, frame(2, 1).key)
    assert "Still in the dataset, from the same files: 4 rows" in capsys.readouterr().out
    kept = kept_keys(workspace)
    assert [row.key in kept for row in video] == [True, False] * 4
    forget.run(load(workspace / "params.yaml"), workspace, "c" * 16, moving[0].key[:16])
    kept = kept_keys(workspace)
    assert not any(row.key in kept for row in [*video, *moving]) and len(kept) == 12


def test_caches_that_may_hold_the_person_are_deleted(workspace):
    params = load(workspace / "params.yaml")
    caches = [paths.LATENTS, paths.FEATURES, paths.CERTIFICATES, paths.PRIOR, paths.SLICES]
    for cache in caches:
        files.write_bytes(workspace / cache / "poses/some.npz", b"made from pictures")
    files.write_bytes(workspace / paths.TRAINING / "poses/state", b"of a training")
    with pytest.raises(UserError):
        forget.run(params, workspace, "nobody")
    assert all((workspace / cache).is_dir() for cache in caches)
    forget.run(params, workspace, person(GONE).key)
    assert not any((workspace / cache).exists() for cache in caches)
    assert (workspace / paths.TRAINING / "poses/state").is_file()


def test_unknown_keys_change_nothing_and_known_ones_may_be_forgotten_twice(workspace):
    params = load(workspace / "params.yaml")
    with pytest.raises(UserError, match="has the key nobody"):
        forget.run(params, workspace, person(GONE).key, "nobody")
    assert not (workspace / opt_outs.FILE).exists()
    with pytest.raises(UserError, match="at least one"):
        forget.run(params, workspace)
    forget.run(params, workspace, person(GONE).key)
    first = (workspace / opt_outs.FILE).read_bytes()
    write(workspace, [person(i) for i in range(12) if i != GONE])
    forget.run(params, workspace, person(GONE).key)
    assert (workspace / opt_outs.FILE).read_bytes() == first


def test_opt_outs_are_read_back_unchanged_and_show_no_heads(workspace):
    found = read_poses(workspace / "data/poses" / PART)
    opted_out = opt_outs.of(found, [3, 1])
    opt_outs.write(workspace, opted_out)
    read = opt_outs.read(workspace)
    assert [one.key for one in read] == sorted(one.key for one in opted_out)
    for one, two in zip(sorted(opted_out, key=lambda one: one.key), read, strict=True):
        assert np.array_equal(one.fingerprint, two.fingerprint) and np.array_equal(one.pose, two.pose)
        assert two.box == pytest.approx(one.box, abs=1e-4)
        assert two.size == one.size and np.array_equal(two.thumbnail, one.thumbnail)
        row = found.key.index(two.key)
        nose = (found.landmarks[row, 0, :2] * 48).astype(int)
        around = two.thumbnail[nose[1] - 1 : nose[1] + 2, nose[0] - 1 : nose[0] + 2]
        assert np.ptp(around.astype(int)) == 0
        assert (two.thumbnail != found.thumbnail[row]).mean() < 0.2
    assert len((workspace / opt_outs.FILE).read_bytes()) < 5000 * len(opted_out)
    for damaged in ('{"forgotten": [{"key": "x"}]}', '{"forgotten": [', "[]", ""):
        (workspace / opt_outs.FILE).write_text(damaged)
        with pytest.raises(UserError, match="restore it from version control") as caught:
            opt_outs.read(workspace)
        assert "remove it" not in str(caught.value)


def test_other_persons_match_no_opt_out(tmp_path):
    write(tmp_path, [person(i) for i in range(150)])
    found = read_poses(tmp_path / "data/poses" / PART)
    opted_out = opt_outs.of(found, list(range(0, 150, 2)))
    assert set(opt_outs.match(found, opted_out, 0.2)) == set(range(0, 150, 2))


def test_entries_of_older_versions_have_no_thumbnail_and_are_still_recognised(workspace):
    found = read_poses(workspace / "data/poses" / PART)
    opt_outs.write(workspace, opt_outs.of(found, [found.key.index(person(GONE).key)]))
    path = workspace / opt_outs.FILE
    entries = files.read_json(path)
    for entry in entries["forgotten"]:
        del entry["size"], entry["thumbnail"]
    files.write_json(path, entries)
    write(workspace, [*(person(i) for i in range(12) if i != GONE), disguises()["encoded again"]])
    assert kept_keys(workspace) == {person(i).key for i in range(12) if i != GONE}


def test_the_models_that_saw_a_row_are_named(workspace, capsys):
    params = load(workspace / "params.yaml")
    kept_keys(workspace)
    shard.run(params, workspace)
    train = ShardDataset(workspace / "data/shards", "train")
    seen = lineage.trained_on(train, None)
    assert seen["keys"] == sorted(train.keys) and list(seen["shards"]) == ["train-000000.tar"]
    store = tracking.Store(params.tracking, workspace)
    path = workspace / lineage.FILE
    files.write_json(path, seen)
    runs = {}
    for digest in ("saw", "stopped", "silent", "heir", "heir of the heir"):
        run = store.model_run("poses", digest)
        if digest.startswith("heir"):
            files.write_json(path, {"keys": ["else"], "shards": {}, "start": "saw" if digest == "heir" else "heir"})
        if digest != "silent":
            run.artifact(path)
        run.tag(**{"contrapposto.model_sha256": digest})
        run.finish("KILLED" if digest == "stopped" else "FINISHED")
        runs[digest] = run.id
    for model in ("poses", "pictures"):
        (workspace / "artifacts" / model).mkdir(parents=True)
        (workspace / "artifacts" / model / MODEL).write_bytes(model.encode())
    files.write_json(
        workspace / "artifacts/pictures" / lineage.FILE, {"keys": ["unknown"], "shards": {}, "start": None}
    )
    for folder in ("codec", "lora"):  # an adapter has no file of that name
        (workspace / "artifacts" / folder).mkdir()
        files.write_json(workspace / "artifacts" / folder / lineage.FILE, seen)
    (workspace / "artifacts/codec" / MODEL).write_bytes(b"codec")
    found, unknown = lineage.trainings_on(params, workspace, {train.keys[0], train.keys[1], "nobody's"})
    assert {one.name: (one.rows, one.warm_started) for one in found} == {
        f"poses, MLflow run {runs[name]}": (0 if begun else 2, begun)
        for name, begun in (("saw", False), ("stopped", False), ("heir", True), ("heir of the heir", True))
    } | {f"{name}, in artifacts/{name}": (2, False) for name in ("codec", "lora")}
    assert unknown == 2  # the silent run, and artifacts/poses which is of no run and has no list
    assert lineage.trainings_on(params, workspace, {"nobody's"})[0] == []
    forget.run(params, workspace, train.keys[0])
    said = capsys.readouterr().out
    assert f"Trained on 1 of these rows: poses, MLflow run {runs['saw']}" in said
    assert "2 trainings left no list" in said
