"""A residual multilayer perceptron for data that are plain vectors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.functional import silu

from diffusion_core.conditioning import Cond
from diffusion_core.nets.embedding import Embedding, concat_maps, group_by_kind
from diffusion_core.nets.layers import modulate, zero_init


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
        kinds = group_by_kind(conds, "MLP", ("vec", "map"))
        self.maps = kinds["map"]
        self.embedding = Embedding(width, kinds["vec"])
        self.first = nn.Linear(d + sum(self.maps.values()), width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.modulation = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.dropout = nn.Dropout(dropout)
        self.last = zero_init(nn.Linear(width, out or d))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        emb = self.embedding(c_noise, cond)
        h = self.first(concat_maps(x, cond, self.maps, 1))
        for hidden, modulation in zip(self.hidden, self.modulation, strict=True):
            scale, shift = modulation(emb).chunk(2, 1)
            h = h + self.dropout(silu(hidden(silu(modulate(h, shift, scale)))))
        y: Tensor = self.last(h)
        return y
