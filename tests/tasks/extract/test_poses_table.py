"""The contract of poses.parquet and rejects.parquet."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.common.errors import UserError
from tasks.common.skeleton import LIMBS
from tasks.extract.findings import Kind, Reason
from tasks.extract.poses_table import POSES, REJECTS, Pose, Reject, Writer, read_poses, read_rejects


def some_poses(count: int) -> list[Pose]:
    rng = np.random.default_rng(0)
    return [
        Pose(
            key=f"{i:016x}",
            source=f"stand/line\n{i} é.png",
            source_kind=Kind.VIDEO,
            category="stand",
            frame=i,
            timestamp_s=i / 3,
            person=i % 2,
            track=i % 3,
            width=200,
            height=100,
            landmarks=rng.normal(0.5, 0.3, (33, 5)).astype(np.float32),
            world=rng.normal(size=(33, 3)).astype(np.float32),
            sharpness=float(i),
            exposure=0.5,
            fingerprint=rng.integers(-127, 128, 256).astype(np.int8),
            thumbnail=rng.integers(0, 256, (48, 48)).astype(np.uint8),
        )
        for i in range(count)
    ]


def write(folder: Path, poses: list[Pose], rejects: Sequence[Reject] = ()) -> None:
    folder.mkdir(exist_ok=True)
    with Writer(folder) as tables:
        for pose in poses:
            tables.add_pose(pose)
        for reject in rejects:
            tables.add_reject(reject)


@pytest.mark.parametrize("count", [0, 1, 1024, 2500])
def test_poses_are_read_back(tmp_path: Path, count: int) -> None:
    poses = some_poses(count)
    write(tmp_path, poses)
    table = read_poses(tmp_path)
    assert len(table) == count
    assert table.key == [pose.key for pose in poses] and table.source == [pose.source for pose in poses]
    assert table.landmarks.shape == (count, 33, 5) and table.world.shape == (count, 33, 3)
    assert table.fingerprint.dtype == np.int8
    for i, pose in enumerate(poses):
        assert np.array_equal(table.landmarks[i], pose.landmarks)
        assert np.array_equal(table.world[i], pose.world)
        assert np.array_equal(table.fingerprint[i], pose.fingerprint)
        assert np.array_equal(table.thumbnail[i], pose.thumbnail)
        assert tuple(table.size[i]) == (200, 100) and table.pictured[i]
        assert table.source_kind[i] == "video" and table.frame[i] == i and table.timestamp_s[i] == i / 3
        assert table.person[i] == i % 2 and table.track[i] == i % 3
        assert table.sharpness[i] == i and table.exposure[i] == 0.5


def test_box_and_visibility_are_those_of_the_landmarks(tmp_path: Path) -> None:
    landmarks = np.full((33, 5), 0.5, np.float32)
    landmarks[0, :2] = [-0.1, 0.2]
    landmarks[32, :2] = [0.75, 1.5]
    landmarks[:, 3] = 0
    landmarks[list(LIMBS)[:6], 3] = 1
    (pose,) = some_poses(1)
    write(tmp_path, [Pose(**{**vars(pose), "landmarks": landmarks})])
    table = read_poses(tmp_path)
    assert table.bbox[0] == pytest.approx([-20, 20, 150, 150])
    assert table.limb_visibility[0] == pytest.approx(0.5)
    assert table.pixels[0, 32] == pytest.approx([150, 150])
    assert table.person_pixels[0] == pytest.approx(170)


def test_truncation_counts_the_limbs_outside_the_picture(tmp_path: Path) -> None:
    landmarks = np.full((33, 5), 0.5, np.float32)
    landmarks[list(LIMBS)[:3], 0] = [-0.01, 1.01, 0.99]
    landmarks[0, 1] = 7  # a nose is no limb
    (pose,) = some_poses(1)
    write(tmp_path, [Pose(**{**vars(pose), "landmarks": landmarks})])
    assert read_poses(tmp_path).truncation[0] == pytest.approx(2 / 12)


def test_rejects_are_read_back(tmp_path: Path) -> None:
    rejects = [
        Reject("a/gone.png", None, "a", Reason.UNREADABLE, "Permission denied"),
        Reject("a/\n.png", "0" * 16, "a", Reason.NO_PERSON, "in 5 x 5 pixels"),
        Reject("a/b.mp4", "0" * 16, "a", Reason.SAME_POSE, "moved by 0.01", frame=12),
    ]
    write(tmp_path, [], rejects)
    assert read_rejects(tmp_path) == rejects


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, some_poses(1500), [Reject("x", None, "a", Reason.DAMAGED, "d")])
    for file in (POSES, REJECTS):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_missing_file_or_other_columns_raise_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run the extract stage first"):
        read_poses(tmp_path)
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / POSES)
    with pytest.raises(UserError, match="run the extract stage again"):
        read_poses(tmp_path)


def test_tables_do_not_import_pandas_and_leave_it_usable(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tasks.extract.poses_table import Writer, read_poses\n"
        f"with Writer(Path({str(tmp_path)!r})): pass\n"
        f"assert len(read_poses(Path({str(tmp_path)!r}))) == 0 and 'pandas' not in sys.modules\n"
        "import pandas; assert pandas.DataFrame({'a': [1]}).a.sum() == 1"
    )
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], check=True)
