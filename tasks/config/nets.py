"""The networks and their named sizes."""

from __future__ import annotations

from typing import Literal, NamedTuple

Net = Literal["patch", "dit", "mmdit", "uvit", "rin", "hourglass", "unet", "simple_uvit", "edm2", "efficient_unet"]
PATCHLESS = ("unet", "simple_uvit", "edm2", "efficient_unet")  # networks without tokens, which ignore `patch`
Preset = Literal["XS", "S", "B", "L"]


class Shape(NamedTuple):
    """The size of a network. Each network in `diffusion_core.nets` documents what the three numbers mean for it."""

    width: int
    depth: int
    heads: int


# XS is for two CPU cores; S, B and L are the papers' sizes of these names where they have them.
SHAPES: dict[str, dict[str, Shape]] = {
    "pose": {"XS": Shape(96, 4, 4), "S": Shape(128, 6, 4), "B": Shape(256, 8, 8), "L": Shape(512, 12, 8)},
    "motion": {"XS": Shape(96, 4, 4), "S": Shape(192, 6, 4), "B": Shape(384, 8, 8), "L": Shape(768, 12, 12)},
    "patch": {"XS": Shape(128, 6, 4), "S": Shape(384, 12, 6), "B": Shape(768, 12, 12), "L": Shape(1024, 24, 16)},
    "dit": {"XS": Shape(128, 6, 4), "S": Shape(384, 12, 6), "B": Shape(768, 12, 12), "L": Shape(1024, 24, 16)},
    "mmdit": {"XS": Shape(128, 4, 4), "S": Shape(384, 8, 6), "B": Shape(768, 12, 12), "L": Shape(1024, 20, 16)},
    "uvit": {"XS": Shape(128, 7, 4), "S": Shape(512, 13, 8), "B": Shape(768, 13, 12), "L": Shape(1024, 21, 16)},
    "rin": {"XS": Shape(128, 2, 4), "S": Shape(256, 3, 8), "B": Shape(512, 4, 8), "L": Shape(768, 6, 8)},
    "hourglass": {"XS": Shape(64, 2, 2), "S": Shape(128, 8, 2), "B": Shape(256, 8, 4), "L": Shape(384, 12, 6)},
    "unet": {"XS": Shape(32, 1, 1), "S": Shape(64, 2, 1), "B": Shape(128, 2, 2), "L": Shape(192, 3, 3)},
    "simple_uvit": {"XS": Shape(32, 1, 1), "S": Shape(64, 2, 1), "B": Shape(128, 3, 2), "L": Shape(192, 6, 3)},
    "efficient_unet": {"XS": Shape(32, 1, 1), "S": Shape(64, 2, 1), "B": Shape(128, 3, 1), "L": Shape(192, 4, 1)},
    "edm2": {"XS": Shape(32, 1, 1), "S": Shape(64, 2, 1), "B": Shape(128, 3, 2), "L": Shape(192, 3, 3)},
}
