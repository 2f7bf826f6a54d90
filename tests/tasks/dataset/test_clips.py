"""Clips: gaps and visibility, resampling, one split for a source, byte-identical shards, nobody who opted out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tasks.common import files, motion
from tasks.common.errors import DataError
from tasks.common.skeleton import mirror
from tasks.config.motion import Clips
from tasks.dataset import clips
from tasks.dataset.clips import Refused, Track, cut
from tasks.dataset.dataset_table import Gate, Gated
from tasks.dataset.shards import ShardDataset
from tasks.synthetic import animate
from tests.support import curation_workspace, motion_workspace

SETTINGS = Clips(frames=8, rate=6.0, stride=4, max_gap=0.5, min_visibility=0.6)


def _track(times: np.ndarray, visibility: float | np.ndarray = 1.0) -> Track:
    """A person whose left wrist moves along a line at constant speed, while the whole body goes to the left."""
    pose = curation_workspace.person(0).world.astype(np.float64)
    poses = np.repeat(pose[None], len(times), axis=0)
    poses[:, 15, 1] += times
    poses += 0.3 * times[:, None, None] * [1, 0, 0]
    return Track("video", "a.mp4", "bend", 0, times, poses, np.broadcast_to(visibility, len(times)), True)


def _cut(track: Track) -> tuple[list[clips.Clip], Counter[str]]:
    refused: Counter[str] = Counter()
    return list(cut(track, SETTINGS, refused)), refused


def test_motion_at_any_rate_is_resampled_to_one() -> None:
    for rate in (5.0, 7.3, 120.0):
        found, refused = _cut(_track(np.arange(0, 3, 1 / rate)))
        assert not refused and len(found) == 3
        path = motion.middle_of_hips(found[1].poses)
        steps = np.diff(path, axis=0) * found[1].torso * SETTINGS.rate  # metres per second
        assert np.allclose(np.linalg.norm(steps, axis=1), 0.3, atol=1e-4)
        assert found[1].start == pytest.approx(4 / 6)


def test_a_clip_names_the_rows_that_it_is_made_from() -> None:
    times = np.arange(0, 30.0, 0.5)
    names = tuple(f"row-{i:03d}" for i in range(len(times)))
    video = Track(**{**vars(_track(times)), "rows": names})
    found, _ = _cut(video)
    assert found[0].rows == names[: len(found[0].rows)] and 2 <= len(found[0].rows) < 10
    # A motion capture has frames at its own rate, and few of them are rows of the table.
    capture = Track(**{**vars(_track(np.arange(0, 3, 1 / 120))), "kind": "mocap", "rows": names[:4]})
    found, _ = _cut(capture)
    assert len(found) == 3 and all(clip.rows == names[:4] for clip in found)


def test_a_short_gap_is_bridged_and_a_long_one_ends_the_run() -> None:
    times = np.arange(0, 4, 0.1)
    bridged, _ = _cut(_track(np.delete(times, slice(18, 22))))
    whole, _ = _cut(_track(times))
    assert len(bridged) == len(whole)
    assert np.allclose(bridged[1].poses, whole[1].poses, atol=1e-4)  # this motion is linear
    split, _ = _cut(_track(np.delete(times, slice(15, 21))))
    assert all(clip.start + 7 / 6 <= 1.41 or clip.start >= 2.0 for clip in split) and 0 < len(split) < len(whole)


def test_a_run_that_is_too_short_or_hardly_visible_is_refused_with_a_reason() -> None:
    assert _cut(_track(np.arange(0, 1.1, 0.1))) == ([], Counter({Refused.TOO_SHORT: 1}))
    visibility = np.where(np.arange(40) < 25, 0.5, 1.0)
    found, refused = _cut(_track(np.arange(0, 4, 0.1), visibility))
    assert refused[Refused.LOW_VISIBILITY] == 3
    assert [clip.start for clip in found] == pytest.approx([2.0, 8 / 3], abs=1e-5)


def test_a_clip_begins_at_0_and_faces_forward_however_the_camera_stood() -> None:
    track = _track(np.arange(0, 2, 0.1))
    turned = Track(**{**vars(track), "poses": motion.turned(track.poses[None], np.array([0.7]))[0] + [1.0, 2.0, 3.0]})
    (one, *_), (other, *_) = _cut(track)[0], _cut(turned)[0]
    assert np.allclose(one.poses, other.poses, atol=1e-5)
    assert np.allclose(motion.middle_of_hips(one.poses[0]), 0, atol=1e-6)
    assert motion.yaw(one.poses[:1]) == pytest.approx(0, abs=1e-6)


def test_features_keep_everything_and_put_the_path_apart() -> None:
    clip = _cut(_track(np.arange(0, 2, 0.1)))[0][0].poses
    assert np.allclose(motion.from_features(motion.features(clip)), clip, atol=1e-6)
    moved = clip + np.linspace(0, 1, len(clip))[:, None, None].astype(np.float32)
    apart = motion.features(moved) - motion.features(clip)
    assert np.allclose(np.delete(apart, motion.PATH, axis=1), 0, atol=1e-6)
    assert np.allclose(mirror(mirror(clip)), clip)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    params = motion_workspace.params(root)
    animate.run(params, root)
    seconds = np.arange(0, 4, 0.25)
    rows = [
        *motion_workspace.tracked("bend/known.mp4", seconds),
        *motion_workspace.tracked("bend/new.mp4", seconds),
        *motion_workspace.tracked("bend/left.mp4", seconds),
        *motion_workspace.tracked("bend/blurred.mp4", seconds, visibility=0.3),
        curation_workspace.person(7),
    ]
    left = next(row for row in rows if row.source == "bend/left.mp4")
    gated = [Gated(left.key, "mannequin/bend/left.mp4", 0, "bend", "", Gate.FORGOTTEN, "")]
    motion_workspace.write(root, rows, {"mannequin/bend/known.mp4": ("the-group", "test")}, gated)
    clips.run(params, root)
    return root


def test_every_source_is_in_one_split_and_keeps_that_of_the_dataset(workspace: Path) -> None:
    seen: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        for meta in ShardDataset(workspace / "data/clips", split).metas():
            assert meta["split"] == split
            seen.setdefault(meta["source"], set()).add(split)
    assert all(len(splits) == 1 for splits in seen.values())
    assert seen["mannequin/bend/known.mp4"] == {"test"} and set.union(*seen.values()) == {"train", "val", "test"}
    groups = {m["source"]: m["group"] for m in ShardDataset(workspace / "data/clips", "test").metas()}
    assert groups["mannequin/bend/known.mp4"] == "the-group"


def test_who_opted_out_and_who_is_hardly_visible_gives_no_clip(workspace: Path) -> None:
    data = ShardDataset(workspace / "data/clips", "train", "val", "test")
    sources = {meta["source"] for meta in data.metas()}
    assert not {"mannequin/bend/left.mp4", "mannequin/bend/blurred.mp4"} & sources
    assert data.about["refused"] == {Refused.FORGOTTEN: 1, Refused.LOW_VISIBILITY: 4}
    rows = {row for meta in data.metas() for row in meta["rows"]}
    assert rows and not any(row.startswith(b"bend/left".hex()[:16]) for row in rows)


def test_the_summary_counts_seconds_sources_and_categories(workspace: Path) -> None:
    about = ShardDataset(workspace / "data/clips", "train").about
    (bend,) = [row for row in about["sources"] if row["category"] == "bend"]
    assert (bend["kind"], bend["sources"], bend["clips"]) == ("video", 2, 8)
    assert bend["seconds"] == pytest.approx(2 * (3 * 4 + 8) / 6)
    assert len([row for row in about["sources"] if row["kind"] == "animation"]) == 15


def test_videos_have_no_path_and_animation_has_one(workspace: Path) -> None:
    data = ShardDataset(workspace / "data/clips", "train", "val", "test")
    for clip, meta in zip(data.clips(), data.metas(), strict=True):
        assert meta["path"] == (meta["kind"] == "animation")
        if not meta["path"]:
            assert np.abs(motion.middle_of_hips(clip)).max() < 1e-5


def test_shards_are_byte_identical(workspace: Path) -> None:
    before = {path.name: path.read_bytes() for path in (workspace / "data/clips").iterdir()}
    clips.run(motion_workspace.params(workspace), workspace)
    assert {path.name: path.read_bytes() for path in (workspace / "data/clips").iterdir()} == before


def test_without_motion_there_is_a_sentence(tmp_path: Path) -> None:
    params = motion_workspace.params(tmp_path, motion__animation__count=0)
    animate.run(params, tmp_path)
    motion_workspace.write(tmp_path, [curation_workspace.person(1)])
    with pytest.raises(DataError):
        clips.run(params, tmp_path)
    assert files.read_json(tmp_path / "data/animation/clips.json")["clips"] == []


def test_clips_of_sources_that_are_all_in_the_dataset_need_no_new_split(tmp_path: Path) -> None:
    params = motion_workspace.params(tmp_path, motion__animation__count=0)
    animate.run(params, tmp_path)
    rows = motion_workspace.tracked("bend/known.mp4", np.arange(0, 4, 0.25))
    motion_workspace.write(tmp_path, rows, {"mannequin/bend/known.mp4": ("the-group", "test")})
    clips.run(params, tmp_path)
    made = ShardDataset(tmp_path / "data/clips", "test")
    assert len(made) and not len(ShardDataset(tmp_path / "data/clips", "train"))
    assert {meta["group"] for meta in made.metas()} == {"the-group"}
