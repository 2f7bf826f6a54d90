"""The figure's surface: body, clothes, hair and face as round cones, and the positions of the 33 landmarks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tasks.common.skeleton import LANDMARKS
from tasks.synthetic.figure import SIDES, Body, Frame, Skeleton, sole
from tasks.synthetic.render import Cones

CLOTH = 0.007  # thickness of cloth in metres


@dataclass(frozen=True)
class Outfit:
    """Colours [3] in 0..1, and the cut of clothes and hair.

    `sleeve` and `leg` are the covered length of the arm or leg: 0.5 reaches the middle of the upper segment, 1.5 the middle of
    the lower one, 2 the end. `skirt` replaces trousers, `hair_length` is how far hair falls behind the shoulders in head radii
    (0: short), and `bun` ties it up instead.
    """

    skin: np.ndarray
    shirt: np.ndarray
    trousers: np.ndarray
    shoes: np.ndarray
    hair: np.ndarray
    sleeve: float
    leg: float
    skirt: bool
    hair_length: float
    bun: bool


@dataclass(frozen=True)
class Solid:
    """A round cone of the body: its two sphere centres [3] and their radii, in metres.

    `grain` [3] is the direction in which similar cones continue the surface (see `tasks.synthetic.render.Cones`).
    """

    start: np.ndarray
    end: np.ndarray
    first: float
    last: float
    grain: np.ndarray = field(default_factory=lambda: np.zeros(3))

    def part(self, share: float, wider: float) -> Solid:
        """The first `share` (0..1) of the cone, thickened by `wider` metres."""
        radius = self.first + share * (self.last - self.first)
        end = self.start + share * (self.end - self.start)
        return Solid(self.start, end, self.first + wider, radius + wider, self.grain)


def _skull(body: Body, parts: Skeleton) -> Frame:
    """The head's frame moved to the middle of the skull."""
    return Frame(parts["head"].at(0, -0.6 * body.head, -0.15 * body.head), parts["head"].axes)


