"""What persons are recognised by: numbers that describe a pose, and numbers that describe a picture.

Both come as `[n, 2, d]`: those of the person and those of the mirror image, since no category depends on the side.

References:
    Dalal & Triggs 2005, "Histograms of Oriented Gradients for Human Detection".
"""

from __future__ import annotations

import numpy as np

from tasks.common.skeleton import LIMBS, POSED, embed, face_forward, mirror

SIDE = 48  # pixels to which a picture is reduced
CELL = 8  # pixels along the side of a cell
ORIENTATIONS = 9  # of gradients, over half a turn
CLIP = 0.2  # of a normalised block, as in the paper
_FLOOR = 0.1  # blocks whose gradients are weaker than this are not amplified
# Segments whose mutual angles describe a pose whatever the camera's direction: limbs, feet, shoulders, hips and flanks.
SEGMENTS = (
    (11, 13), (13, 15), (12, 14), (14, 16), (23, 25), (25, 27), (24, 26), (26, 28), (27, 31), (28, 32), (11, 12), (23, 24),
    (11, 23), (12, 24),
)  # fmt: skip
assert set(LIMBS) <= {joint for segment in SEGMENTS for joint in segment}


def of_poses(poses: np.ndarray) -> np.ndarray:
    """Features float32 `[n, 2, 142]` of normalised poses `[n, 33, 3]`.

    The joints of the pose turned to face forward, and the cosines of the angles between all pairs of SEGMENTS.
    """
    return np.stack([_of_poses(poses), _of_poses(mirror(poses))], axis=1)


def _of_poses(poses: np.ndarray) -> np.ndarray:
    first, second = np.array(SEGMENTS).T
    directions = poses[:, second] - poses[:, first]
    directions = directions / np.maximum(np.linalg.norm(directions, axis=-1, keepdims=True), 1e-6)
    cosines = (directions @ directions.transpose(0, 2, 1))[:, *np.triu_indices(len(SEGMENTS), 1)]
    # The joints count as they are, in torso lengths, and not as root mean squares.
    joints = embed(face_forward(poses)) * np.sqrt(len(POSED))
    return np.concatenate([joints, cosines], axis=1, dtype=np.float32)


def of_pictures(pictures: np.ndarray) -> np.ndarray:
    """Features float32 `[n, 2, 900]` of square pictures, uint8 `[n, SIDE, SIDE, 3]`: histograms of oriented gradients."""
    histogram = _gradients(pictures)
    # In the mirror image the columns are reversed, and an angle a becomes 180 degrees - a: so are the orientations.
    return np.stack([_blocks(histogram), _blocks(histogram[:, :, ::-1, ::-1])], axis=1)


def _gradients(pictures: np.ndarray) -> np.ndarray:
    """Gradients by cell and orientation, `[n, cells, cells, ORIENTATIONS]`.

    Of each pixel the colour with the steepest gradient votes for the two nearest orientations.
    """
    light = np.sqrt(pictures.astype(np.float32) / 255)
    across, down = np.zeros_like(light), np.zeros_like(light)
    across[:, :, 1:-1] = light[:, :, 2:] - light[:, :, :-2]
    down[:, 1:-1] = light[:, 2:] - light[:, :-2]
    steepest = (across**2 + down**2).argmax(axis=-1)[..., None]
    across, down = (np.take_along_axis(part, steepest, axis=-1)[..., 0] for part in (across, down))
    magnitude = np.hypot(across, down)
    place = (np.arctan2(down, across) % np.pi) / np.pi * ORIENTATIONS - 0.5
    lower = np.floor(place)
    above = (place - lower) * magnitude
    n, cells = len(pictures), SIDE // CELL
    histogram = np.zeros((n, cells, cells, ORIENTATIONS), np.float32)
    for orientation in range(ORIENTATIONS):
        votes = np.where(lower % ORIENTATIONS == orientation, magnitude - above, 0)
        votes += np.where((lower + 1) % ORIENTATIONS == orientation, above, 0)
        histogram[..., orientation] = votes.reshape(n, cells, CELL, cells, CELL).sum(axis=(2, 4))
    return histogram


def _blocks(histogram: np.ndarray) -> np.ndarray:
    """The cells in overlapping blocks of 2 x 2, each block normalised, clipped and normalised again."""
    blocks = np.concatenate(
        [histogram[:, :-1, :-1], histogram[:, 1:, :-1], histogram[:, :-1, 1:], histogram[:, 1:, 1:]], axis=-1
    )
    return _unit(np.minimum(_unit(blocks), CLIP)).reshape(len(histogram), -1)


def _unit(blocks: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = blocks / np.sqrt((blocks**2).sum(axis=-1, keepdims=True) + _FLOOR**2)
    return scaled
