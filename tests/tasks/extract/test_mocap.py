"""Motion capture: kinematics in closed form; the landmarks do not depend on the file's names, unit and axes."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tasks.common.skeleton import INDEX, LIMB_BONES, LIMBS, normalise
from tasks.extract import bvh, mocap
from tasks.extract.findings import Reason
from tasks.extract.source_files import Refusal, open_regular

# joint: parent and offset, with x to the person's left, y up, z forward; the left side stands for both
MIDDLE = {
    "Hips": (None, (0, 0, 0)),
    "Spine": ("Hips", (0, 30, 0)),
    "Neck": ("Spine", (0, 25, 0)),
    "Head": ("Neck", (0, 10, 0)),
}
SIDE = {
    "UpLeg": ("Hips", (10, 0, 0)), "Leg": ("UpLeg", (0, -45, 0)), "Foot": ("Leg", (0, -45, 0)),
    "ToeBase": ("Foot", (0, -6, 15)),
    "Arm": ("Spine", (18, 22, 0)), "ForeArm": ("Arm", (28, 0, 0)), "Hand": ("ForeArm", (26, 0, 0)),
}  # fmt: skip
BODY = MIDDLE | {
    f"{side}{name}": (parent if parent in MIDDLE else f"{side}{parent}", (sign * x, y, z))
    for side, sign in (("Left", 1), ("Right", -1))
    for name, (parent, (x, y, z)) in SIDE.items()
}


def text(
    turn: np.ndarray | None = None,
    scale: float = 1.0,
    rename: Callable[[str], str] = str,
    angles: dict[str, tuple[float, float, float]] | None = None,
) -> bytes:
    """A BVH of the body, its axes turned by a matrix; `angles` are degrees about Z, X, Y of some joints."""
    turn = np.eye(3) if turn is None else turn
    values: list[float] = [5 * scale, 6 * scale, 7 * scale]

    def lines(name: str) -> str:
        offset = " ".join(f"{v:.6f}" for v in turn @ np.array(BODY[name][1]) * scale)
        channels = "Zrotation Xrotation Yrotation"
        head = f"CHANNELS 6 Xposition Yposition Zposition {channels}" if name == "Hips" else f"CHANNELS 3 {channels}"
        matrix = Rotation.from_euler("ZXY", (angles or {}).get(name, (0, 0, 0)), degrees=True).as_matrix()
        values.extend(Rotation.from_matrix(turn @ matrix @ turn.T).as_euler("ZXY", degrees=True))
        below = (
            "".join(lines(n) for n, (parent, _) in BODY.items() if parent == name) or "End Site\n{\nOFFSET 0 0 0\n}\n"
        )
        return f"{'ROOT' if name == 'Hips' else 'JOINT'} {rename(name)}\n{{\nOFFSET {offset}\n{head}\n{below}}}\n"

    tree = lines("Hips")
    row = " ".join(f"{v:.6f}" for v in values)
    return f"HIERARCHY\n{tree}MOTION\nFrames: 2\nFrame Time: 0.04\n{row}\n{row}\n".encode()


def read(content: bytes) -> bvh.Motion:
    return bvh.read(io.BytesIO(content))


def pose(content: bytes) -> np.ndarray:
    landmarks, _ = mocap.landmarks(read(content), np.array([0]))
    first: np.ndarray = landmarks[0]
    return first


def test_kinematics_are_rotations_in_the_order_of_the_channels() -> None:
    content = b"""HIERARCHY
ROOT a { OFFSET 1 2 3 CHANNELS 6 Xposition Yposition Zposition Yrotation Zrotation Xrotation
  JOINT b { OFFSET 0 5 0 CHANNELS 3 Zrotation Xrotation Yrotation
    End Site { OFFSET 0 0 2 } } }
