"""Random transforms of a training batch whose parameters are a condition, so that they do not leak into the samples.

Each function turns (x0, cond) into (x0', cond') and adds the transform's parameters as the condition `vec:augment`, which is
zero for an example that was not changed. In sampling the condition is zeros. Row i's transform is a pure function of (seed,
ids[i]). Karras et al. 2020 (arXiv 2006.06676) and 2022 (arXiv 2206.00364), appendix F.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from diffusion_core import rng
from diffusion_core.conditioning import Cond
from diffusion_core.losses import Density
from diffusion_core.schedules import Level

WIDTH = 6  # numbers in `vec:augment`: flip, log scale, cos - 1, sin, shift in x, shift in y


def random_transforms(
    seed: rng.Seed, ids: Tensor, p: float, flip: bool = True, scale: float = 0.2, turn: float = 0.3, shift: float = 0.1
) -> Tensor:
    """Parameters of random transforms, `[B, WIDTH]` float32: each kind independently with probability p (a flip with p / 2).

    Log scale, turn (radians) and shift (in units of the side) are normal with these standard deviations.
    """
    u = rng.uniform((5,), (*_tuple(seed), 0), ids)
    z = rng.normal((4,), (*_tuple(seed), 1), ids)
    on = (u < p).float()
    angle = on[:, 2] * turn * z[:, 1]
    return torch.stack(
        [
            (u[:, 0] < p / 2).float() if flip else torch.zeros(len(ids), device=ids.device),
            on[:, 1] * scale * z[:, 0],
            angle.cos() - 1,
            angle.sin(),
            on[:, 3] * shift * z[:, 2],
            on[:, 4] * shift * z[:, 3],
        ],
        1,
    )


def transform_pictures(
    x0: Tensor, cond: Cond, params: Tensor, outside: Literal["reflection", "zeros"] = "reflection"
) -> tuple[Tensor, Cond]:
    """Pictures `[B, C, H, W]` flipped, scaled, turned and shifted by `params` `[B, WIDTH]`.

    outside: what appears beyond their edges.
    """
    flip, scale, cos, sin = 1 - 2 * params[:, 0], params[:, 1].exp(), params[:, 2] + 1, params[:, 3]
    # grid_sample takes, for each output pixel, where it comes from: the inverse of shift, then turn and scale, then flip.
    shift = 2 * params[:, 4:6]
    inverse = torch.stack([torch.stack([flip * cos, flip * sin], 1), torch.stack([-sin, cos], 1)], 1)
    inverse = inverse / scale[:, None, None]
    theta = torch.cat([inverse, -inverse @ shift[..., None]], 2).to(x0)
    grid = affine_grid(theta, list(x0.shape), align_corners=False)
    moved = grid_sample(x0, grid, padding_mode=outside, align_corners=False)
    unchanged = (params == 0).all(1)
    return torch.where(unchanged[:, None, None, None], x0, moved), {**cond, "vec:augment": params}


def transform_poses(x0: Tensor, cond: Cond, params: Tensor, mirror: Sequence[int]) -> tuple[Tensor, Cond]:
    """Poses `[B, J, 3]` (x right, y down, z away) flipped, scaled, turned about y, shifted in x and y, about the origin.

    mirror[i] is the joint that replaces joint i in a flip: left and right are swapped.
    """
    flip = params[:, :1].bool()
    mirrored = x0[:, list(mirror)] * x0.new_tensor([-1.0, 1.0, 1.0])
    x = torch.where(flip[..., None], mirrored, x0) * params[:, 1].exp()[:, None, None]
    cos, sin = params[:, 2, None] + 1, params[:, 3, None]
    turned = torch.stack([cos * x[..., 0] + sin * x[..., 2], x[..., 1], cos * x[..., 2] - sin * x[..., 0]], -1)
    shift = torch.nn.functional.pad(params[:, None, 4:6], (0, 1))
    return turned + shift.to(x0), {**cond, "vec:augment": params}


def no_transform(batch: int, device: torch.device | None = None) -> Tensor:
    """The parameters of an unchanged example, for sampling: `[batch, WIDTH]` zeros."""
    return torch.zeros(batch, WIDTH, device=device)


def add_condition_noise(
    cond: Cond, key: str, level: Level, seed: rng.Seed, ids: Tensor, features: int | None = None
) -> Cond:
    """cond with the condition `key` `[B, *S]` corrupted at the level `[]` or `[B]`, and `vec:<name>_level` `[B, 1]`, its angle.

    With `features`, only that many of the last dimension are corrupted. The others, such as an identity code, stay as they are.
    Noise-conditioning augmentation (Ho et al. 2021, arXiv 2106.15282, section 4): in training the levels are random, see
    `random_levels`; in sampling one level is fixed.
    """
    value = cond[key] if features is None else cond[key][..., :features]
    noisy = level.corrupt(value, rng.normal(value.shape[1:], seed, ids).to(value))
    if features is not None:
        noisy = torch.cat([noisy, cond[key][..., features:]], -1)
    angle = level.angle.to(value).expand(len(ids))[:, None]
    return {**cond, key: noisy, f"vec:{key.split(':', 1)[1]}_level": angle}


def random_levels(density: Density, seed: rng.Seed, ids: Tensor) -> Level:
    """A level drawn from the density for each id, `[B]`."""
    return density(rng.uniform((), seed, ids))


def _tuple(seed: rng.Seed) -> tuple[int, ...]:
    return seed if isinstance(seed, tuple) else (seed,)
