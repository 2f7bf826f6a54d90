"""Reads Biovision hierarchies (BVH), a skeleton with joint angles over time, and computes the joint positions.

A BVH file has a tree of joints (OFFSET from the parent, animated CHANNELS) and one line of channel values per frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO

import numpy as np

from tasks.extract.findings import Reason
from tasks.extract.source_files import Refusal

MAGIC = b"HIERARCHY"
MAX_BYTES = 128 * 2**20
MAX_JOINTS = 1000
MAX_POSITIONS = 5_000_000  # joints times frames: half a gigabyte
MAX_HEAD = 2**20  # bytes of the hierarchy

_AXES = {"X": 0, "Y": 1, "Z": 2}


@dataclass(frozen=True)
class Joint:
    """A joint, or the end of a limb's last bone (`name` None)."""

    name: str | None
    parent: int  # -1 for the root
    offset: np.ndarray  # [3], from the parent
    channels: tuple[tuple[str, int], ...]  # ("position" or "rotation", axis), in the order of the values
    first: int  # column of its first channel in `Motion.values`


@dataclass(frozen=True)
class Motion:
    """`joints`: parents before their children. `values`: float64 `[frames, channels]`, degrees. `frame_time`: seconds."""

    joints: tuple[Joint, ...]
    values: np.ndarray
    frame_time: float


def read(file: IO[bytes]) -> Motion:
    """Parse a whole file. Raises Refusal if it is malformed or absurdly large."""
    file.seek(0)
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise Refusal(Reason.TOO_LARGE, f"a motion capture of more than {MAX_BYTES} bytes")
    head, separator, rest = content.partition(b"MOTION")
    if not separator:
        raise Refusal(Reason.DAMAGED, "it has no MOTION")
    try:
        joints = _hierarchy(head[:MAX_HEAD].decode("utf-8", "replace").split())
        label, count, *words = rest.split(maxsplit=5)
        if (label, words[:2]) != (b"Frames:", [b"Frame", b"Time:"]):
            raise ValueError("expected Frames: and Frame Time:")
        frame_time = float(words[2])
        numbers = words[3] if len(words) > 3 else b""  # without frames nothing follows
        values = np.fromstring(numbers, sep=" ")  # parses them directly, without a list of words
        channels = sum(len(joint.channels) for joint in joints)
        values = values.reshape(int(count), channels)
    except (ValueError, IndexError, KeyError, StopIteration) as error:
        raise Refusal(Reason.DAMAGED, f"{type(error).__name__}: {error}") from error
    if not (0 < frame_time < 3600 and values.size and np.abs(values).max() < 1e9):
        raise Refusal(Reason.DAMAGED, "it has no frames, or frames of impossible values")
    return Motion(joints, values, frame_time)


def _hierarchy(words: list[str]) -> tuple[Joint, ...]:
    """The joints in the order of the file. Raises ValueError, IndexError or KeyError if the hierarchy is malformed."""
    joints: list[Joint] = []
    path = [-1]  # the joint that each open brace belongs to
    column = 0
    name: str | None = None
    i = 1
    while i < len(words):
        word = words[i].upper()
        if word in ("ROOT", "JOINT"):
            name, i = words[i + 1], i + 2
        elif word == "END":
            name, i = None, i + 2
        elif word == "{":
            if words[i + 1].upper() != "OFFSET":
                raise ValueError("a joint without OFFSET")
            offset = np.array(words[i + 2 : i + 5], dtype=np.float64)
            i += 5
            channels: list[tuple[str, int]] = []
            if words[i].upper() == "CHANNELS":
                count = int(words[i + 1])
                for channel in words[i + 2 : i + 2 + count]:
                    kind = channel[1:].lower()
                    if kind not in ("position", "rotation"):
                        raise ValueError(f"a channel {channel!r}")
                    channels.append((kind, _AXES[channel[0].upper()]))
                i += 2 + count
            if offset.shape != (3,) or not np.isfinite(offset).all() or len(joints) == MAX_JOINTS:
                raise ValueError("an impossible joint")
            joints.append(Joint(name, path[-1], offset, tuple(channels), column))
            path.append(len(joints) - 1)
            column += len(channels)
        elif word == "}":
            path.pop()
            i += 1
        else:
            raise ValueError(f"{words[i][:40]!r} where a joint was expected")
    if not joints or path != [-1] or [joint.parent for joint in joints].count(-1) != 1:
        raise ValueError("not one tree of joints")
    return tuple(joints)


def joint_frames(motion: Motion, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Forward kinematics: positions `[n, joints, 3]` and rotations `[n, joints, 3, 3]` in the file's own axes and unit.

    A joint's matrix is its parent's matrix times the product of its own rotations in the order of its channels. If a joint has
    position channels, they replace its offset (for the root they are added to it). Raises Refusal if there would be more than
    MAX_POSITIONS positions.
    """
    if len(frames) * len(motion.joints) > MAX_POSITIONS:
        raise Refusal(Reason.TOO_LARGE, f"more than {MAX_POSITIONS} joints in all frames")
    values = motion.values[frames]
    position = np.zeros((len(frames), len(motion.joints), 3))
    rotation = np.zeros((len(frames), len(motion.joints), 3, 3))
    for j, joint in enumerate(motion.joints):
        step = np.tile(joint.offset, (len(frames), 1))
        turn = np.tile(np.eye(3), (len(frames), 1, 1))
        moved = [axis for kind, axis in joint.channels if kind == "position"]
        if joint.parent >= 0:
            step[:, moved] = 0
        for column, (kind, axis) in enumerate(joint.channels, start=joint.first):
            if kind == "position":
                step[:, axis] += values[:, column]
            else:
                turn = turn @ _about(axis, np.radians(values[:, column]))
        if joint.parent >= 0:
            step = position[:, joint.parent] + np.einsum("nij,nj->ni", rotation[:, joint.parent], step)
            turn = rotation[:, joint.parent] @ turn
        position[:, j], rotation[:, j] = step, turn
    return position, rotation


def _about(axis: int, angle: np.ndarray) -> np.ndarray:
    """Rotation matrices `[n, 3, 3]` about a coordinate axis by angles `[n]` in radians."""
    matrix = np.tile(np.eye(3), (len(angle), 1, 1))
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix[:, a, a] = matrix[:, b, b] = np.cos(angle)
    matrix[:, b, a] = np.sin(angle)
    matrix[:, a, b] = -np.sin(angle)
    return matrix
