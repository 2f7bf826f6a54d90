"""The poses of the mannequin: a dozen categories, each a distribution over all joint angles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import TypeVar

import numpy as np

from tasks.synthetic.body import TORSO, Solid, body_solids
from tasks.synthetic.figure import SIDES, Arm, Body, Leg, Pose, Skeleton, Trunk, place

# Standard deviation of every angle about its category's mean, in degrees.
TRUNK_SPREAD = Trunk(lean=5, sway=4, turn=6, bend=8, side=7, twist=10, nod=7, tilt=7, look=14)
ARM_SPREAD = Arm(plane=18, elevation=15, twist=20, elbow=18, pronation=25, wrist=14)
LEG_SPREAD = Leg(flex=10, abduct=7, rotate=10, knee=13, heel=6)

# Range of the joints in degrees, slightly narrower than in American Academy of Orthopaedic Surgeons (1965).
TRUNK_RANGE = (Trunk(-20, -20, -60, -20, -35, -35, -35, -30, -60), Trunk(60, 20, 60, 50, 35, 35, 30, 30, 60))
ARM_RANGE = (Arm(-95, 4, -85, 2, -80, -40), Arm(125, 172, 85, 140, 80, 60))
LEG_RANGE = (Leg(-25, -14, -25, 2, -15), Leg(120, 75, 85, 140, 60))

HANGING = Arm(plane=20, elevation=14, twist=10, elbow=18)
ON_HIP = Arm(plane=-12, elevation=42, twist=62, elbow=95, pronation=20, wrist=10)
FORWARD = Arm(plane=85, elevation=85, twist=5, elbow=15)
SIDEWAYS = Arm(plane=5, elevation=88, twist=0, elbow=8)
OVERHEAD = Arm(plane=25, elevation=152, twist=-25, elbow=25)
WAVING = Arm(plane=15, elevation=85, twist=-75, elbow=80)
GUARD = Arm(plane=60, elevation=40, twist=10, elbow=110)
AHEAD = Arm(plane=80, elevation=38, twist=10, elbow=85)
BEHIND = Arm(plane=-80, elevation=42, twist=5, elbow=75)

Part = TypeVar("Part", Trunk, Arm, Leg)


def _noisy(part: Part, spread: Part, limits: tuple[Part, Part], rng: np.random.Generator) -> Part:
    """The part's angles with normal noise, clipped to the range of the joints."""
    angles = {}
    for field in fields(part):
        mean, sd, low, high = (getattr(p, field.name) for p in (part, spread, *limits))
        angles[field.name] = float(np.clip(mean + sd * rng.standard_normal(), low, high))
    return type(part)(**angles)


def _one(rng: np.random.Generator, *choices: Arm) -> Arm:
    return choices[rng.integers(len(choices))]


def _stand(rng: np.random.Generator) -> Pose:
    """Contrapposto: the weight on the right leg, hips and shoulders tilted in opposite directions."""
    shift = rng.uniform(0, 1)
    return Pose(
        Trunk(sway=-5 * shift, side=9 * shift),
        _one(rng, HANGING, HANGING, ON_HIP, WAVING),
        _one(rng, HANGING, HANGING, ON_HIP, GUARD),
        Leg(flex=4 + 12 * shift, abduct=8, rotate=14, knee=6 + 22 * shift),
        Leg(flex=2, abduct=6, rotate=8, knee=4),
    )


def _walk(rng: np.random.Generator) -> Pose:
    stride = rng.uniform(0.6, 1.2)
    return Pose(
        Trunk(lean=3, twist=8 * stride),
        replace(BEHIND, elevation=25 * stride, elbow=22),
        replace(AHEAD, elevation=28 * stride, elbow=28),
        Leg(flex=28 * stride, abduct=3, rotate=5, knee=8, heel=0),
        Leg(flex=-16 * stride, abduct=3, rotate=5, knee=14, heel=28 * stride),
    )


def _run(rng: np.random.Generator) -> Pose:
    return Pose(
        Trunk(lean=12, bend=4, twist=10),
        BEHIND,
        AHEAD,
        Leg(flex=rng.uniform(45, 85), abduct=4, rotate=3, knee=rng.uniform(70, 110), heel=5),
        Leg(flex=-18, abduct=3, rotate=4, knee=rng.uniform(14, 50), heel=35),
        planted=(False, bool(rng.random() < 0.6)),
        jump=rng.uniform(0.03, 0.15),
    )


