"""The skeleton of an articulated figure: bone lengths, joint angles, and the joint positions that follow from them.

World coordinates are in metres: x towards the figure's left hand, y down, z towards its back, the floor at y = 0. These are
the axes of a camera in front of the figure, up to a translation. Angles are in degrees. Limb angles are anatomical, so the
same numbers on both sides give a symmetric pose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

SIDES: dict[str, float] = {"left": 1.0, "right": -1.0}  # the sign of x


@dataclass(frozen=True)
class Body:
    """Lengths of the rigid parts in metres, and `girth`, the factor on all thicknesses."""

    thigh: float
    shin: float
    ankle: float  # height of the ankle joint over the sole
    foot: float  # from the heel to the tip of the toes
    hip: float  # half the distance of the hip joints
    pelvis: float  # from the middle of the hips to the lumbar joint
    waist: float  # from there to the joint below the chest
    chest: float  # from there to the base of the neck
    clavicle: float  # from the breastbone to the shoulder joint
    upper_arm: float
    forearm: float
    hand: float  # from the wrist to the knuckles
    neck: float  # from its base to the head's joint
    head: float  # radius of the skull
    girth: float


@dataclass(frozen=True)
class Arm:
    """Angles of an arm. All zero: it hangs down, the palm facing the thigh.

    `elevation` lifts it in the vertical plane `plane` (0 sideways, 90 forward, -90 backward); `twist` rotates it inward about
    its own axis; `elbow` bends the elbow; `pronation` rotates the thumb inward; `wrist` bends the hand towards the palm.
    """

    plane: float = 0.0
    elevation: float = 0.0
    twist: float = 0.0
    elbow: float = 0.0
    pronation: float = 0.0
    wrist: float = 0.0


@dataclass(frozen=True)
class Leg:
    """Angles of a leg. All zero: it hangs straight down.

    `flex` lifts the thigh forward, `abduct` outward, and `rotate` rotates it outward about its own axis; `knee` bends the
    knee; `heel` points the toes down, measured from the floor if the foot is planted, and from the right angle to the shin if
    not.
    """

    flex: float = 0.0
    abduct: float = 0.0
    rotate: float = 0.0
    knee: float = 0.0
    heel: float = 0.0


@dataclass(frozen=True)
class Trunk:
    """Angles of pelvis (lean, sway, turn), spine (bend, side, twist) and neck (nod, tilt, look).

    The three angles are the inclination forward, the inclination to the figure's left, and the rotation to its left.
    """

    lean: float = 0.0
    sway: float = 0.0
    turn: float = 0.0
    bend: float = 0.0
    side: float = 0.0
    twist: float = 0.0
    nod: float = 0.0
    tilt: float = 0.0
    look: float = 0.0


@dataclass(frozen=True)
class Pose:
    """All joint angles of a figure, and which feet are `planted` on the floor (left, right). If neither is, the figure jumps.

    `jump` is the height in metres of the lowest point of a jumping figure.
    """

    trunk: Trunk
    left_arm: Arm
    right_arm: Arm
    left_leg: Leg
    right_leg: Leg
    planted: tuple[bool, bool] = (True, True)
    jump: float = 0.0

    def mirrored(self) -> Pose:
        """The pose with left and right exchanged."""
        t = self.trunk
        trunk = replace(t, sway=-t.sway, turn=-t.turn, side=-t.side, twist=-t.twist, tilt=-t.tilt, look=-t.look)
        return Pose(
            trunk,
            self.right_arm,
            self.left_arm,
            self.right_leg,
            self.left_leg,
            (self.planted[1], self.planted[0]),
            self.jump,
        )


@dataclass(frozen=True)
class Frame:
    """Position and orientation of a rigid part: `origin` [3] in metres and `axes` [3, 3], whose columns are its x, y and z."""

    origin: np.ndarray
    axes: np.ndarray

    def at(self, x: float, y: float, z: float) -> np.ndarray:
        """The world position of the point with these coordinates in the frame."""
        point: np.ndarray = self.origin + self.axes @ np.array([x, y, z])
        return point


Skeleton = dict[str, Frame]  # pelvis, waist, chest, neck, head; left_ and right_ clavicle ... hand, thigh, shin, foot


def rotation(axis: int, degrees: float) -> np.ndarray:
    """The right-handed rotation [3, 3] about x, y or z (0, 1, 2)."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    j, k = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[j, j] = matrix[k, k] = cos
    matrix[k, j], matrix[j, k] = sin, -sin
    return matrix


