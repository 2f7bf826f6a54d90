"""A residual perceptron for data that are plain vectors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.functional import silu

from diffusion_core.conditioning import Cond
from diffusion_core.nets.embedding import Embedding, stacked, take
from diffusion_core.nets.layers import norm, zeroed


class MLP(nn.Module):
    """`(x [B, d], c_noise [B], cond) -> [B, out or d]`; takes `vec:*` and `map:*` conditions of the widths in conds."""

    def __init__(
        self,
        d: int,
        width: int = 128,
        depth: int = 3,
        conds: Mapping[str, int] | None = None,
        dropout: float = 0.0,
        out: int | None = None,
    ) -> None:
        super().__init__()
        kinds = take(conds, "perceptron", ("vec", "map"))
        self.maps = kinds["map"]
        self.embedding = Embedding(width, kinds["vec"])
        self.enter = nn.Linear(d + sum(self.maps.values()), width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.modulate = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.drop = nn.Dropout(dropout)
        self.leave = zeroed(nn.Linear(width, out or d))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        emb = self.embedding(c_noise, cond)
        h = self.enter(stacked(x, cond, self.maps, 1))
        for hidden, modulate in zip(self.hidden, self.modulate, strict=True):
            scale, shift = modulate(emb).chunk(2, 1)
            h = h + self.drop(silu(hidden(silu(norm(h) * (1 + scale) + shift))))
        return self.leave(h)