def body_solids(body: Body, parts: Skeleton) -> dict[str, Solid]:
    """The bare body without hair and facial features, as named round cones."""
    g, h, f = body.girth, body.head, body.foot
    pelvis, waist, chest, neck = (parts[part] for part in ("pelvis", "waist", "chest", "neck"))
    skull, collar = _skull(body, parts), Frame(neck.origin, chest.axes)
    solids = {
        "neck": Solid(neck.at(0, 0.02, 0), skull.at(0, 0.4 * h, 0.2 * h), 0.057 * g, 0.054 * g),
        "skull": Solid(skull.at(0, 0, 0.12 * h), skull.at(0, 0, 0), 0.97 * h, h),
        "jaw": Solid(skull.at(0, 0.3 * h, -0.12 * h), skull.at(0, 0.82 * h, -0.38 * h), 0.75 * h, 0.4 * h),
    }  # fmt: skip
    for name, side in SIDES.items():
        arm, forearm, hand, thigh, shin, foot = (
            parts[f"{name}_{part}"] for part in ("upper_arm", "forearm", "hand", "thigh", "shin", "foot")
        )
        shoulder = arm.origin
        (*heel, heel_radius), (*toes, toe_radius) = sole(body)
        index, pinky = hand.at(0, body.hand, -0.026 * g), hand.at(0, 0.92 * body.hand, 0.026 * g)
        solids |= {
            f"{name}_{part}": solid
            for part, solid in {
                "trapezius": Solid(collar.at(0, 0, 0), shoulder, 0.06 * g, 0.055 * g),
                "collarbone": Solid(collar.at(side * 0.06, 0.1, -0.006), shoulder, 0.092 * g, 0.054 * g),
                "upper_arm": Solid(shoulder, arm.at(0, body.upper_arm, 0), 0.054 * g, 0.041 * g),
                "forearm": Solid(forearm.origin, hand.origin, 0.041 * g, 0.028 * g),
                "index_side": Solid(hand.at(0, 0, -0.008 * g), index, 0.023 * g, 0.018 * g),
                "pinky_side": Solid(hand.at(0, 0, 0.008 * g), pinky, 0.023 * g, 0.017 * g),
                "index": Solid(index, hand.at(-side * 0.022, 1.85 * body.hand, -0.018 * g), 0.016 * g, 0.011 * g),
                "pinky": Solid(pinky, hand.at(-side * 0.022, 1.65 * body.hand, 0.014 * g), 0.017 * g, 0.012 * g),
                "thumb": Solid(
                    hand.at(0, 0.02, -0.015 * g), hand.at(-side * 0.02, 0.085, -0.058 * g), 0.018 * g, 0.012 * g
                ),
                "thigh": Solid(thigh.origin, shin.origin, 0.09 * g, 0.058 * g),
                "shin": Solid(shin.origin, foot.origin, 0.058 * g, 0.038 * g),
                "calf": Solid(
                    shin.at(0, 0.1 * body.shin, 0.008), shin.at(0, 0.5 * body.shin, 0.012), 0.056 * g, 0.05 * g
                ),
                "instep": Solid(foot.at(0, 0.01, 0), foot.at(0, body.ankle - 0.13 * f, -0.3 * f), 0.15 * f, 0.13 * f),
                "inner_sole": Solid(foot.at(*heel), foot.at(-side * 0.04 * f, *toes[1:]), heel_radius, toe_radius),
                "outer_sole": Solid(
                    foot.at(*heel), foot.at(side * 0.06 * f, toes[1], 0.85 * toes[2]), heel_radius, toe_radius
                ),
            }.items()
        }
    stations = [
        (pelvis, 0.75 * body.hip, 0.02, 0.012, 0.108),
        (waist, 0.55 * body.hip, -0.01, 0.0, 0.09),
        (chest, 0.36 * body.clavicle, -0.02, -0.01, 0.096),
        (collar, 0.5 * body.clavicle, 0.1, -0.006, 0.097),
    ]
    ends = [[frame.at(s * x, y, z) for s in SIDES.values()] + [[g * r] * 3] for frame, x, y, z, r in stations]
    torso = _loft(np.array(ends), 4)
    return solids | {f"torso_{i}": solid for i, solid in enumerate(torso)}


def _loft(stations: np.ndarray, steps: int) -> list[Solid]:
    """Round cones that form a smooth band, such as the trunk: `steps` cones from each station to the next.

    Each of the `stations` [K, 3, 3] holds a left end, a right end, and the radius (three times).
    """
    along = np.linspace(0, len(stations) - 1, steps * (len(stations) - 1) + 1)
    lower = np.minimum(along.astype(int), len(stations) - 2)
    share = (along - lower)[:, None, None]
    slices = stations[lower] * (1 - share) + stations[lower + 1] * share
    grain = np.gradient((slices[:, 0] + slices[:, 1]) / 2, axis=0)
    grain /= np.linalg.norm(grain, axis=1, keepdims=True)
    return [Solid(left, right, r[0], r[0], g) for (left, right, r), g in zip(slices, grain, strict=True)]


TORSO = tuple(f"torso_{i}" for i in range(13))
SHIRT = ("trapezius", "collarbone")
HANDS = ("index_side", "pinky_side", "index", "pinky", "thumb")
SHOES = ("instep", "inner_sole", "outer_sole")


