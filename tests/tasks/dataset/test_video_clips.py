"""Clips of pictures: byte-identical shards, pictures that show the poses, videos cut at the right place and time."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from tasks.common import motion
from tasks.common.errors import DataError
from tasks.config.params import load
from tasks.dataset import frames, video_clips
from tasks.dataset.crop import square
from tasks.dataset.pose_map import places, pose_map
from tasks.dataset.shards import ShardDataset
from tasks.synthetic import film
from tests.support import motion_workspace, video_workspace
from tests.support.workspaces import figure

SIDE = 96  # pixels of the video
RATE = 12


def _video(path: Path, count: int) -> None:
    """A video whose frame i is a white disc of the size of a person, at column 30 + i, on a grey that grows with i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:SIDE, :SIDE]
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.options = {"qp": "4"}
        for i in range(count):
            picture = np.full((SIDE, SIDE, 3), 20 + 4 * i, np.uint8)
            picture[(x - 30 - i) ** 2 + (y - 48) ** 2 < 9] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _workspace(root: Path) -> None:
    params = video_workspace.params(root, video__film__count=6, video__clips__stride=4)
    film.run(params, root)
    source = root / "data/raw/mannequin/bend/a.mp4"
    _video(source, 12)
    rows = motion_workspace.tracked("bend/a.mp4", np.arange(12) / RATE, width=SIDE, height=SIDE)
    for i, row in enumerate(rows):
        row.landmarks[:, 0] += (30 + i - 48) / SIDE - row.landmarks[[23, 24], 0].mean() + 0.5
        row.landmarks[:, 1] += 0.5 - row.landmarks[[23, 24], 1].mean()
    motion_workspace.write(root, rows)
    video_clips.run(params, root)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    _workspace(root)
    return root


def test_shards_are_the_same_bytes_however_often_they_are_written(workspace: Path, tmp_path: Path) -> None:
    _workspace(tmp_path)
    names = sorted(path.name for path in (workspace / "data/video").iterdir())
    assert "index.json" in names
    for name in names:
        assert (workspace / "data/video" / name).read_bytes() == (tmp_path / "data/video" / name).read_bytes()


def test_the_square_follows_a_tracked_person_at_the_right_time(workspace: Path) -> None:
    data = ShardDataset(workspace / "data/video", "train", "val", "test")
    rows = [i for i, meta in enumerate(data.metas()) if meta["kind"] == "video"]
    clips, pictures = data.take(rows), frames.read(data.take(rows))
    assert [meta["start"] for meta in clips.metas()] == pytest.approx([0, 4 / RATE, 8 / RATE], abs=1e-5)
    for number, clip in enumerate(pictures):
        white = clip.min(axis=-1) > 140
        centres = np.array([np.argwhere(picture).mean(axis=0) for picture in white])
        assert np.ptp(centres, axis=0).max() < 0.6  # the disc is where the hips are, and stays there
        grey = np.median(clip.reshape(len(clip), -1), axis=1)
        assert np.allclose(grey, 20 + 4 * (4 * number + np.arange(4)), atol=3)
    assert np.isfinite(clips.clips()).all() and clips.clips().shape == (3, 4, 33, 3)


def test_a_filmed_figure_is_where_its_pose_map_is(workspace: Path) -> None:
    data = ShardDataset(workspace / "data/video", "train", "val", "test")
    assert {meta["kind"] for meta in data.metas()} == {"animation", "video"}
    clip = film.filmed(0, 6, film.Shape(4, 12.0, 48, 0.08))  # a jumping jack
    maps = pose_map(clip.joints[None] / motion.scale(clip.joints), 48, 0.08)[0].amax(1).numpy()
    for picture, shown in zip(clip.frames.astype(float), maps, strict=True):
        corners = picture[:4, [0, -1]].mean(axis=(0, 1))
        differs = np.abs(picture - corners).max(axis=-1)
        on, off = differs[(shown > 0.6)], differs[:20][shown[:20] < 1e-3]
        assert np.median(on) > 3 * max(np.median(off), 5)
    assert film.filmed(0, 6, film.Shape(4, 12.0, 48, 0.08)).frames.tobytes() == clip.frames.tobytes()


def test_places_of_a_clip_share_one_square_that_follows_the_hips() -> None:
    rng = np.random.default_rng(0)
    clip = np.stack([figure(rng, 1) for _ in range(5)])
    moved = clip + np.linspace(0, 3, 5)[:, None, None].astype(np.float32)
    at = places(moved[None], 0.08)[0]
    assert np.allclose(at, places(clip[None], 0.08)[0], atol=2e-3) and at.min() >= 0 and at.max() <= 1
    hips = motion.middle_of_hips(at)
    assert np.allclose(hips, hips[0])
    sides = [square(pose[:, :2].astype(float) * 1000, 0.08)[2] for pose in clip]
    assert square(motion.in_place(clip)[..., :2].astype(float) * 1000, 0.08)[2] >= max(sides)
    one = places(clip[:1], 0.08)
    assert np.allclose(one, places(motion.in_place(clip[:1])[None], 0.08)[0], atol=2e-3)


def test_a_video_that_was_replaced_is_named(workspace: Path, tmp_path: Path) -> None:
    shutil.copytree(workspace, tmp_path, dirs_exist_ok=True)
    _video(tmp_path / "data/raw/mannequin/bend/a.mp4", 5)
    with pytest.raises(DataError, match=r"a\.mp4"):
        video_clips.run(load(tmp_path / "params.yaml"), tmp_path)
    assert ShardDataset(tmp_path / "data/video", "train").about["size"] == 16