def _on_side(left: np.ndarray, side: float) -> np.ndarray:
    """The rotation of a left limb (side 1), or its mirror image for the right limb (side -1)."""
    signs = np.array([side, 1.0, 1.0])
    mirrored: np.ndarray = signs[:, None] * left * signs
    return mirrored


def place(body: Body, pose: Pose) -> Skeleton:
    """The frames of all rigid parts of `body` in `pose`, with planted feet flat on the floor or on their toes.

    Planted feet keep the ground positions given by the leg angles. The pelvis gets the mean of the heights that they ask for,
    and each planted leg is bent to reach its foot by two-bone inverse kinematics in closed form; the knee keeps its direction.
    """
    legs = dict(zip(SIDES, (pose.left_leg, pose.right_leg), strict=True))
    parts = assemble(body, pose)
    lift = _plant(body, legs, parts, dict(zip(SIDES, pose.planted, strict=True)))
    if lift is None:
        lift = -pose.jump - max(lowest(body, parts[f"{name}_foot"]) for name in SIDES)
    shift = np.array([0.0, lift, 0.0])
    return {name: Frame(part.origin + shift, part.axes) for name, part in parts.items()}


def assemble(body: Body, pose: Pose) -> Skeleton:
    """The frames of all rigid parts as the joint angles alone place them; the middle of the hips is the origin."""
    t = pose.trunk
    pelvis = rotation(1, -t.turn) @ rotation(2, t.sway) @ rotation(0, t.lean)
    spine = rotation(1, -t.twist / 2) @ rotation(2, t.side / 2) @ rotation(0, t.bend / 2)
    neck = rotation(1, -t.look / 2) @ rotation(2, t.tilt / 2) @ rotation(0, t.nod / 2)
    parts: Skeleton = {"pelvis": Frame(np.zeros(3), pelvis)}
    parts["waist"] = Frame(parts["pelvis"].at(0, -body.pelvis, 0), pelvis @ spine)
    parts["chest"] = Frame(parts["waist"].at(0, -body.waist, 0), pelvis @ spine @ spine)
    parts["neck"] = Frame(parts["chest"].at(0, -body.chest, 0), parts["chest"].axes @ neck)
    parts["head"] = Frame(parts["neck"].at(0, -body.neck, 0), parts["neck"].axes @ neck)
    legs = dict(zip(SIDES, (pose.left_leg, pose.right_leg), strict=True))
    for (name, side), arm in zip(SIDES.items(), (pose.left_arm, pose.right_arm), strict=True):
        parts |= _arm(body, arm, parts["chest"], name, side)
        parts |= _leg(body, legs[name], parts["pelvis"], name, side)
    return parts


def _arm(body: Body, arm: Arm, chest: Frame, name: str, side: float) -> Skeleton:
    # The shoulder blade contributes to every raised arm (scapulohumeral rhythm), so the shoulder rises.
    girdle = chest.axes @ _on_side(rotation(2, -0.22 * max(arm.elevation - 30, 0)), side)
    clavicle = Frame(chest.at(side * 0.02, -body.chest + 0.035, 0), girdle)
    swing = rotation(1, arm.plane) @ rotation(2, -arm.elevation) @ rotation(1, -arm.plane)
    upper = chest.axes @ _on_side(swing @ rotation(1, arm.twist), side)
    shoulder = Frame(clavicle.at(side * body.clavicle, 0, 0), upper)
    bent = upper @ rotation(0, -arm.elbow)
    elbow = Frame(shoulder.at(0, body.upper_arm, 0), bent)
    hand = bent @ _on_side(rotation(1, arm.pronation) @ rotation(2, arm.wrist), side)
    return {
        f"{name}_clavicle": clavicle,
        f"{name}_upper_arm": shoulder,
        f"{name}_forearm": elbow,
        f"{name}_hand": Frame(elbow.at(0, body.forearm, 0), hand),
    }