MOTION
Frames: 1
Frame Time: .5
10 20 30 40 50 60 15 -25 35
"""
    where, turned = bvh.joint_frames(read(content), np.array([0]))
    root = Rotation.from_euler("YZX", [40, 50, 60], degrees=True)
    both = root * Rotation.from_euler("ZXY", [15, -25, 35], degrees=True)
    assert np.allclose(where[0, 0], [11, 22, 33])
    assert np.allclose(where[0, 1], where[0, 0] + root.apply([0, 5, 0]))
    assert np.allclose(where[0, 2], where[0, 1] + both.apply([0, 0, 2]))
    assert np.allclose(turned[0, 1], both.as_matrix())


def test_a_figure_that_faces_the_camera_has_its_left_on_the_pictures_right() -> None:
    at = pose(text())
    x, y, z = at.T
    assert x[INDEX["left_wrist"]] > x[INDEX["left_shoulder"]] > 0 > x[INDEX["right_shoulder"]] > x[INDEX["right_wrist"]]
    assert y[INDEX["nose"]] < y[INDEX["left_shoulder"]] < 0 < y[INDEX["left_knee"]] < y[INDEX["left_ankle"]]
    assert z[INDEX["left_foot_index"]] < z[INDEX["left_heel"]] and z[INDEX["nose"]] < z[INDEX["left_ear"]]
    assert x[INDEX["left_ear"]] > x[INDEX["right_ear"]] and y[INDEX["left_eye"]] < y[INDEX["mouth_left"]]
    assert np.allclose(at[[23, 24]].mean(axis=0), 0, atol=1e-6)
    leg = np.linalg.norm(at[23] - at[25]) + np.linalg.norm(at[25] - at[27])
    assert leg == pytest.approx(mocap.LEG, rel=1e-5)


@pytest.mark.parametrize(
    "turn",
    [
        Rotation.from_euler("x", 90, degrees=True),  # z is up
        Rotation.from_euler("y", 137, degrees=True),  # the figure faces elsewhere
        Rotation.from_euler("yz", [20, 90], degrees=True),  # -x is up
    ],
)
def test_axes_and_unit_of_the_file_do_not_matter(turn: Rotation) -> None:
    angles = {"LeftArm": (60.0, 0.0, 0.0), "RightLeg": (0.0, 50.0, 10.0), "Head": (0.0, 10.0, 40.0)}
    assert np.allclose(pose(text(turn.as_matrix(), 0.3, angles=angles)), pose(text(angles=angles)), atol=2e-5)


def cmu(name: str) -> str:
    parts = {"UpLeg": "Hip", "Leg": "Knee", "Foot": "Ankle", "ToeBase": "Toe"}
    parts |= {"Arm": "Shoulder", "ForeArm": "Elbow", "Hand": "Wrist"}
    side = next((s for s in ("Left", "Right") if name.startswith(s)), "")
    return side + parts.get(name.removeprefix(side), name.removeprefix(side))


@pytest.mark.parametrize("rename", [cmu, lambda name: f"mixamorig:{name}", lambda name: name.lower()])
def test_the_usual_names_are_the_same_joints(rename: Callable[[str], str]) -> None:
    assert np.array_equal(pose(text(rename=rename)), pose(text()))


def test_joint_angles_move_arm_and_face() -> None:
    at = pose(text(angles={"LeftArm": (90, 0, 0), "Head": (0, 0, 90)}))
    assert at[INDEX["left_wrist"], 1] < at[INDEX["nose"], 1] < at[INDEX["right_wrist"], 1]
    assert at[INDEX["nose"], 0] > at[INDEX["left_ear"], 0]  # to the person's left


def test_derived_landmarks_are_marked() -> None:
    _, known = mocap.landmarks(read(text()), np.array([0]))
    assert known[list(LIMBS)].all() and known[[INDEX["left_heel"], INDEX["left_foot_index"]]].all()
    assert not known[:11].any() and not known[[INDEX["left_index"], INDEX["right_thumb"]]].any()


@pytest.mark.parametrize(
    "content",
    [
        b"HIERARCHY",
        text()[:-40],
        text().replace(b"Frames: 2", b"Frames: 3"),
        text().replace(b"Frame Time: 0.04", b"Frame Time: nan"),
        text().replace(b"Zrotation", b"Wrotation"),
        text().replace(b"OFFSET", b"", 1),
        text().replace(b"5.000000", b"inf"),
        text().replace(b"}", b"", 1),
        b"HIERARCHY ROOT a { OFFSET 0 0 0 } MOTION\nFrames: 9\nFrame Time: 1\n ",
        text().replace(b"JOINT LeftLeg", b"ROOT LeftLeg").replace(b"{", b"}", 1),
        b"HIERARCHY\nROOT a\n" + b"{ OFFSET 0 0 0 JOINT b " * 3000 + b"MOTION\nFrames: 1\nFrame Time: 1\n0",
    ],
)
def test_malformed_motion_captures_are_damaged(content: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        read(content)
    assert caught.value.reason is Reason.DAMAGED


def test_a_motion_capture_without_frames_is_told_in_words() -> None:
    content = re.sub(rb"Frames: \d+\nFrame Time: (\S+)\n.*", rb"Frames: 0\nFrame Time: \1\n", text(), flags=re.DOTALL)
    with pytest.raises(Refusal, match="no frames"):
        read(content)


def test_a_skeleton_that_is_not_a_person_is_refused() -> None:
    for content in (text(rename=lambda name: name.replace("Knee", "Arm").replace("Leg", "Tail")), text(scale=0.0)):
        with pytest.raises(Refusal) as caught:
            pose(content)
        assert caught.value.reason is Reason.NO_PERSON


@pytest.mark.skipif("CONTRAPPOSTO_PHOTOS" not in os.environ, reason="CONTRAPPOSTO_PHOTOS names no folder of photos")
def test_real_captures_have_human_proportions() -> None:
    seen = 0
    for path in sorted((Path(os.environ["CONTRAPPOSTO_PHOTOS"]) / "mocap").rglob("*.bvh")):
        with open_regular(path) as file:
            motion = bvh.read(file)
        frames = np.linspace(0, len(motion.values) - 1, 30).astype(int)
        if path.stem.startswith("sinusoidal"):  # a chain of four links
            with pytest.raises(Refusal):
                mocap.landmarks(motion, frames)
            continue
        seen += 1
        at, _ = mocap.landmarks(motion, frames)
        lengths = np.stack([np.linalg.norm(at[:, i] - at[:, j], axis=1) for i, j in LIMB_BONES[:8]])
        assert np.ptp(lengths, axis=1).max() < 0.01, path.name
        assert np.median(normalise(at)[:, INDEX["nose"], 1]) < -1.0, path.name  # the head is up
    assert seen >= 16