def _t_pose(rng: np.random.Generator) -> Pose:
    width = rng.uniform(4, 16)
    leg = Leg(flex=2, abduct=width, rotate=10, knee=5)
    return Pose(Trunk(), SIDEWAYS, SIDEWAYS, leg, leg)


def _hands_up(rng: np.random.Generator) -> Pose:
    width = rng.uniform(4, 22)
    leg = Leg(flex=3, abduct=width, rotate=10, knee=6)
    arms = _one(rng, OVERHEAD, OVERHEAD, WAVING)
    return Pose(Trunk(lean=-2, nod=-6), arms, arms, leg, leg)


def _squat(rng: np.random.Generator) -> Pose:
    depth = rng.uniform(0.6, 1.1)
    leg = Leg(flex=92 * depth, abduct=22, rotate=18, knee=92 * depth, heel=8 * depth)
    arms = _one(rng, FORWARD, FORWARD, GUARD, OVERHEAD, SIDEWAYS)
    return Pose(Trunk(lean=26 * depth, bend=8, nod=-16), arms, arms, leg, leg)


def _warrior(rng: np.random.Generator) -> Pose:
    depth = rng.uniform(0.7, 1.1)
    return Pose(
        Trunk(look=25),
        SIDEWAYS,
        SIDEWAYS,
        Leg(flex=12, abduct=54 * depth, rotate=72, knee=62 * depth),
        Leg(flex=0, abduct=44 * depth, rotate=12, knee=5),
    )


def _lunge(rng: np.random.Generator) -> Pose:
    depth = rng.uniform(0.7, 1.1)
    left, right = ((ON_HIP, ON_HIP), (HANGING, HANGING), (OVERHEAD, OVERHEAD), (BEHIND, AHEAD))[rng.integers(4)]
    return Pose(
        Trunk(lean=6),
        left,
        right,
        Leg(flex=78 * depth, abduct=5, rotate=4, knee=82 * depth),
        Leg(flex=-14, abduct=6, rotate=2, knee=48 * depth, heel=52),
    )


def _tree(rng: np.random.Generator) -> Pose:
    height = rng.uniform(0, 1)
    arms = _one(rng, OVERHEAD, OVERHEAD, SIDEWAYS, ON_HIP)
    return Pose(
        Trunk(sway=-2),
        arms,
        arms,
        Leg(flex=38 + 18 * height, abduct=48, rotate=45, knee=88 + 30 * height, heel=35),
        Leg(flex=1, abduct=1, rotate=6, knee=4),
        planted=(False, True),
    )


def _kick(rng: np.random.Generator) -> Pose:
    aside = rng.uniform(0, 1)
    return Pose(
        Trunk(lean=-8, sway=-8 * aside, bend=10, side=6 * aside),
        _one(rng, SIDEWAYS, GUARD, BEHIND),
        _one(rng, SIDEWAYS, GUARD, AHEAD),
        Leg(flex=75 - 50 * aside, abduct=5 + 55 * aside, rotate=10 + 20 * aside, knee=14, heel=12),
        Leg(flex=4, abduct=4, rotate=14, knee=14),
        planted=(False, True),
    )


def _dance(rng: np.random.Generator) -> Pose:
    reach = rng.uniform(0, 1)
    return Pose(
        Trunk(sway=5 * reach, side=-14 * reach, twist=10, tilt=-8),
        _one(rng, SIDEWAYS, WAVING, ON_HIP),
        _one(rng, OVERHEAD, WAVING, SIDEWAYS),
        Leg(flex=20, abduct=18 + 20 * reach, rotate=30, knee=35),
        Leg(flex=4, abduct=10 + 22 * reach, rotate=18, knee=10, heel=8),
    )


def _stretch(rng: np.random.Generator) -> Pose:
    width = rng.uniform(10, 26)
    leg = Leg(flex=3, abduct=width, rotate=12, knee=5)
    return Pose(
        Trunk(sway=4, side=28, tilt=8),
        _one(rng, ON_HIP, HANGING),
        replace(OVERHEAD, elevation=162, plane=10),
        leg,
        leg,
    )


