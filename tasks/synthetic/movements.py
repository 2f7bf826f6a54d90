"""The movements of the animated mannequin: a category is a random motion, a function of time.

World coordinates are those of `tasks.synthetic.figure`: metres, x to the left of a figure that faces forward, y down, z
backward, the floor at y = 0. A `Moment` gives the joint angles of trunk and arms, the place of the pelvis, and for each foot
either a place on or above the floor or, if there is none, the joint angles of the leg. A foot that stands keeps its place, so
nothing slides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from tasks.synthetic.figure import (
    SIDES,
    Arm,
    Body,
    Frame,
    Leg,
    Pose,
    Skeleton,
    Trunk,
    assemble,
    bend_leg,
    lowest,
    rotation,
    sole,
)

REACH = 0.995  # of a leg's length: the farthest that a hip can be from its ankle


@dataclass(frozen=True)
class Foot:
    """Where a foot is: the ball of the toes at `x`, `z` (metres), turned to the left by `turn` and pitched by `pitch` (degrees,
    toes down), its lowest point `lift` metres above the floor."""

    x: float
    z: float
    turn: float = 0.0
    pitch: float = 0.0
    lift: float = 0.0


@dataclass(frozen=True)
class Moment:
    """One moment of a movement. `pelvis` [3] in metres; `left`, `right`: the feet, None if the angles of the leg place it."""

    pelvis: tuple[float, float, float]
    trunk: Trunk = field(default_factory=Trunk)
    left_arm: Arm = field(default_factory=Arm)
    right_arm: Arm = field(default_factory=Arm)
    left: Foot | None = None
    right: Foot | None = None
    left_leg: Leg = field(default_factory=lambda: Leg(flex=25, rotate=8, knee=50))
    right_leg: Leg = field(default_factory=lambda: Leg(flex=25, rotate=8, knee=50))


Movement = Callable[[float], Moment]  # seconds -> moment


def skeleton(body: Body, moment: Moment) -> Skeleton:
    """The frames of all rigid parts. Where a standing foot would be out of reach, the pelvis is lowered."""
    pose = Pose(moment.trunk, moment.left_arm, moment.right_arm, moment.left_leg, moment.right_leg)
    shift = np.array(moment.pelvis)
    parts = {name: Frame(part.origin + shift, part.axes) for name, part in assemble(body, pose).items()}
    feet = {
        name: _foot_frame(body, foot)
        for name, foot in zip(SIDES, (moment.left, moment.right), strict=True)
        if foot is not None
    }
    drop = 0.0
    for name, foot in feet.items():
        hip, longest = parts[f"{name}_thigh"].origin, REACH * (body.thigh + body.shin)
        across = (foot.origin - hip)[[0, 2]]
        highest = foot.origin[1] - np.sqrt(max(longest**2 - across @ across, 0.0))  # y points down
        drop = max(drop, float(highest - hip[1]))
    down = np.array([0.0, drop, 0.0])
    parts = {name: Frame(part.origin + down, part.axes) for name, part in parts.items()}
    for name, foot in feet.items():
        parts |= bend_leg(body, parts[f"{name}_thigh"], foot.origin, foot, name)
    return parts


def _foot_frame(body: Body, foot: Foot) -> Frame:
    """The frame of a foot in this place; its origin is the ankle."""
    axes = rotation(1, -foot.turn) @ rotation(0, foot.pitch)
    toes = sole(body)[1, :3]
    origin = np.array([foot.x, 0.0, foot.z]) - axes @ toes
    frame = Frame(np.array([origin[0], 0.0, origin[2]]), axes)
    return Frame(np.array([origin[0], -lowest(body, frame) - foot.lift, origin[2]]), axes)


def _smooth(u: float) -> float:
    """0 to 1 with no speed at both ends."""
    u = float(np.clip(u, 0, 1))
    return u * u * (3 - 2 * u)


def _wave(time: float, rate: float, phase: float) -> float:
    """0 to 1 and back, `rate` times a second."""
    return float(0.5 - 0.5 * np.cos(2 * np.pi * (rate * time + phase)))


def _sine(time: float, rate: float, phase: float) -> float:
    return float(np.sin(2 * np.pi * (rate * time + phase)))


def _legs(body: Body) -> float:
    """The height in metres of the hips over the floor when the legs are straight."""
    return body.thigh + body.shin + body.ankle


def _toes_ahead(body: Body) -> float:
    """How far in metres the ball of the toes lies before the ankle."""
    return float(-sole(body)[1, 2])


HANGING = Arm(plane=20, elevation=12, twist=8, elbow=16)
GUARD = Arm(plane=60, elevation=40, twist=10, elbow=115)


def _between(first: Arm, last: Arm, share: float) -> Arm:
    """The angles of an arm on the way from one pose to another."""
    mixed = {name: a + share * (getattr(last, name) - a) for name, a in vars(first).items()}
    return Arm(**mixed)


@dataclass(frozen=True)
class Gait:
    """Steps along a path: each foot stands for the share `duty` of a cycle, then swings to where it stands next.

    `speed` forward and `aside` to the left in metres per second, `turning` to the left in degrees per second; `rate`: cycles
    (two steps) a second, `phase` of the first; `width` between the feet in metres; `lift` of a swinging foot in metres;
    `toe_off`: pitch of a foot that leaves the floor, degrees; `bounce`: of the pelvis, metres; `low`: how much lower than
    straight legs the pelvis is, metres.
    """

    speed: float
    rate: float
    phase: float
    duty: float
    width: float
    lift: float
    toe_off: float
    bounce: float
    low: float
    aside: float = 0.0
    turning: float = 0.0

    def heading(self, time: float) -> float:
        """Degrees to the left of straight ahead."""
        return self.turning * time

    def place(self, time: float) -> np.ndarray:
        """The x and z of the pelvis [2]."""
        angle = np.radians(self.heading(time))
        if abs(self.turning) < 1e-6:
            forward, left = np.array([0.0, -time]), np.array([time, 0.0])
        else:
            w = np.radians(self.turning)
            forward = np.array([1 - np.cos(angle), -np.sin(angle)]) / w
            left = np.array([np.sin(angle), 1 - np.cos(angle)]) / w
        place: np.ndarray = self.speed * forward + self.aside * left
        return place

    def foot(self, body: Body, time: float, side: float) -> Foot:
        """Where the left (side 1) or the right foot (-1) is."""
        cycle = self.rate * time + self.phase + (0.0 if side > 0 else 0.5)
        step = int(np.floor(cycle))
        share = cycle - step
        stands = self._stand(body, step, side)
        if share < self.duty:
            rise = _smooth((share / self.duty - 0.6) / 0.4)
            return replace(stands, pitch=self.toe_off * rise)
        swing = (share - self.duty) / (1 - self.duty)
        lands, u = self._stand(body, step + 1, side), _smooth(swing)
        return Foot(
            stands.x + u * (lands.x - stands.x),
            stands.z + u * (lands.z - stands.z),
            stands.turn + u * (lands.turn - stands.turn),
            pitch=self.toe_off * (1 - _smooth(swing * 1.6)),
            lift=self.lift * float(np.sin(np.pi * swing)),
        )

    def _stand(self, body: Body, step: int, side: float) -> Foot:
        """The place of a step: beside where the pelvis is in the middle of the stance."""
        middle = (step + self.duty / 2 - self.phase - (0.0 if side > 0 else 0.5)) / self.rate
        angle = np.radians(self.heading(middle))
        left, forward = np.array([np.cos(angle), np.sin(angle)]), np.array([np.sin(angle), -np.cos(angle)])
        x, z = self.place(middle) + side * self.width / 2 * left + 0.6 * _toes_ahead(body) * forward
        return Foot(float(x), float(z), self.heading(middle) + side * 6)

    def moment(self, body: Body, time: float, swing: float, elbow: float, lean: float) -> Moment:
        """The whole figure; `swing` of the arms, `elbow` and `lean` in degrees."""
        x, z = self.place(time)
        cycle = 2 * np.pi * (self.rate * time + self.phase)
        height = _legs(body) - self.low + self.bounce * float(np.cos(2 * (cycle - np.pi * self.duty)))
        sideways = 0.02 * float(np.sin(cycle))
        angle = np.radians(self.heading(time))
        ahead = float(np.cos(cycle))  # the left foot is before the right one
        trunk = Trunk(lean=lean, sway=2.5 * float(np.sin(cycle)), turn=self.heading(time) - 5 * ahead, twist=10 * ahead)

        def arm(sign: float) -> Arm:
            return Arm(
                plane=82, elevation=4 + sign * swing * ahead, twist=4, elbow=elbow + 0.35 * swing * (1 + sign * ahead)
            )

        return Moment(
            (float(x + sideways * np.cos(angle)), -height, float(z + sideways * np.sin(angle))),
            trunk,
            replace(arm(-1), elevation=4 - swing * ahead),
            arm(1),
            self.foot(body, time, 1.0),
            self.foot(body, time, -1.0),
        )


def _walk(body: Body, rng: np.random.Generator) -> Movement:
    speed = rng.uniform(0.8, 1.7)
    rate = rng.uniform(0.85, 1.0) * (0.55 + 0.3 * speed)
    gait = Gait(speed, rate, rng.random(), rng.uniform(0.58, 0.64), rng.uniform(0.14, 0.22), rng.uniform(0.06, 0.11),
                rng.uniform(28, 42), 0.02, 0.035, turning=rng.normal(0, 8))  # fmt: skip
    swing, elbow, lean = rng.uniform(12, 30) * speed**0.5, rng.uniform(8, 25), rng.uniform(0, 7)
    return lambda time: gait.moment(body, time, swing, elbow, lean)


def _run(body: Body, rng: np.random.Generator) -> Movement:
    speed = rng.uniform(2.2, 3.6)
    gait = Gait(speed, rng.uniform(1.3, 1.55), rng.random(), rng.uniform(0.34, 0.42), rng.uniform(0.08, 0.14),
                rng.uniform(0.18, 0.3), rng.uniform(45, 60), 0.045, 0.075, turning=rng.normal(0, 8))  # fmt: skip
    swing, elbow, lean = rng.uniform(30, 48), rng.uniform(70, 95), rng.uniform(8, 16)
    return lambda time: gait.moment(body, time, swing, elbow, lean)


def _march(body: Body, rng: np.random.Generator) -> Movement:
    gait = Gait(rng.uniform(0, 0.4), rng.uniform(0.8, 1.1), rng.random(), rng.uniform(0.52, 0.58), rng.uniform(0.16, 0.22),
                rng.uniform(0.3, 0.48), 20, 0.02, 0.03)  # fmt: skip
    swing, elbow = rng.uniform(35, 60), rng.uniform(25, 80)
    return lambda time: gait.moment(body, time, swing, elbow, 2)


def _side_step(body: Body, rng: np.random.Generator) -> Movement:
    gait = Gait(0.0, rng.uniform(0.8, 1.15), rng.random(), rng.uniform(0.56, 0.62), rng.uniform(0.34, 0.44),
                rng.uniform(0.06, 0.12), 15, 0.02, rng.uniform(0.06, 0.12), aside=rng.uniform(0.25, 0.45))  # fmt: skip
    spread = rng.uniform(20, 75)

    def movement(time: float) -> Moment:
        moment = gait.moment(body, time, 5, 40, 10)
        arm = Arm(plane=25, elevation=spread, elbow=50, twist=10)
        return replace(moment, left_arm=arm, right_arm=arm)

    return movement


def _turn(body: Body, rng: np.random.Generator) -> Movement:
    gait = Gait(0.0, rng.uniform(0.9, 1.2), rng.random(), 0.6, rng.uniform(0.2, 0.26), rng.uniform(0.06, 0.1), 20, 0.015, 0.04,
                turning=rng.uniform(70, 150))  # fmt: skip
    swing = rng.uniform(5, 15)
    return lambda time: gait.moment(body, time, swing, 20, 2)


@dataclass(frozen=True)
class Stance:
    """Two feet that stay on the floor: `width` between them and how far the left one is ahead, in metres; `out` degrees."""

    width: float
    ahead: float = 0.0
    out: float = 8.0

    def feet(self, body: Body) -> tuple[Foot, Foot]:
        """The left and the right foot."""
        toes = 0.75 * _toes_ahead(body)
        return (
            Foot(self.width / 2, -toes - self.ahead / 2, self.out),
            Foot(-self.width / 2, -toes + self.ahead / 2, -self.out),
        )


def _squat(body: Body, rng: np.random.Generator) -> Movement:
    left, right = Stance(rng.uniform(0.32, 0.5), out=rng.uniform(12, 28)).feet(body)
    rate, phase, depth = rng.uniform(0.35, 0.75), rng.random(), rng.uniform(0.24, 0.42) * _legs(body)
    raised = rng.uniform(55, 95)
    leg = Leg(flex=80, abduct=20, rotate=22, knee=90)

    def movement(time: float) -> Moment:
        u = _wave(time, rate, phase)
        arm = _between(HANGING, Arm(plane=84, elevation=raised, elbow=12), u)
        trunk = Trunk(lean=38 * u, bend=8 * u, nod=-20 * u)
        pelvis = (0.0, -(_legs(body) - 0.02 - depth * u), 0.22 * depth * u)
        return Moment(pelvis, trunk, arm, arm, left, right, leg, leg)

    return movement


def _bow(body: Body, rng: np.random.Generator) -> Movement:
    left, right = Stance(rng.uniform(0.14, 0.28)).feet(body)
    rate, phase, depth = rng.uniform(0.3, 0.6), rng.random(), rng.uniform(30, 60)
    hands = rng.uniform(0, 40)

    def movement(time: float) -> Moment:
        u = _wave(time, rate, phase)
        arm = replace(HANGING, plane=70, elevation=8 + hands * u)
        trunk = Trunk(lean=0.75 * depth * u, bend=0.6 * depth * u, nod=10 * u)
        return Moment((0.0, -(_legs(body) - 0.02), 0.16 * u), trunk, arm, arm, left, right)

    return movement


def _greet(body: Body, rng: np.random.Generator) -> Movement:
    left, right = Stance(rng.uniform(0.16, 0.3)).feet(body)
    rate, phase, width = rng.uniform(0.9, 1.8), rng.random(), rng.uniform(15, 32)
    raised, other = rng.uniform(70, 100), replace(HANGING, elevation=rng.uniform(8, 20))
    shift = rng.uniform(-0.04, 0.04)

    def movement(time: float) -> Moment:
        s = _sine(time, rate, phase)
        arm = Arm(plane=15, elevation=raised, twist=-75 + 0.35 * width * s, elbow=80 + width * s, wrist=-8 * s)
        trunk = Trunk(side=-3 - s, sway=40 * shift, look=4 * s)
        return Moment((shift, -(_legs(body) - 0.015), 0.0), trunk, arm, other, left, right)

    return movement


def _punch(body: Body, rng: np.random.Generator) -> Movement:
    left, right = Stance(rng.uniform(0.28, 0.4), ahead=rng.uniform(0.2, 0.4), out=12).feet(body)
    rate, phase, low = rng.uniform(0.8, 1.4), rng.random(), rng.uniform(0.06, 0.14)
    height = rng.uniform(72, 95)

    def movement(time: float) -> Moment:
        cycle = (rate * time + phase) % 1
        jab = float(np.sin(2 * np.pi * cycle))
        reach_left, reach_right = _smooth(max(jab, 0) * 1.2), _smooth(max(-jab, 0) * 1.2)
        out = Arm(plane=84, elevation=height, twist=20, elbow=8, pronation=35)
        trunk = Trunk(lean=8, bend=6, twist=24 * (reach_right - reach_left), turn=-6)
        sway = 0.03 * jab
        pelvis = (sway, -(_legs(body) - low), 0.0)
        guard = GUARD
        return Moment(
            pelvis, trunk, _between(guard, out, reach_left), _between(guard, out, reach_right), left,
            replace(right, pitch=18.0),
        )  # fmt: skip

    return movement


def _kick(body: Body, rng: np.random.Generator) -> Movement:
    _, right = Stance(0.16, out=14).feet(body)
    rate, phase, high = rng.uniform(0.45, 0.8), rng.random(), rng.uniform(55, 95)
    guard = _between(HANGING, GUARD, rng.uniform(0.3, 1.0))

    def movement(time: float) -> Moment:
        cycle = (rate * time + phase) % 1
        up = _smooth(cycle / 0.4) if cycle < 0.4 else 1 - _smooth((cycle - 0.4) / 0.4)
        snap = _smooth((cycle - 0.2) / 0.2) if cycle < 0.4 else 1 - _smooth((cycle - 0.42) / 0.15)
        leg = Leg(
            flex=6 + high * up,
            abduct=4 + 6 * up,
            rotate=8,
            knee=14 + 90 * up**0.5 * (1 - snap),
            heel=-8 - 60 * up * (1 - up) + 36 * up * snap,
        )
        trunk = Trunk(lean=-9 * up, bend=9 * up, twist=-8 * up)
        left_arm, right_arm = (
            replace(guard, elevation=guard.elevation + 12 * up),
            replace(guard, elevation=guard.elevation + 18 * up),
        )
        return Moment((-0.06, -(_legs(body) - 0.03), 0.0), trunk, left_arm, right_arm, None, right, left_leg=leg)

    return movement


def _hop(time: float, rate: float, phase: float, airborne: float) -> tuple[float, float]:
    """How deep the knees are bent (0..1) and how high the body flies (0..1): crouch, flight, landing."""
    cycle = (rate * time + phase) % 1
    if cycle < 1 - airborne:
        u = cycle / (1 - airborne)
        return float(np.sin(np.pi * u) ** 2), 0.0
    u = (cycle - (1 - airborne)) / airborne
    return 0.0, float(4 * u * (1 - u))


def _jump(body: Body, rng: np.random.Generator) -> Movement:
    left, right = Stance(rng.uniform(0.22, 0.36), out=10).feet(body)
    height, rate, phase = rng.uniform(0.15, 0.4), rng.uniform(0.6, 0.9), rng.random()
    airborne = rate * float(np.sqrt(8 * height / 9.81))  # the share of the cycle that the flight takes
    depth, raised = rng.uniform(0.2, 0.32), rng.uniform(60, 150)

    def movement(time: float) -> Moment:
        crouch, flight = _hop(time, rate, phase, airborne)
        arm = _between(
            _between(HANGING, Arm(plane=80, elevation=-30, elbow=15), crouch),
            Arm(plane=80, elevation=raised, elbow=20),
            flight,
        )
        trunk = Trunk(lean=32 * crouch, bend=6 * crouch, nod=-14 * crouch)
        up = height * flight
        feet = [replace(foot, lift=up, pitch=35 * _smooth(flight * 2)) for foot in (left, right)]
        pelvis = (0.0, -(_legs(body) - 0.01 - depth * crouch + up), 0.06 * crouch)
        return Moment(pelvis, trunk, arm, arm, feet[0], feet[1])

    return movement


def _jumping_jack(body: Body, rng: np.random.Generator) -> Movement:
    near, far = rng.uniform(0.12, 0.2), rng.uniform(0.6, 0.85)
    rate, phase, raised = rng.uniform(0.8, 1.2), rng.random(), rng.uniform(130, 160)
    height = rng.uniform(0.05, 0.1)

    def movement(time: float) -> Moment:
        cycle = (rate * time + phase) % 1
        open_ = _smooth(cycle / 0.4) if cycle < 0.5 else 1 - _smooth((cycle - 0.5) / 0.4)
        moving = min(cycle % 0.5 / 0.4, 1.0)
        flight = float(4 * moving * (1 - moving))
        left, right = Stance(near + (far - near) * open_, out=10).feet(body)
        arm = Arm(plane=10, elevation=8 + (raised - 8) * open_, twist=-20 * open_, elbow=14)
        bent = 0.03 + 0.03 * (1 - flight)
        spread = 0.5 * (near + (far - near) * open_) - body.hip
        across = float(np.sqrt(max((body.thigh + body.shin) ** 2 - spread**2, 0))) - (body.thigh + body.shin)
        pelvis = (0.0, -(_legs(body) + across - bent + height * flight), 0.0)
        feet = [replace(foot, lift=height * flight, pitch=25 * flight) for foot in (left, right)]
        return Moment(pelvis, Trunk(lean=2), arm, arm, feet[0], feet[1])

    return movement


def _lunge(body: Body, rng: np.random.Generator) -> Movement:
    left, right = Stance(rng.uniform(0.16, 0.26), out=4).feet(body)
    rate, phase = rng.uniform(0.4, 0.65), rng.random()
    step, depth, elevation = rng.uniform(0.55, 0.8), rng.uniform(0.22, 0.34), rng.uniform(20, 70)

    def movement(time: float) -> Moment:
        cycle = (rate * time + phase) % 1
        out = _smooth(cycle / 0.45) if cycle < 0.5 else 1 - _smooth((cycle - 0.55) / 0.45)
        moving = cycle / 0.45 if cycle < 0.45 else (cycle - 0.55) / 0.45 if cycle > 0.55 else 0.0
        lift = 0.09 * float(np.sin(np.pi * moving)) if 0 < moving < 1 else 0.0
        front = replace(left, z=left.z - step * out, lift=lift)
        back = replace(right, pitch=50 * out)
        arm = Arm(plane=15, elevation=12 + (elevation - 12) * out, elbow=60 * out + 12, twist=20 * out)
        pelvis = (0.0, -(_legs(body) - 0.02 - depth * out), -0.5 * step * out)
        return Moment(pelvis, Trunk(lean=6 * out), arm, arm, front, back)

    return movement


def _throw(body: Body, rng: np.random.Generator) -> Movement:
    left, right = Stance(rng.uniform(0.22, 0.34), ahead=rng.uniform(0.25, 0.4), out=10).feet(body)
    rate, phase, high = rng.uniform(0.5, 0.85), rng.random(), rng.uniform(85, 125)

    def movement(time: float) -> Moment:
        cycle = (rate * time + phase) % 1
        back = _smooth(cycle / 0.4) if cycle < 0.4 else 1 - _smooth((cycle - 0.4) / 0.2)
        forth = _smooth((cycle - 0.4) / 0.22) if cycle < 0.62 else 1 - _smooth((cycle - 0.62) / 0.38)
        arm = _between(HANGING, Arm(plane=-10, elevation=high, twist=-70, elbow=95), back)
        arm = _between(arm, Arm(plane=82, elevation=high - 25, twist=10, elbow=15), forth)
        other = _between(HANGING, Arm(plane=70, elevation=70, elbow=20), back)
        trunk = Trunk(lean=-6 * back + 14 * forth, bend=8 * forth, twist=-28 * back + 26 * forth)
        pelvis = (0.0, -(_legs(body) - 0.06), 0.08 * back - 0.1 * forth)
        return Moment(pelvis, trunk, other, arm, left, replace(right, pitch=12 + 30 * forth))

    return movement


def _dance(body: Body, rng: np.random.Generator) -> Movement:
    left, right = Stance(rng.uniform(0.36, 0.52), out=14).feet(body)
    rate, phase, sway = rng.uniform(0.7, 1.15), rng.random(), rng.uniform(0.07, 0.13)
    low, style = rng.uniform(0.05, 0.1), rng.uniform(0, 1)
    first, second = Arm(plane=20, elevation=75, twist=-60, elbow=85), Arm(plane=25, elevation=145, twist=-20, elbow=40)
    first = _between(first, Arm(plane=60, elevation=45, elbow=95), style)

    def movement(time: float) -> Moment:
        s = _sine(time, rate, phase)
        beat = _wave(time, 2 * rate, 2 * phase)
        trunk = Trunk(sway=6 * s, side=-13 * s, twist=12 * s, tilt=8 * s, lean=3)
        pelvis = (sway * s, -(_legs(body) - low - 0.035 * beat), 0.0)
        feet = (
            replace(left, pitch=32 * _smooth(-s)),
            replace(right, pitch=32 * _smooth(s)),
        )
        return Moment(
            pelvis, trunk, _between(first, second, 0.5 + 0.5 * s), _between(first, second, 0.5 - 0.5 * s), *feet
        )

    return movement


MOVEMENTS: dict[str, Callable[[Body, np.random.Generator], Movement]] = {
    "walk": _walk,
    "run": _run,
    "march": _march,
    "side_step": _side_step,
    "turn": _turn,
    "jump": _jump,
    "jumping_jack": _jumping_jack,
    "squat": _squat,
    "lunge": _lunge,
    "kick": _kick,
    "punch": _punch,
    "throw": _throw,
    "wave": _greet,
    "bow": _bow,
    "dance": _dance,
}
