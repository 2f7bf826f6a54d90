"""A renderer of round cones: closed-form ray casting, a depth buffer, one distant light, a floor with a soft shadow.

A round cone is the convex hull of two spheres. All coordinates are camera coordinates in metres: x to the right of the
picture, y down, z away from the camera, which is at the origin. Picture coordinates (u, v) are in pixels; (0, 0) is the outer
corner of the top left pixel. The point (x, y, z) projects to focal * (x, y) / z + centre.

For a cone from the sphere (a, ra) to the sphere (b, rb), with w the unit axis, L its length, s = (ra - rb) / L and
c^2 = 1 - s^2, a point q relative to `a` with t = q.w lies on the tangent cone when

    c^2 |q|^2 - t^2 + 2 ra s t - ra^2 = 0,

and on the part between the two circles of tangency when ra s < t < L + rb s. Along a ray this is a quadratic equation. Each
cone is intersected only with rays inside the bounding rectangle of its projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter

SUPERSAMPLING = 2  # rays per pixel and direction
_CONTACT = 0.04  # metres: depth steps of about this size darken the surface behind them
_RELIEF = 0.01  # metres: smaller steps belong to one surface


@dataclass(frozen=True)
class Cones:
    """N round cones: `start` and `end` [N, 3] and `radius` [N, 2] in metres, `colour` [N, 3] in 0..1.

    `grain` [N, 3] is a unit vector along which neighbouring cones continue the surface, so that it is shaded without ripples
    between them; 0 for a cone that stands alone.
    """

    start: np.ndarray
    end: np.ndarray
    radius: np.ndarray
    colour: np.ndarray
    grain: np.ndarray

    def moved(self, rotation: np.ndarray, translation: np.ndarray) -> Cones:
        """The cones transformed by x -> rotation x + translation."""
        start = self.start @ rotation.T + translation
        end = self.end @ rotation.T + translation
        return Cones(start, end, self.radius, self.colour, self.grain @ rotation.T)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: `focal` and `centre` (u, v) in pixels, for a square picture of `size` pixels."""

    focal: float
    centre: tuple[float, float]
    size: int

    def project(self, points: np.ndarray) -> np.ndarray:
        """Picture coordinates [..., 2] in pixels of points [..., 3] in metres."""
        pixels: np.ndarray = self.focal * points[..., :2] / points[..., 2:] + np.array(self.centre)
        return pixels


@dataclass(frozen=True)
class Light:
    """A distant light: unit `direction` [3] towards it, its strength `sun`, and the strength `sky` of the ambient light."""

    direction: np.ndarray
    sun: float
    sky: float


@dataclass(frozen=True)
class Room:
    """The surroundings: a floor through `point` [3] with unit normal `up` [3], and a wall.

    `wall_distance` is the depth in metres at which the floor ends; `floor` and `wall` are colours [3] in 0..1. `waves` [K, 4]
    is a faint pattern on both: each wave has two frequencies (cycles per picture), a phase and an amplitude.
    """

    point: np.ndarray
    up: np.ndarray
    wall_distance: float
    floor: np.ndarray
    wall: np.ndarray
    waves: np.ndarray


