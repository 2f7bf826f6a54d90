"""Examples of the video model: clips of pictures, and the single pictures that ride along with them in training.

A clip's conditions are those of pictures, with a pose for each frame. Joint training follows Video Diffusion Models (Ho et al.
2022, arXiv 2204.03458, section 3.2): single pictures are further frames of a row, with conditions of their own, and attention
over time is masked so that neither they nor the clip know of each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_core import rng
from diffusion_core.conditioning import SEGMENT, Cond
from diffusion_core.nets.video import beside
from diffusion_core.rng import TransformStream
from diffusion_core.training.trainer import Transform
from tasks.dataset.padding import REAL, padding_maps


def padding(metas: Sequence[Mapping[str, Any]], size: int, count: int) -> Tensor:
    """Maps of padding `[n, count, 1, size, size]` of clips with so many frames, see `tasks.dataset.padding`."""
    parts = [meta.get(REAL, [None] * count) for meta in metas]
    of_frames = [{} if part is None else {REAL: part} for clip in parts for part in clip]
    return padding_maps(of_frames, size).reshape(-1, count, 1, size, size)


@dataclass(frozen=True)
class Stills:
    """Single pictures in the network's units: x0 `[n, C, h, w]`, their conditions, their keys and what identifies them all."""

    x0: Tensor
    cond: Cond
    keys: list[str]
    identity: str

    def digest(self) -> str:
        """Sha256 of the pictures as the network gets them."""
        return self.identity

    def beside(self, x0: Tensor, cond: Cond, count: int, seed: rng.Seed, ids: Tensor) -> tuple[Tensor, Cond]:
        """Clips `[B, F, C, h, w]` with `count` pictures behind them, `[B, F + count, C, h, w]`.

        Which pictures row i gets is a function of (seed, ids[i]).
        """
        batch, length = x0.shape[:2]
        rows = (rng.uniform((count,), seed, ids) * len(self.x0)).long()
        out = dict(cond)
        for key, value in self.cond.items():
            given = cond[key]
            if given.ndim == value.ndim:  # one for the whole clip
                given = given[:, None].expand(-1, length, *given.shape[1:])
            out[key] = torch.cat([given, value[rows].to(given)], 1)
        out[SEGMENT] = beside(length, count, batch)
        return torch.cat([x0, self.x0[rows].to(x0)], 1), out


def with_stills(transform: Transform | None, stills: Stills | None, count: int) -> Transform | None:
    """The transform of training batches that also puts `count` pictures beside each clip; without any, it is unchanged."""
    if stills is None or not count:
        return transform

    def transformed(x0: Tensor, cond: Cond, seed: int, ids: Tensor) -> tuple[Tensor, Cond]:
        if transform is not None:
            x0, cond = transform(x0, cond, seed, ids)
        return stills.beside(x0, cond, count, rng.fold(seed, TransformStream.STILLS), ids)

    return transformed


def apart(cond: Cond, count: int, length: int) -> Cond:
    """The conditions of `count` clips with the note that their `length` frames know nothing of each other."""
    return {**cond, SEGMENT: torch.arange(length).expand(count, -1)}
