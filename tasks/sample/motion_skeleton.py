"""A motion of landmarks as a skeleton with constant bones and joint angles, and the files that other programs read: BVH, CSV.

World axes are those of BVH programs: x to the left of a person who faces forward, y up, z forward. In the rest pose (all angles
zero) the person stands upright and faces forward, the arms point sideways, the legs down and the feet forward. A joint's
rotation turns its bone and everything below it. Angles are in degrees, right-handed, each about the axes of the joint above as
turned so far (intrinsic): R = Rz Rx Ry, but in the legs, whose large angle is about x, R = Rx Rz Ry. At an angle of 90 degrees
in the middle, which joints hardly reach, the other two would not be defined.

Bones get the median of their lengths over the clip, the same on both sides. How far the joints are from the landmarks because
of that is `Fitted.error`.
"""

from __future__ import annotations

import csv
import io
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from tasks.common.skeleton import INDEX

TORSO = 0.5  # metres from hips to shoulders of a person whose size is not known
_LEG = ("UpLeg", "Leg", "Foot", "ToeBase")
SKULL = 0.16  # torso lengths from the base of the skull to the middle of the ears
BENT = 3.0  # weight of the plane in which elbow or knee is bent, against that of a straight limb

# Name, and the joint above; parents before their children.
JOINTS: dict[str, str | None] = {
    "Hips": None,
    **{f"{side}{name}": f"{side}{above}" if above != "Hips" else above for side in ("Left", "Right") for name, above in (
        ("UpLeg", "Hips"), ("Leg", "UpLeg"), ("Foot", "Leg"), ("ToeBase", "Foot"))},
    "Spine": "Hips", "Spine1": "Spine",
    **{f"{side}{name}": f"{side}{above}" if above != "Spine1" else above for side in ("Left", "Right") for name, above in (
        ("Arm", "Spine1"), ("ForeArm", "Arm"), ("Hand", "ForeArm"))},
    "Neck": "Spine1", "Head": "Neck",
}  # fmt: skip
NAMES = tuple(JOINTS)
ORDER = {name: "XZY" if name.endswith(_LEG) else "ZXY" for name in NAMES}  # of the angles
TURNING = tuple(name for name in NAMES if not name.endswith("ToeBase"))  # the toes have no angle of their own


class Fitted(NamedTuple):
    """A motion of the skeleton. Lengths are in metres.

    `offset` `[joints, 3]` from the joint above, at rest; `tip` name -> offset of the end of a limb's last bone; `local`
    `[frames, joints, 3, 3]` rotations relative to the joint above; `root` `[frames, 3]` place of the hips; `error`: mean
    distance of the twelve limb joints from their landmarks.
    """

    offset: np.ndarray
    tip: dict[str, np.ndarray]
    local: np.ndarray
    root: np.ndarray
    error: float

    def angles(self) -> np.ndarray:
        """Joint angles in degrees, `[frames, joints, 3]`, about the axes in ORDER, without jumps of 360 degrees."""
        angles = np.stack(
            [Rotation.from_matrix(self.local[:, j]).as_euler(ORDER[name]) for j, name in enumerate(NAMES)], axis=1
        )
        degrees: np.ndarray = np.degrees(np.unwrap(angles, axis=0))
        return degrees


def positions(fitted: Fitted) -> np.ndarray:
    """Forward kinematics: the place of every joint, `[frames, joints, 3]` in metres."""
    place = np.zeros(fitted.local.shape[:3])
    turn = np.zeros_like(fitted.local)
    for j, (_, above) in enumerate(JOINTS.items()):
        if above is None:
            place[:, j], turn[:, j] = fitted.root, fitted.local[:, j]
        else:
            i = NAMES.index(above)
            place[:, j] = place[:, i] + turn[:, i] @ fitted.offset[j]
            turn[:, j] = turn[:, i] @ fitted.local[:, j]
    return place