def _axes(cones: Cones) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit axis [N, 3], length [N] and slope s [N] of every cone; a cone of length 0 is a sphere with slope 0."""
    along = cones.end - cones.start
    length = np.linalg.norm(along, axis=1)
    safe = np.maximum(length, 1e-9)
    slope = np.where(length > 1e-9, (cones.radius[:, 0] - cones.radius[:, 1]) / safe, 0.0)
    if np.any(np.abs(slope) >= 1):
        raise ValueError("one sphere of a round cone contains the other")
    return along / safe[:, None], length, slope


def extent(cones: Cones) -> np.ndarray:
    """The bounding rectangle [N, 2, 2] of each cone's projection at focal length 1: lowest (x, y), then highest (x, y).

    Exact: along one axis a sphere is bounded by two tangents at the angle asin(r / distance) from its centre, and the hull of
    two spheres projects to the hull of their projections.
    """
    low, high = [], []
    for centre, radius in ((cones.start, cones.radius[:, :1]), (cones.end, cones.radius[:, 1:])):
        flat, depth = centre[:, :2], centre[:, 2:]
        middle = np.arctan2(flat, depth)
        half = np.arcsin(radius / np.hypot(flat, depth))
        low.append(np.tan(middle - half))
        high.append(np.tan(middle + half))
    return np.stack([np.minimum(*low), np.maximum(*high)], axis=1)


def depth_buffer(cones: Cones, camera: Camera, rays: int = SUPERSAMPLING) -> tuple[np.ndarray, np.ndarray]:
    """Depth z in metres of the nearest surface, and the number of its cone, for every ray.

    Both are [size * rays, size * rays]. Where no cone is hit, the depth is infinite and the number -1.
    """
    side = camera.size * rays
    depth = np.full((side, side), np.inf, dtype=np.float32)
    owner = np.full((side, side), -1, dtype=np.int16)
    axes, lengths, slopes = _axes(cones)
    focal = camera.focal * rays
    centre = np.array(camera.centre) * rays
    boxes = extent(cones) * focal + centre
    low = np.clip(np.floor(boxes[:, 0]), 0, side).astype(int)
    high = np.clip(np.ceil(boxes[:, 1]) + 1, 0, side).astype(int)
    x = ((np.arange(side) + 0.5 - centre[0]) / focal).astype(np.float32)
    y = ((np.arange(side) + 0.5 - centre[1]) / focal).astype(np.float32)
    for i in range(len(lengths)):
        columns, rows = slice(low[i, 0], high[i, 0]), slice(low[i, 1], high[i, 1])
        if columns.start >= columns.stop or rows.start >= rows.stop:
            continue
        hit = _first_hit(
            x[columns], y[rows], cones.start[i], cones.end[i], cones.radius[i], axes[i], lengths[i], slopes[i]
        )
        nearer = hit < depth[rows, columns]
        depth[rows, columns][nearer] = hit[nearer]
        owner[rows, columns][nearer] = i
    return depth, owner


def _first_hit(
    x: np.ndarray,
    y: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    radius: np.ndarray,
    axis: np.ndarray,
    length: float,
    slope: float,
) -> np.ndarray:
    """Depth [len(y), len(x)] at which the rays (x, y, 1) enter one round cone, infinite where they miss it."""

    def dot(v: np.ndarray) -> np.ndarray:
        return (np.float32(v[0]) * x)[None, :] + (np.float32(v[1]) * y + np.float32(v[2]))[:, None]

    squared = (x * x)[None, :] + (y * y + np.float32(1))[:, None]
    towards_start = dot(start)
    hit = _sphere(squared, towards_start, float(start @ start), radius[0])
    if length == 0:
        return hit
    hit = np.minimum(hit, _sphere(squared, dot(end), float(end @ end), radius[1]))
    # The quadratic A z^2 + 2 B z + C of the tangent cone along the ray. The ray enters where it falls through zero.
    cosine2 = 1 - slope * slope
    along = dot(axis)
    offset = float(start @ axis)
    a = np.float32(cosine2) * squared - along * along
    b = np.float32(offset + radius[0] * slope) * along - np.float32(cosine2) * towards_start
    c = cosine2 * float(start @ start) - offset**2 - 2 * radius[0] * slope * offset - radius[0] ** 2
    root = np.sqrt(np.maximum(b * b - a * np.float32(c), 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(b < 0, np.float32(c) / (root - b), -(b + root) / a)
        t = z * along - np.float32(offset)
        touches = (b * b > a * np.float32(c)) & (t > radius[0] * slope) & (t < length + radius[1] * slope) & (z > 0)
    nearest: np.ndarray = np.where(touches, np.minimum(hit, z), hit)
    return nearest


def _sphere(squared: np.ndarray, towards: np.ndarray, distance2: float, radius: float) -> np.ndarray:
    """Depth at which rays of squared length `squared` enter a sphere; `towards` is ray . centre."""
    c = np.float32(distance2 - radius**2)
    discriminant = towards * towards - squared * c
    root = np.sqrt(np.maximum(discriminant, 0))
    depth: np.ndarray = np.where(discriminant > 0, c / (towards + root), np.float32(np.inf))
    return depth


def _dot(points: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Dot products [M] of points [M, 3] with a direction [3]. Not computed by BLAS, whose last bit depends on its threads."""
    products: np.ndarray = np.einsum("ij,j->i", points, direction)
    return products