def dress(body: Body, parts: Skeleton, outfit: Outfit) -> Cones:
    """The figure as coloured round cones, in world coordinates."""
    solids = body_solids(body, parts)
    worn: list[tuple[Solid, np.ndarray]] = [(solids[part], outfit.skin) for part in ("neck", "skull", "jaw")]
    for i, part in enumerate(TORSO):
        worn.append((solids[part].part(1, CLOTH), outfit.trousers if i < 3 else outfit.shirt))
    for name in SIDES:
        worn += [(solids[f"{name}_{part}"].part(1, CLOTH), outfit.shirt) for part in SHIRT]
        worn += [(solids[f"{name}_{part}"], outfit.skin) for part in HANDS]
        worn += [(solids[f"{name}_{part}"], outfit.shoes) for part in SHOES]
        arm = (solids[f"{name}_upper_arm"], solids[f"{name}_forearm"])
        leg = (solids[f"{name}_thigh"], solids[f"{name}_shin"])
        worn += _sleeve(arm, outfit.sleeve, outfit.shirt, outfit.skin)
        worn += _sleeve(leg, outfit.leg, outfit.trousers, outfit.skin)
        worn += [(solids[f"{name}_calf"], outfit.trousers if outfit.leg > 1.6 else outfit.skin)]
    if outfit.skirt:
        worn += _skirt(solids, outfit)
    worn += _neckline(body, parts, outfit)
    worn += _hair(body, parts, outfit) + _features(body, parts, outfit)
    return Cones(
        start=np.stack([solid.start for solid, _ in worn]),
        end=np.stack([solid.end for solid, _ in worn]),
        radius=np.array([(solid.first, solid.last) for solid, _ in worn]),
        colour=np.stack([colour for _, colour in worn]),
        grain=np.stack([solid.grain for solid, _ in worn]),
    )


def _sleeve(
    limb: tuple[Solid, Solid], covered: float, cloth: np.ndarray, skin: np.ndarray
) -> list[tuple[Solid, np.ndarray]]:
    worn = []
    for i, solid in enumerate(limb):
        share = float(np.clip(covered - i, 0, 1))
        if share < 1:
            worn.append((solid, skin))
        if share > 0:
            worn.append((solid.part(share, CLOTH), cloth))
    return worn


def _skirt(solids: dict[str, Solid], outfit: Outfit) -> list[tuple[Solid, np.ndarray]]:
    """Cloth from the hips to the hem between the thighs. Empty (shorts) if the legs are too far apart for a skirt."""
    ends = []
    for share, wider in ((0.0, 0.01), (outfit.leg, 0.02)):
        left, right = (solids[f"{name}_thigh"].part(share, wider) for name in SIDES)
        ends.append([left.end, right.end, [solids["left_thigh"].first + wider] * 3])
    if np.linalg.norm(left.end - right.end) > 0.3:
        return []
    return [(solid, outfit.trousers) for solid in _loft(np.array(ends), 8)]


def _neckline(body: Body, parts: Skeleton, outfit: Outfit) -> list[tuple[Solid, np.ndarray]]:
    """An open collar, which distinguishes the chest from the back."""
    g, collar = body.girth, Frame(parts["neck"].origin, parts["chest"].axes)
    patch = Solid(collar.at(0, 0, -0.02 * g), collar.at(0, 0.065, -0.074 * g), 0.056 * g, 0.034 * g)
    return [(patch, outfit.skin)]


def _hair(body: Body, parts: Skeleton, outfit: Outfit) -> list[tuple[Solid, np.ndarray]]:
    h, skull = body.head, _skull(body, parts)
    worn = [Solid(skull.at(0, -0.12 * h, 0.22 * h), skull.at(0, -0.2 * h, 0.12 * h), 1.03 * h, 0.99 * h)]
    if outfit.bun:
        worn.append(Solid(skull.at(0, -0.75 * h, 0.85 * h), skull.at(0, -0.85 * h, 0.95 * h), 0.42 * h, 0.4 * h))
    elif outfit.hair_length > 0:
        for side in SIDES.values():
            worn.append(
                Solid(
                    skull.at(side * 0.45 * h, 0.1 * h, 0.45 * h),
                    skull.at(side * 0.6 * h, (0.4 + outfit.hair_length) * h, 0.6 * h),
                    0.6 * h,
                    0.45 * h,
                )
            )
    return [(solid, outfit.hair) for solid in worn]