def _unit(v: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(v, axis=-1, keepdims=True)
    unit: np.ndarray = v / np.maximum(length, 1e-9)
    return unit


def _axes(**given: np.ndarray) -> np.ndarray:
    """Rotations `[n, 3, 3]` with the first given axis exactly and the second as nearly as possible; the third follows."""
    (first, exact), (second, near) = given.items()
    exact = _unit(exact)
    near = _unit(near - (near * exact).sum(-1, keepdims=True) * exact)
    axes = {first: exact, second: near}
    (third,) = {"x", "y", "z"} - set(axes)
    before, after = {"x": ("y", "z"), "y": ("z", "x"), "z": ("x", "y")}[third]
    axes[third] = np.cross(axes[before], axes[after])
    return np.stack([axes["x"], axes["y"], axes["z"]], axis=-1)


def _carried(start: np.ndarray, end: np.ndarray, v: np.ndarray) -> np.ndarray:
    """v turned by the smallest rotation that takes the direction `start` to `end`, all `[n, 3]`."""
    axis, cosine = np.cross(start, end), (start * end).sum(-1, keepdims=True)
    inside = (axis * v).sum(-1, keepdims=True)
    turned: np.ndarray = cosine * v + np.cross(axis, v) + axis * inside / np.maximum(1 + cosine, 1e-6)
    return turned


def fit(clip: np.ndarray, torso: float = TORSO) -> Fitted:
    """The skeleton's motion for a clip `[frames, 33, 3]` in torso lengths (axes of `tasks.common.skeleton`)."""
    points = clip.astype(np.float64) * torso * [1, -1, -1]

    def at(name: str) -> np.ndarray:
        return points[:, INDEX[name]]

    hips, shoulders = ((at(f"left_{name}") + at(f"right_{name}")) / 2 for name in ("hip", "shoulder"))
    hip_axis, shoulder_axis = (at(f"left_{name}") - at(f"right_{name}") for name in ("hip", "shoulder"))
    spine = shoulders - hips
    ears = (at("left_ear") + at("right_ear")) / 2
    world: dict[str, np.ndarray] = {
        "Hips": _axes(x=hip_axis, y=spine),
        "Spine": _axes(y=spine, x=_unit(hip_axis) + _unit(shoulder_axis)),
        "Spine1": _axes(x=shoulder_axis, y=spine),
        "Head": _axes(x=at("left_ear") - at("right_ear"), z=at("nose") - ears),
    }
    skull = ears - SKULL * torso * world["Head"][..., 1]
    world["Neck"] = _axes(y=skull - shoulders, x=shoulder_axis)
    lengths: dict[str, np.ndarray] = {
        "Hips": np.zeros(len(clip)),
        "Spine": np.zeros(len(clip)),
        "Neck": np.zeros(len(clip)),
    }
    lengths["Spine1"] = np.linalg.norm(spine, axis=-1)
    lengths["Head"] = np.linalg.norm(skull - shoulders, axis=-1)
    for side, sign in (("Left", 1.0), ("Right", -1.0)):
        low = side.lower()
        hip, knee, ankle, toe = (at(f"{low}_{name}") for name in ("hip", "knee", "ankle", "foot_index"))
        thigh, shin, foot = _unit(knee - hip), _unit(ankle - knee), _unit(toe - ankle)
        hinge = _unit(hip_axis) + BENT * np.cross(thigh, shin)
        world[f"{side}UpLeg"] = _axes(y=-thigh, x=hinge)
        world[f"{side}Leg"] = _axes(y=-shin, x=hinge)
        world[f"{side}Foot"] = world[f"{side}ToeBase"] = _axes(z=foot, x=hinge)
        shoulder, elbow, wrist = (at(f"{low}_{name}") for name in ("shoulder", "elbow", "wrist"))
        index, pinky = at(f"{low}_index"), at(f"{low}_pinky")
        knuckles = (index + pinky) / 2
        upper, fore, hand = _unit(elbow - shoulder), _unit(wrist - elbow), _unit(knuckles - wrist)
        chest = world["Spine1"]
        straight = _carried(sign * chest[..., 0], upper, chest[..., 1])
        bend = straight - sign * BENT * np.cross(upper, fore)
        world[f"{side}Arm"] = _axes(x=sign * upper, y=bend)
        world[f"{side}ForeArm"] = _axes(x=sign * fore, y=bend)
        world[f"{side}Hand"] = _axes(x=sign * hand, z=index - pinky)
        for name, bone in (
            ("UpLeg", hip_axis / 2), ("Leg", knee - hip), ("Foot", ankle - knee), ("ToeBase", toe - ankle),
            ("Arm", shoulder_axis / 2), ("ForeArm", elbow - shoulder), ("Hand", wrist - elbow), ("Tip", knuckles - wrist),
        ):  # fmt: skip
            lengths[f"{side}{name}"] = np.linalg.norm(bone, axis=-1)

    def length(name: str) -> float:
        other = name.replace("Left", "Right") if name.startswith("Left") else name.replace("Right", "Left")
        return float(np.median(np.concatenate([lengths[name], lengths[other]])))

    directions = {"UpLeg": (1, 0, 0), "Leg": (0, -1, 0), "Foot": (0, -1, 0), "ToeBase": (0, 0, 1), "Arm": (1, 0, 0),
                  "ForeArm": (1, 0, 0), "Hand": (1, 0, 0), "Tip": (1, 0, 0)}  # fmt: skip

    def offset(name: str) -> np.ndarray:
        for side, sign in (("Left", 1.0), ("Right", -1.0)):
            if name.startswith(side):
                return length(name) * np.array(directions[name.removeprefix(side)]) * [sign, 1, 1]
        return np.array([0.0, length(name), 0.0])

    local = np.zeros((len(clip), len(NAMES), 3, 3))
    for j, (name, above) in enumerate(JOINTS.items()):
        local[:, j] = world[name] if above is None else world[above].transpose(0, 2, 1) @ world[name]
    tip = {f"{side}Hand": offset(f"{side}Tip") for side in ("Left", "Right")}
    tip |= {f"{side}ToeBase": np.zeros(3) for side in ("Left", "Right")}
    tip["Head"] = np.array([0.0, SKULL * torso, 0.0])
    fitted = Fitted(np.stack([offset(name) for name in NAMES]), tip, local, hips, 0.0)
    return fitted._replace(error=_error(fitted, points))


_LANDMARK_OF = {
    f"{side}{joint}": f"{side.lower()}_{landmark}"
    for side in ("Left", "Right")
    for joint, landmark in (("UpLeg", "hip"), ("Leg", "knee"), ("Foot", "ankle"), ("Arm", "shoulder"), ("ForeArm", "elbow"),
                            ("Hand", "wrist"))
}  # fmt: skip


def _error(fitted: Fitted, points: np.ndarray) -> float:
    place = positions(fitted)
    gaps = [place[:, NAMES.index(joint)] - points[:, INDEX[landmark]] for joint, landmark in _LANDMARK_OF.items()]
    return float(np.linalg.norm(gaps, axis=-1).mean())


def bvh(fitted: Fitted, rate: float) -> str:
    """The motion as a BVH file in centimetres: a root with place and angles, and angles for every other joint."""
    below: dict[str | None, list[str]] = {}
    for name, above in JOINTS.items():
        below.setdefault(above, []).append(name)
    columns: list[int] = []

    def lines(name: str, depth: int) -> list[str]:
        j, pad = NAMES.index(name), "  " * depth
        columns.append(j)
        offset = " ".join(f"{100 * v:.6f}" for v in fitted.offset[j])
        place = "6 Xposition Yposition Zposition" if depth == 0 else "3"
        out = [f"{pad}{'ROOT' if depth == 0 else 'JOINT'} {name}", f"{pad}{{", f"{pad}  OFFSET {offset}",
               f"{pad}  CHANNELS {place} {' '.join(f'{axis}rotation' for axis in ORDER[name])}"]  # fmt: skip
        for child in below.get(name, []):
            out += lines(child, depth + 1)
        if name not in below:
            tip = " ".join(f"{100 * v:.6f}" for v in fitted.tip[name])
            out += [f"{pad}  End Site", f"{pad}  {{", f"{pad}    OFFSET {tip}", f"{pad}  }}"]
        return [*out, f"{pad}}}"]

    head = lines("Hips", 0)
    angles = fitted.angles()
    rows = np.concatenate([100 * fitted.root, angles[:, columns].reshape(len(angles), -1)], axis=1)
    body = [" ".join(f"{value:.6f}" for value in row) for row in rows]
    return "\n".join(["HIERARCHY", *head, "MOTION", f"Frames: {len(rows)}", f"Frame Time: {1 / rate:.8f}", *body, ""])


def table(fitted: Fitted, rate: float) -> str:
    """The motion as CSV for robots: time, place of the hips in metres, and three angles for every joint in degrees."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    header = ["time_s", *(f"Hips_{axis}_m" for axis in "xyz")]
    header += [f"{name}_{axis}_deg" for name in TURNING for axis in ORDER[name].lower()]
    writer.writerow(header)
    angles = fitted.angles()[:, [NAMES.index(name) for name in TURNING]].reshape(len(fitted.root), -1)
    for number, (root, row) in enumerate(zip(fitted.root, angles, strict=True)):
        writer.writerow([f"{number / rate:.6f}", *(f"{v:.6f}" for v in root), *(f"{v:.5f}" for v in row)])
    return stream.getvalue()


def grounded(clip: np.ndarray) -> np.ndarray:
    """The clip `[frames, 33, 3]` moved up or down so that its lowest foot stands on y = 0."""
    feet = [INDEX[f"{side}_{name}"] for side in ("left", "right") for name in ("heel", "foot_index")]
    result: np.ndarray = clip - [0, clip[:, feet, 1].max(), 0]
    return result