def _surface(
    cones: Cones, camera: Camera, rays: int, depth: np.ndarray, owner: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Unit outward normals [M, 3] at the M rays of the mask."""
    rows, columns = np.nonzero(mask)
    z = depth[mask]
    focal, centre = camera.focal * rays, np.array(camera.centre) * rays
    points = np.stack([z * (columns + 0.5 - centre[0]) / focal, z * (rows + 0.5 - centre[1]) / focal, z], axis=1)
    axes, lengths, slopes = _axes(cones)
    i = owner[mask]
    q = points - cones.start[i]
    axis, slope, first = axes[i], slopes[i], cones.radius[i, 0]
    # Every surface point lies on one sphere of the family that slides along the axis; h is the position of that sphere.
    h = np.clip((np.einsum("ij,ij->i", q, axis) - slope * first) / (1 - slope * slope), 0, lengths[i])
    normal = q - axis * h[:, None]
    grain = cones.grain[i]
    normal -= grain * np.einsum("ij,ij->i", normal, grain)[:, None]
    squared = np.einsum("ij,ij->i", normal, normal)
    unit: np.ndarray = normal / np.sqrt(np.maximum(squared, 1e-12))[:, None]
    return unit


def _contact_shade(depth: np.ndarray, mask: np.ndarray, rays: int) -> np.ndarray:
    """Brightness [M] in 0..1 of the M rays of the mask: lower where a nearer surface of the figure is close by.

    An unsharp mask of the depth buffer (Luft, Colditz & Deussen 2006). It makes an arm stand out from the trunk behind it.
    """
    filled = np.where(mask, depth, 0).astype(np.float32)
    weight = mask.astype(np.float32)
    width = 5 * rays + 1
    for _ in range(2):
        filled = uniform_filter(filled, width, mode="constant")
        weight = uniform_filter(weight, width, mode="constant")
    behind = depth[mask] - filled[mask] / np.maximum(weight[mask], 1e-6)
    shade: np.ndarray = 1 - 0.4 * np.clip((behind - _RELIEF) / _CONTACT, 0, 1)
    return shade


def _shadow(points: np.ndarray, cones: Cones, light: Light) -> np.ndarray:
    """The share of sunlight that reaches floor points [M, 3]: 1 in the open, less in the figure's soft shadow.

    Seen along the light, every cone is the hull of two discs. The shadow's edge widens with the cone's height.
    """
    side = np.cross(light.direction, [1.0, 0.0, 0.0])
    side /= np.linalg.norm(side)
    plane = np.stack([side, np.cross(light.direction, side)], axis=1)
    large = cones.radius.max(axis=1) > 0.03  # facial features cast no shadow
    start, end, radius = cones.start[large] @ plane, cones.end[large] @ plane, cones.radius[large]
    height = (cones.start[large] + cones.end[large]) @ light.direction / 2
    u, v, level = (_dot(points, axis).astype(np.float32) for axis in (*plane.T, light.direction))
    open_sky = np.ones(len(points), dtype=np.float32)
    reach = 0.2  # metres: the largest blur of a shadow's edge
    low = np.minimum(start, end).min(axis=0) - reach
    high = np.maximum(start, end).max(axis=0) + reach
    near = np.flatnonzero((u > low[0]) & (u < high[0]) & (v > low[1]) & (v < high[1]))
    u, v, level = u[near], v[near], level[near]
    dimmed = np.ones(len(near), dtype=np.float32)
    for a, b, (ra, rb), top in zip(start, end, radius, height, strict=True):
        along = (b - a).tolist()
        du, dv = u - np.float32(a[0]), v - np.float32(a[1])
        share = (du * along[0] + dv * along[1]) / max(along[0] ** 2 + along[1] ** 2, 1e-9)
        share = np.clip(share, 0, 1)
        gap = np.hypot(du - share * along[0], dv - share * along[1]) - (share * (rb - ra) + ra)
        blur = 0.03 + 0.12 * np.maximum(np.float32(top) - level, 0)
        dimmed = np.minimum(dimmed, 0.5 + gap / blur)
    open_sky[near] = np.clip(dimmed, 0, 1)
    return open_sky


def _backdrop(camera: Camera, room: Room, light: Light, cones: Cones) -> np.ndarray:
    """The background [size, size, 3] in 0..1, with the figure's shadow on the floor."""
    size = camera.size
    u = (np.arange(size) + 0.5 - camera.centre[0]) / camera.focal
    v = (np.arange(size) + 0.5 - camera.centre[1]) / camera.focal
    rays = np.stack(np.broadcast_arrays(u[None, :], v[:, None], 1.0), axis=-1).reshape(-1, 3)
    descent = _dot(rays, -room.up)
    with np.errstate(divide="ignore"):
        depth = np.where(descent > 1e-6, -(room.point @ room.up) / descent, np.inf)
    # The seam between floor and wall is blended over 0.4 m of depth, like a rounded backdrop.
    ground = np.clip((room.wall_distance - depth) / 0.4, 0, 1)[:, None]
    image = ground * room.floor + (1 - ground) * room.wall
    across = 2 * np.pi * (np.arange(size) + 0.5) / size
    stains = np.zeros((size, size))
    for fx, fy, phase, amplitude in room.waves:
        stains += amplitude * np.cos(fy * across[:, None] + (fx * across + phase)[None, :])
    image = image * (1 + stains.reshape(-1, 1))
    lit = light.sky + light.sun * max(float(light.direction @ room.up), 0.0)
    on_floor = ground[:, 0] > 0
    brightness = np.ones(len(rays))
    sun = _shadow(rays[on_floor] * depth[on_floor, None], cones, light)
    brightness[on_floor] = 1 - ground[on_floor, 0] * (lit - light.sky) * (1 - sun) / lit
    background: np.ndarray = (image * brightness[:, None]).reshape(size, size, 3)
    return background


def render(cones: Cones, camera: Camera, light: Light, room: Room) -> tuple[np.ndarray, np.ndarray]:
    """The picture, uint8 [size, size, 3], and its depth buffer [size, size] in metres (infinite outside the figure)."""
    rays = SUPERSAMPLING
    depth, owner = depth_buffer(cones, camera, rays)
    mask = owner >= 0
    normal = _surface(cones, camera, rays, depth, owner, mask)
    sun = np.clip((_dot(normal, light.direction) + 0.25) / 1.25, 0, 1)
    sky = 0.85 + 0.15 * _dot(normal, room.up)
    brightness = (light.sun * sun + light.sky * sky) * _contact_shade(depth, mask, rays)
    figure = np.zeros((*mask.shape, 4), dtype=np.float32)
    figure[mask, :3] = np.clip(cones.colour[owner[mask]] * brightness[:, None], 0, 1)
    figure[mask, 3] = 1
    figure = np.mean([figure[i::rays, j::rays] for i in range(rays) for j in range(rays)], axis=0)
    image = figure[..., :3] + (1 - figure[..., 3:]) * np.clip(_backdrop(camera, room, light, cones), 0, 1)
    nearest = np.minimum.reduce([depth[i::rays, j::rays] for i in range(rays) for j in range(rays)])
    return np.rint(image * 255).astype(np.uint8), nearest