CATEGORIES: dict[str, Callable[[np.random.Generator], Pose]] = {
    "stand": _stand,
    "walk": _walk,
    "run": _run,
    "t_pose": _t_pose,
    "hands_up": _hands_up,
    "squat": _squat,
    "warrior": _warrior,
    "lunge": _lunge,
    "tree": _tree,
    "kick": _kick,
    "dance": _dance,
    "stretch": _stretch,
}

SOFTNESS = 0.012  # metres by which parts may overlap
DORSIFLEXION = 38.0  # degrees by which a standing foot's ankle may bend upward
_TRIES = 60


def draw(category: str, body: Body, rng: np.random.Generator) -> tuple[Pose, Skeleton]:
    """A random pose of the category for this body, and its frames; half of the poses are mirrored.

    Rejected and drawn again while a limb intersects the body or the floor, or an ankle is bent too far; after 60 attempts the
    least wrong one is returned.
    """
    attempts = []
    for _ in range(_TRIES):
        mean = CATEGORIES[category](rng)
        pose = Pose(
            _noisy(mean.trunk, TRUNK_SPREAD, TRUNK_RANGE, rng),
            _noisy(mean.left_arm, ARM_SPREAD, ARM_RANGE, rng),
            _noisy(mean.right_arm, ARM_SPREAD, ARM_RANGE, rng),
            _noisy(mean.left_leg, LEG_SPREAD, LEG_RANGE, rng),
            _noisy(mean.right_leg, LEG_SPREAD, LEG_RANGE, rng),
            mean.planted,
            mean.jump,
        )
        if rng.random() < 0.5:
            pose = pose.mirrored()
        parts = place(body, pose)
        wrong = max(overlap(body_solids(body, parts)) / SOFTNESS, dorsiflexion(pose, parts) / DORSIFLEXION)
        attempts.append((wrong, pose, parts))
        if wrong <= 1:
            break
    _, pose, parts = min(attempts, key=lambda attempt: attempt[0])
    return pose, parts


def dorsiflexion(pose: Pose, parts: Skeleton) -> float:
    """The larger upward bend of the ankles of planted feet, in degrees from the right angle."""
    angles = [0.0]
    for name, stands in zip(SIDES, pose.planted, strict=True):
        if stands:
            toes = parts[f"{name}_shin"].axes.T @ -parts[f"{name}_foot"].axes[:, 2]
            angles.append(float(np.degrees(np.arctan2(-toes[1], -toes[2]))))
    return max(angles)


_HEAD = ("neck", "skull", "jaw")
_HAND = ("forearm", "index_side", "index")
_LEG = ("thigh", "shin", "inner_sole")


def overlap(solids: dict[str, Solid]) -> float:
    """The depth in metres by which a limb intersects another part or the floor most; 0 if nothing does."""
    legs = [f"{name}_{part}" for name in SIDES for part in _LEG]
    deepest = 0.0
    for side, other in (("left", "right"), ("right", "left")):
        hand = [f"{side}_{part}" for part in _HAND]
        rest = [f"{other}_{part}" for part in ("upper_arm", *_HAND)]
        foot, other_leg = [f"{side}_{part}" for part in _LEG[1:]], [f"{other}_{part}" for part in _LEG]
        deepest = max(
            deepest,
            _press(solids, hand, [*TORSO, *_HEAD, *legs, *rest]),
            _press(solids, [f"{side}_upper_arm"], ["skull", "jaw"]),
            _press(solids, foot, [*TORSO, *other_leg]),
        )
    floor = max(max(s.start[1] + s.first, s.end[1] + s.last) for s in solids.values())
    return max(deepest, float(floor))


def _spheres(solids: dict[str, Solid], names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Seven spheres along each named cone: centres [M, 3] and radii [M]."""
    share = np.linspace(0, 1, 7)[:, None]
    chosen = [solids[name] for name in names]
    centres = np.concatenate([s.start + share * (s.end - s.start) for s in chosen])
    radii = np.concatenate([s.first + share[:, 0] * (s.last - s.first) for s in chosen])
    return centres, radii


def _press(solids: dict[str, Solid], limb: list[str], obstacles: list[str]) -> float:
    """The largest depth in metres by which spheres along the limb intersect spheres along the obstacles."""
    a, ra = _spheres(solids, limb)
    b, rb = _spheres(solids, obstacles)
    gaps = np.linalg.norm(a[:, None] - b[None], axis=-1) - ra[:, None] - rb[None]
    return max(0.0, float(-gaps.min()))
