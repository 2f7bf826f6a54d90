"""Every network at toy size, with all kinds of conditions that it takes."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion_core import rng
from diffusion_core.nets.dit import DiT
from diffusion_core.nets.edm2_unet import EDM2UNet
from diffusion_core.nets.efficient_unet import EfficientUNet
from diffusion_core.nets.hourglass import Hourglass
from diffusion_core.nets.mlp import MLP
from diffusion_core.nets.mmdit import MMDiT
from diffusion_core.nets.motion_transformer import MotionTransformer
from diffusion_core.nets.patch_transformer import PatchTransformer
from diffusion_core.nets.pose_transformer import PoseTransformer
from diffusion_core.nets.rin import RIN
from diffusion_core.nets.simple_uvit import SimpleUViT
from diffusion_core.nets.unet import UNet
from diffusion_core.nets.uvit import UViT

EDGES = [(0, 1), (1, 2), (2, 3), (0, 4)]
VECTORS = {"vec:category": 4, "vec:pose": 6}
ALL = {**VECTORS, "map:low": 3, "tok:words": 7, "tok:pose": 5}
SIZE = 8


class Kind(NamedTuple):
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of an example
    widths: dict[str, int]  # of its conditions


def _picture(make: Callable[[], nn.Module]) -> Kind:
    return Kind(make, (3, SIZE, SIZE), ALL)


KINDS = {
    "mlp": Kind(lambda: MLP(6, width=16, conds={**VECTORS, "map:low": 3}), (6,), {**VECTORS, "map:low": 3}),
    "pose": Kind(lambda: PoseTransformer(5, EDGES, width=16, depth=2, heads=2, conds=ALL), (5, 3), ALL),
    "motion": Kind(
        lambda: MotionTransformer(
            5, EDGES, [[0, 1], [2], [3], [4]], width=16, depth=2, heads=2, conds={**VECTORS, "map:low": 3}
        ),
        (4, 5, 3),
        {**VECTORS, "map:low": 3},
    ),
    "patch": _picture(lambda: PatchTransformer(SIZE, 4, width=16, depth=2, heads=2, conds=ALL)),
    "dit": _picture(lambda: DiT(SIZE, 2, width=16, depth=2, heads=2, conds=ALL)),
    "mmdit": _picture(lambda: MMDiT(SIZE, 2, width=16, depth=2, heads=2, conds=ALL)),
    "uvit": _picture(lambda: UViT(SIZE, 2, width=16, depth=3, heads=2, conds=ALL)),
    "rin": _picture(lambda: RIN(SIZE, 2, width=32, depth=2, heads=2, conds=ALL)),
    "rin_self_conditioning": _picture(
        lambda: RIN(SIZE, 2, width=32, depth=1, heads=2, conds=ALL, latent_self_conditioning=0.9)
    ),
    "hourglass": _picture(lambda: Hourglass(SIZE, 2, width=16, depth=1, heads=2, conds=ALL)),
    "unet": _picture(lambda: UNet(SIZE, width=16, depth=1, heads=2, conds=ALL)),
    "simple_uvit": _picture(lambda: SimpleUViT(SIZE, width=16, depth=1, heads=2, conds=ALL)),
    "edm2": _picture(lambda: EDM2UNet(SIZE, width=16, depth=1, heads=2, conds=ALL)),
    "efficient_unet": Kind(
        lambda: EfficientUNet(SIZE, width=16, depth=1, conds={**VECTORS, "map:low": 3}),
        (3, SIZE, SIZE),
        {**VECTORS, "map:low": 3},
    ),
}


def conditions(kind: Kind, batch: int) -> dict[str, Tensor]:
    """A full set of random conditions."""
    out = {}
    for key, wide in kind.widths.items():
        spatial = {3: (wide, *kind.shape[1:]), 2: (*kind.shape[:1], wide), 1: (wide,)}[len(kind.shape)]
        if kind.shape[-1] == 3 and len(kind.shape) == 3:  # frames, joints, channels
            spatial = (*kind.shape[:2], wide)
        shape = {"vec": (wide,), "map": spatial, "tok": (3, wide)}[key[:3]]
        out[key] = rng.normal(shape, len(key), torch.arange(batch))
    return out


def batch(kind: Kind, size: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Inputs, levels and conditions of a call."""
    x = rng.normal(kind.shape, 1, torch.arange(size))
    return x, torch.linspace(-1, 1, size), conditions(kind, size)


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """The net in float64 with random parameters, because zero-initialised layers would hide others."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return net.double().eval()


def double(cond: dict[str, Tensor]) -> dict[str, Tensor]:
    """The conditions in float64."""
    return {key: value.double() if value.is_floating_point() else value for key, value in cond.items()}


def fit(net: nn.Module, kind: Kind, steps: int, rate: float = 1e-2, autocast: bool = False) -> list[float]:
    """Train on one batch with random targets, fixed for each row; returns the loss of every step."""
    x, c, cond = batch(kind, 8)
    device = next(net.parameters()).device
    x, c, cond = x.to(device), c.to(device), {key: value.to(device) for key, value in cond.items()}
    target = rng.normal(kind.shape, 2, torch.arange(8)).to(device)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], rate)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast), torch.random.fork_rng():
            torch.manual_seed(step)
            y = net(x, c, cond)
        loss = (y.float() - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