def _features(body: Body, parts: Skeleton, outfit: Outfit) -> list[tuple[Solid, np.ndarray]]:
    """Eyes, brows, ears, nose and mouth, slightly enlarged so that they stay visible in small pictures."""
    h, skull = body.head, _skull(body, parts)
    white, iris = np.array([0.95, 0.95, 0.93]), np.array([0.08, 0.06, 0.05])
    lips = outfit.skin * np.array([0.78, 0.45, 0.45])
    blush = outfit.skin * np.array([0.97, 0.9, 0.88])

    def drop(x: float, y: float, z: float, radius: float) -> Solid:
        return Solid(skull.at(x * h, y * h, z * h), skull.at(x * h, y * h, z * h), radius * h, radius * h)

    def bar(a: tuple[float, float, float], b: tuple[float, float, float], first: float, last: float) -> Solid:
        return Solid(skull.at(*(h * np.array(a))), skull.at(*(h * np.array(b))), first * h, last * h)

    worn = [(bar((0, 0.15, -0.95), (0, 0.42, -1.06), 0.08, 0.13), blush)]
    for s in SIDES.values():
        worn += [
            (bar((s * 0.27, 0.13, -0.9), (s * 0.5, 0.13, -0.8), 0.09, 0.08), white),
            (drop(s * 0.38, 0.12, -0.9, 0.1), iris),
            (bar((s * 0.17, 0.03, -0.96), (s * 0.58, 0.05, -0.78), 0.05, 0.04), outfit.hair * 0.4),
            (bar((s * 0.17, -0.19, -0.95), (s * 0.6, -0.15, -0.75), 0.06, 0.045), outfit.hair * 0.7),
            (bar((0, 0.68, -0.79), (s * 0.24, 0.64, -0.735), 0.085, 0.06), lips),
            (bar((s * 0.97, 0.1, 0.1), (s * 0.94, 0.38, 0.04), 0.16, 0.1), blush),
        ]
    return worn


def landmarks(body: Body, parts: Skeleton) -> np.ndarray:
    """The 33 landmarks [33, 3] in metres, in world coordinates and in the order of `tasks.common.skeleton.LANDMARKS`."""
    g, h, f, skull = body.girth, body.head, body.foot, _skull(body, parts)
    points = {"nose": skull.at(0, 0.42 * h, -1.18 * h)}
    for name, s in SIDES.items():
        hand, foot = parts[f"{name}_hand"], parts[f"{name}_foot"]
        points |= {
            f"{name}_eye_inner": skull.at(s * 0.2 * h, 0.12 * h, -0.95 * h),
            f"{name}_eye": skull.at(s * 0.38 * h, 0.12 * h, -0.95 * h),
            f"{name}_eye_outer": skull.at(s * 0.56 * h, 0.12 * h, -0.85 * h),
            f"{name}_ear": skull.at(s * 1.0 * h, 0.2 * h, 0.05 * h),
            f"mouth_{name}": skull.at(s * 0.25 * h, 0.65 * h, -0.78 * h),
            f"{name}_shoulder": parts[f"{name}_upper_arm"].origin,
            f"{name}_elbow": parts[f"{name}_forearm"].origin,
            f"{name}_wrist": hand.origin,
            f"{name}_pinky": hand.at(0, 0.92 * body.hand, 0.026 * g),
            f"{name}_index": hand.at(0, body.hand, -0.026 * g),
            f"{name}_thumb": hand.at(-s * 0.012, 0.06, -0.04 * g),
            f"{name}_hip": parts[f"{name}_thigh"].origin,
            f"{name}_knee": parts[f"{name}_shin"].origin,
            f"{name}_ankle": foot.origin,
            f"{name}_heel": foot.at(0, body.ankle - 0.1 * f, 0.3 * f),
            f"{name}_foot_index": foot.at(-s * 0.02 * f, body.ankle - 0.1 * f, -0.68 * f),
        }
    return np.stack([points[name] for name in LANDMARKS])