def _leg(body: Body, leg: Leg, pelvis: Frame, name: str, side: float) -> Skeleton:
    swing = rotation(0, -leg.flex) @ rotation(2, -leg.abduct) @ rotation(1, -leg.rotate)
    thigh = Frame(pelvis.at(side * body.hip, 0, 0), pelvis.axes @ _on_side(swing, side))
    shin = Frame(thigh.at(0, body.thigh, 0), thigh.axes @ rotation(0, leg.knee))
    foot = Frame(shin.at(0, body.shin, 0), shin.axes @ rotation(0, leg.heel))
    return {f"{name}_thigh": thigh, f"{name}_shin": shin, f"{name}_foot": foot}


def sole(body: Body) -> np.ndarray:
    """The spheres [2, 4] on which a foot stands, under the heel and under the toes: centre in the foot's frame, and radius."""
    f = body.foot
    return np.array([[0, body.ankle - 0.16 * f, 0.17 * f, 0.16 * f], [0, body.ankle - 0.12 * f, -0.6 * f, 0.12 * f]])


def lowest(body: Body, foot: Frame) -> float:
    """The y in metres of the lowest point of a foot."""
    balls = sole(body)
    return float((foot.origin[1] + balls[:, :3] @ foot.axes[1] + balls[:, 3]).max())


def _plant(body: Body, legs: dict[str, Leg], parts: Skeleton, planted: dict[str, bool]) -> float | None:
    """Put the planted feet on the floor (modifies `parts`). Returns the pelvis' y in metres; None if no foot is planted."""
    feet, drops = {}, []
    for name in (name for name, stands in planted.items() if stands):
        ahead = -parts[f"{name}_shin"].axes[:, 2] - parts[f"{name}_thigh"].axes[:, 2]
        heading = np.degrees(np.arctan2(-ahead[0], -ahead[2]))
        foot = Frame(parts[f"{name}_foot"].origin, rotation(1, heading) @ rotation(0, legs[name].heel))
        feet[name] = foot
        drops.append(-lowest(body, foot))
    if not feet:
        return None
    lift = float(np.mean(drops))
    grounded = {
        name: foot.origin + np.array([0.0, y, 0.0]) for (name, foot), y in zip(feet.items(), drops, strict=True)
    }
    for name, ankle in grounded.items():
        # A leg cannot be longer than its bones: lower the pelvis until the farthest foot is within reach.
        hip = parts[f"{name}_thigh"].origin
        across = (ankle - hip)[[0, 2]]
        reach = 0.995 * (body.thigh + body.shin)
        lift = max(lift, float(ankle[1] - hip[1] - np.sqrt(max(reach**2 - across @ across, 0.0))))
    for name, ankle in grounded.items():
        parts |= bend_leg(body, parts[f"{name}_thigh"], ankle - np.array([0.0, lift, 0.0]), feet[name], name)
    return lift


def bend_leg(body: Body, thigh: Frame, ankle: np.ndarray, foot: Frame, name: str) -> Skeleton:
    """The leg from the hip to an ankle, with the knee pointing as before, by the law of cosines in the plane of the leg."""
    a, b = body.thigh, body.shin
    line = ankle - thigh.origin
    distance = float(np.linalg.norm(line))
    reach = float(np.clip(distance, abs(a - b) + 0.05, 0.999 * (a + b)))
    line /= distance
    forward = -thigh.axes[:, 2]
    pole = forward - (forward @ line) * line
    pole /= np.linalg.norm(pole)
    cos = (a * a + reach * reach - b * b) / (2 * a * reach)
    knee = thigh.origin + a * (cos * line + np.sqrt(1 - cos * cos) * pole)
    ankle = thigh.origin + reach * line
    hinge = np.cross(pole, line)
    parts = {}
    for part, start, end in (("thigh", thigh.origin, knee), ("shin", knee, ankle)):
        y = (end - start) / np.linalg.norm(end - start)
        parts[f"{name}_{part}"] = Frame(start, np.stack([hinge, y, np.cross(hinge, y)], axis=1))
    parts[f"{name}_foot"] = Frame(ankle, foot.axes)
    return parts
