"""The built-in data: a pure function of (seed, index, size), with exact joints and complete outputs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from tasks.common.skeleton import INDEX, LANDMARKS, LIMBS, MIRROR, torso_length
from tasks.config.params import Params, load, set_value
from tasks.extract.landmarker import Landmarker
from tasks.synthetic import stage as mannequin
from tasks.synthetic.postures import CATEGORIES
from tasks.synthetic.render import Cones, depth_buffer, render
from tests.support.project import PROJECT

ROOT = PROJECT


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def asked(**values: int) -> Params:
    params = load(ROOT / "params.yaml").model_dump()
    return Params.model_validate(params | {"mannequin": params["mannequin"] | values})


def test_the_bytes_do_not_depend_on_the_workers_or_on_the_count(tmp_path: Path) -> None:
    for workers, count in ((1, 9), (3, 14)):
        folder = tmp_path / str(workers)
        folder.mkdir()
        mannequin.draw_all(folder, seed=3, size=64, count=count, workers=workers)
    one, three = digests(tmp_path / "1"), digests(tmp_path / "3")
    assert len(one) == 18 and len(three) == 28
    assert one.items() <= three.items()
    here = mannequin.picture(seed=3, index=5, size=64)
    written = tmp_path / "1" / str(here.truth["category"]) / "00005.png"
    assert np.array_equal(np.array(Image.open(written)), here.image)
    assert json.loads(written.with_suffix(".joints.json").read_text()) == here.truth


def test_seed_and_index_change_the_picture_and_size_does_not_change_the_pose() -> None:
    base = mannequin.scene(seed=0, index=4, size=64)
    assert not np.allclose(mannequin.scene(seed=1, index=4, size=64).joints, base.joints)
    assert not np.allclose(mannequin.scene(seed=0, index=16, size=64).joints, base.joints)
    large = mannequin.scene(seed=0, index=4, size=128)
    assert np.array_equal(large.joints, base.joints)
    assert np.allclose(large.camera.project(large.joints), 2 * base.camera.project(base.joints))


def test_run_writes_the_requested_pictures_and_replaces_old_ones(tmp_path: Path) -> None:
    stale = tmp_path / "data/raw/mannequin/old/1.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    mannequin.run(asked(count=26, size=72, seed=1), tmp_path)
    folder = tmp_path / "data/raw/mannequin"
    assert os.listdir(tmp_path / "data/raw") == ["mannequin"]
    pictures = sorted(folder.rglob("*.png"))
    assert sorted(int(path.stem) for path in pictures) == list(range(26))
    assert {path.parent.name for path in pictures} == set(CATEGORIES) and len(CATEGORIES) >= 8
    counts = [len(list((folder / category).glob("*.png"))) for category in CATEGORIES]
    assert max(counts) - min(counts) <= 1
    for path in pictures:
        with Image.open(path) as image:
            assert image.size == (72, 72) and image.mode == "RGB"
        truth = json.loads(path.with_suffix(".joints.json").read_text())
        assert truth["category"] == path.parent.name and truth["index"] == int(path.stem)
        assert truth["names"] == list(LANDMARKS)


def test_a_killed_stage_leaves_no_output_folder(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    set_value(tmp_path / "params.yaml", "mannequin.count", 2000)
    set_value(tmp_path / "params.yaml", "mannequin.size", 64)
    command = [sys.executable, "-m", "tasks", "mannequin", "--root", str(tmp_path)]
    stage = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("data/raw/mannequin.tmp/*/*.png")):
            assert stage.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        stage.send_signal(signal.SIGKILL)
        stage.wait()
    assert not (tmp_path / "data/raw/mannequin").exists()
    mannequin.run(asked(count=5, size=64), tmp_path)
    assert len(list(tmp_path.glob("data/raw/mannequin/*/*.png"))) == 5
    assert os.listdir(tmp_path / "data/raw") == ["mannequin"]


@pytest.mark.parametrize("index", range(12))
def test_joints_lie_where_a_marker_on_them_is_drawn(index: int) -> None:
    seen = mannequin.scene(seed=0, index=index, size=160)
    pixels = np.array(mannequin.picture(seed=0, index=index, size=160).truth["image"])
    for joint in LIMBS:
        dot = seen.joints[joint][None]
        marker = Cones(dot, dot, np.full((1, 2), 0.02), np.array([[1.0, 0.0, 1.0]]), 0 * dot)
        _, owner = depth_buffer(marker, seen.camera, rays=4)
        rows, columns = np.nonzero(owner == 0)
        assert np.array([columns.mean() + 0.5, rows.mean() + 0.5]) / 4 == pytest.approx(pixels[joint], abs=0.3)


@pytest.mark.parametrize("index", range(24))
def test_limb_joints_are_inside_the_body_and_the_picture(index: int) -> None:
    seen = mannequin.scene(seed=0, index=index, size=160)
    pixels = seen.camera.project(seen.joints)[list(LIMBS)]
    assert (pixels > 0).all() and (pixels < 160).all()
    depth, _ = depth_buffer(seen.cones, seen.camera, rays=1)
    columns, rows = pixels.astype(int).T
    assert (depth[rows, columns] < seen.joints[list(LIMBS), 2] - 0.01).all()


def test_a_joint_behind_something_is_not_visible() -> None:
    """In a frontal T pose all limbs are visible, until a ball hides the left wrist."""
    index = next(i for i in range(3, 400, 12) if abs(mannequin.scene(0, i, 96).yaw) < 10)
    seen = mannequin.scene(0, index, 96)
    pixels = seen.camera.project(seen.joints)
    depth, _ = depth_buffer(seen.cones, seen.camera, rays=1)
    assert mannequin.visible(pixels, seen.joints, depth)[list(LIMBS)].all()
    wrist = INDEX["left_wrist"]
    ball = 0.8 * seen.joints[wrist][None]
    hidden = Cones(ball, ball, np.full((1, 2), 0.02), np.ones((1, 3)), 0 * ball)
    ball_depth, _ = depth_buffer(hidden, seen.camera, rays=1)
    after = mannequin.visible(pixels, seen.joints, np.minimum(depth, ball_depth))
    assert not after[wrist] and after[INDEX["right_wrist"]] and after[INDEX["left_shoulder"]]


def test_a_frontal_figure_shows_its_face() -> None:
    found = 0
    for index in range(0, 240, 12):
        seen = mannequin.scene(0, index, 448)
        nose, ears = seen.joints[INDEX["nose"]], seen.joints[[INDEX["left_ear"], INDEX["right_ear"]]].mean(axis=0)
        facing = nose - ears
        if facing[2] > -0.9 * np.linalg.norm(facing):
            continue
        found += 1
        image = render(seen.cones, seen.camera, seen.light, seen.room)[0].astype(float).mean(axis=2)
        at = {name: seen.camera.project(seen.joints[i]) for name, i in INDEX.items()}
        cheek = (at["left_eye"] + 2 * at["mouth_left"]) / 3
        for eye in ("left_eye", "right_eye"):
            iris = _around(image, at[eye]).min()
            assert iris < 0.6 * np.median(_around(image, cheek))
            assert _around(image, at[eye], reach=5).max() > 1.5 * iris  # with white beside it
    assert found >= 3


def _around(image: np.ndarray, point: np.ndarray, reach: int = 2) -> np.ndarray:
    column, row = point.astype(int)
    return image[row - reach : row + reach + 1, column - reach : column + reach + 1]


def test_the_truth_is_consistent_after_rounding() -> None:
    for index in range(12):
        truth = mannequin.picture(seed=0, index=index, size=96).truth
        world, image = np.array(truth["world"]), np.array(truth["image"])
        camera: Any = truth["camera"]
        assert np.allclose(camera["focal"] * world[:, :2] / world[:, 2:] + camera["centre"], image, atol=0.01)
        yaw, visible = cast(Any, truth["yaw"]), cast(Any, truth["visible"])
        assert abs(yaw) <= 80 and len(visible) == 33


def test_figures_fill_the_picture_without_leaving_it() -> None:
    for index in range(24):
        seen = mannequin.scene(seed=0, index=index, size=96)
        _, owner = depth_buffer(seen.cones, seen.camera, rays=1)
        rows, columns = np.nonzero(owner >= 0)
        assert 0.7 < max(np.ptp(rows), np.ptp(columns)) / 96 < 0.95
        assert min(rows.min(), columns.min()) > 0 and max(rows.max(), columns.max()) < 95


@pytest.mark.slow
def test_mediapipe_detects_the_figures() -> None:
    """MediaPipe on 240 pictures: persons found, limbs visible, joints accurate, left and right not exchanged."""
    limbs, found, clear, error, swapped = list(LIMBS), [], [], [], []
    with Landmarker(ROOT / "models/pose_landmarker_full.task") as landmarker:
        for index in range(240):
            drawn = mannequin.picture(seed=7, index=index, size=224)
            persons = landmarker.detect(drawn.image)
            found.append(bool(persons))
            if not persons:
                continue
            seen, true = persons[0].landmarks[:, :2] * 224, np.array(drawn.truth["image"])
            world, camera = np.array(drawn.truth["world"]), cast(Any, drawn.truth["camera"])
            clear.append(persons[0].landmarks[limbs, 3].mean() >= 0.7)
            distance, exchanged = (np.linalg.norm(p - true, axis=-1)[limbs].mean() for p in (seen, seen[list(MIRROR)]))
            torso = torso_length(world) * camera["focal"] / world[23:25, 2].mean()
            error.append(distance / torso)
            swapped.append(exchanged < distance)
    assert np.mean(found) >= 0.97
    assert np.mean(clear) >= 0.9
    assert np.mean(error) < 0.1
    assert np.mean(swapped) < 0.03
