"""The renderer: closed form against sampled spheres, outlines, normals, shadow."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import ArrayLike

from tasks.synthetic.render import Camera, Cones, Light, Room, _surface, depth_buffer, extent, render

CAMERA = Camera(focal=150.0, centre=(64.0, 64.0), size=128)


def cones(start: ArrayLike, end: ArrayLike, radius: ArrayLike, colour: ArrayLike = (0.8, 0.2, 0.2)) -> Cones:
    start = np.atleast_2d(np.asarray(start, dtype=float))
    colours = np.broadcast_to(np.asarray(colour, dtype=float), start.shape)
    return Cones(start, np.atleast_2d(np.asarray(end, dtype=float)), np.atleast_2d(radius), colours, 0 * start)


def random_cone(seed: int) -> Cones:
    """A random cone in front of the camera: every fourth lies along a ray, every third has the largest taper."""
    rng = np.random.default_rng(seed)
    start = np.array([*rng.uniform(-0.3, 0.3, 2), rng.uniform(2, 3)])
    along = start if seed % 4 == 0 else rng.standard_normal(3)
    length = rng.uniform(0.05, 0.8)
    first, second = rng.uniform(0.02, 0.3, 2)
    if abs(first - second) > 0.97 * length or seed % 3 == 0:
        second = max(first - 0.97 * length, 0.01)
    ends = (start, start + length * along / np.linalg.norm(along))
    a, b = ends if seed % 2 else ends[::-1]
    return cones(a, b, (first, second) if seed % 2 else (second, first))


@pytest.mark.parametrize("seed", range(24))
def test_a_round_cone_is_the_union_of_the_spheres_along_its_axis(seed: int) -> None:
    cone = random_cone(seed)
    share = np.linspace(0, 1, 800)[:, None]
    centres = cone.start + share * (cone.end - cone.start)
    radii = cone.radius[:, :1] + share * (cone.radius[:, 1:] - cone.radius[:, :1])
    depth, owner = depth_buffer(cone, CAMERA, rays=1)
    swept, _ = depth_buffer(cones(centres, centres, np.repeat(radii, 2, axis=1)), CAMERA, rays=1)
    hit, expected = owner == 0, np.isfinite(swept)
    assert expected.any()
    assert (hit != expected).sum() <= 0.01 * expected.sum() + 1  # grazing rays pass between two samples
    both = hit & expected
    error = np.abs(depth[both] - swept[both])
    assert np.quantile(error, 0.98) < 2e-4
    assert error.max() < 0.01  # grazing rays: single precision under a root


def test_the_extent_of_a_cone_is_exact() -> None:
    for seed in range(12):
        cone = random_cone(seed)
        _, owner = depth_buffer(cone, CAMERA, rays=4)
        rows, columns = np.nonzero(owner == 0)
        (low, high) = extent(cone)[0] * CAMERA.focal + CAMERA.centre
        found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 4
        expected = np.clip([*low, *high], 0, CAMERA.size)
        assert np.abs(found - expected).max() < 0.75  # pixels; a curved tip is narrower than a ray's spacing


def test_the_nearer_cone_is_visible_in_any_order() -> None:
    near, far = cones((0, -0.3, 2), (0, 0.3, 2), (0.1, 0.1)), cones((-0.3, 0, 2.5), (0.3, 0, 2.5), (0.1, 0.1))
    for first, second in ((near, far), (far, near)):
        both = Cones(*(np.concatenate([getattr(c, n) for c in (first, second)]) for n in vars(near)))
        depth, _ = depth_buffer(both, CAMERA, rays=1)
        assert depth[64, 64] == pytest.approx(1.9, abs=1e-3)
        assert depth[64, 52] == pytest.approx(2.4, abs=1e-2)


@pytest.mark.parametrize("seed", range(1, 12, 2))
def test_normals_are_the_gradient_of_the_depth(seed: int) -> None:
    cone = random_cone(seed)
    camera = Camera(focal=1200.0, centre=(512.0, 512.0), size=1024)
    depth, owner = depth_buffer(cone, camera, rays=1)
    seen = owner == 0
    normals = np.full((*seen.shape, 3), np.nan)
    normals[seen] = _surface(cone, camera, 1, depth, owner, seen)
    z = np.where(seen, depth, np.nan).astype(float)
    grid = (np.arange(1024) + 0.5 - 512) / 1200
    points = np.stack([z * grid[None, :], z * grid[:, None], z], axis=-1)
    across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    measured = np.cross(down, across)
    measured /= np.linalg.norm(measured, axis=-1, keepdims=True)
    cosine = (measured * normals[1:-1, 1:-1]).sum(-1)
    inner = np.isfinite(cosine) & (normals[1:-1, 1:-1, 2] < -0.4)
    assert inner.sum() > 500
    assert np.quantile(cosine[inner], 0.02) > np.cos(np.radians(3))


def test_a_sphere_inside_the_other_raises_a_value_error() -> None:
    with pytest.raises(ValueError, match="contains"):
        extent_of = cones((0, 0, 2), (0, 0, 2.1), (0.3, 0.1))
        depth_buffer(extent_of, CAMERA)


def scene(cone: Cones) -> np.ndarray:
    light = Light(np.array([0.0, -1.0, -1.0]) / np.sqrt(2), sun=0.5, sky=0.5)
    up = np.array([0.0, -1.0, 0.0])
    room = Room(0.8 * -up, up, 8.0, np.full(3, 0.6), np.full(3, 0.8), np.zeros((0, 4)))
    return render(cone, CAMERA, light, room)[0].astype(int)


def test_the_shadow_lies_behind_the_figure_and_follows_it() -> None:
    """The sun is in front of and above a floating ball: its shadow falls behind it."""
    empty = scene(cones((50, 0, 3), (50, 0, 3), (0.1, 0.1)))
    for x in (-0.4, 0.4):
        picture = scene(cones((x, 0.2, 2.4), (x, 0.2, 2.4), (0.15, 0.15), colour=(1.0, 0.0, 0.0)))
        rows, columns = np.nonzero((empty - picture).sum(-1)[90:] > 60)  # below the ball
        # The floor point below the light's ray through the ball's centre: 0.6 m farther down and away.
        expected = CAMERA.project(np.array([x, 0.8, 3.0]))
        assert np.abs(np.array([columns.mean(), 90 + rows.mean()]) - expected).max() < 3


def test_edges_are_smooth() -> None:
    picture = scene(cones((0, 0, 2), (0, 0, 2), (0.4, 0.4), colour=(1.0, 0.0, 0.0)))
    red = (picture[64, :, 0] - picture[64, :, 1]) / 255
    assert ((red > 0.15) & (red < 0.55)).sum() >= 1  # a pixel that is part ball, part wall
