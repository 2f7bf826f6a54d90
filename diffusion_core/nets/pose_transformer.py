"""A transformer over the joints of a pose: each joint is a token, the skeleton biases who listens to whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from diffusion_core.conditioning import MASK, Cond
from diffusion_core.nets.embedding import Embedding, context, stacked, take
from diffusion_core.nets.layers import Block, Head


class PoseTransformer(nn.Module):
    """`(x [B, joints, channels], c_noise [B], cond) -> [B, joints, out or channels]`.

    edges are the skeleton's bones; each head of each layer learns a bias for every distance along them, as Ying et al. 2021
    (arXiv 2106.05234) do on graphs. `vec:*` modulates every layer, `map:*` `[B, joints, n]` is stacked on x, `tok:*` is
    attended to. Joints that the mask `mask:x` `[B, joints]` leaves out are heard by nobody, and their own output is zero.

    Parameters: 18 width^2 a layer; multiply-adds 12 width^2 + 2 joints width a layer and joint.
    """

    distances: Tensor

    def __init__(
        self,
        joints: int,
        edges: Sequence[tuple[int, int]],
        channels: int = 3,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        conds: Mapping[str, int] | None = None,
        dropout: float = 0.0,
        out: int | None = None,
    ) -> None:
        super().__init__()
        kinds = take(conds, "pose transformer", ("vec", "map", "tok"))
        self.maps = kinds["map"]
        distances = graph_distances(joints, edges)
        self.register_buffer("distances", distances, False)
        self.embedding = Embedding(width, kinds["vec"])
        self.context = context(width, kinds["tok"])
        self.enter = nn.Linear(channels + sum(self.maps.values()), width)
        self.joint = nn.Parameter(torch.randn(joints, width) * 0.02)
        self.bias = nn.Parameter(torch.zeros(depth, heads, int(distances.max()) + 1))
        self.blocks = nn.ModuleList(Block(width, heads, dropout, width if kinds["tok"] else None) for _ in range(depth))
        self.head = Head(width, out or channels)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        emb = self.embedding(c_noise, cond)
        others = self.context(cond, len(x)) if self.context is not None else None
        present = cond.get(MASK)
        h = self.enter(stacked(x, cond, self.maps, 2)) + self.joint
        for block, bias in zip(self.blocks, self.bias, strict=True):
            near = bias[:, self.distances]  # [heads, joints, joints]
            if present is not None:
                near = near.masked_fill(~present[:, None, None], -torch.inf)
            h = block(h, emb, near, context=others)
        y = self.head(h, emb)
        return y if present is None else y * present[..., None]


def graph_distances(nodes: int, edges: Sequence[tuple[int, int]]) -> Tensor:
    """Edges on the shortest way between each two nodes, `[nodes, nodes]` int64; 1 + the longest where there is none."""
    near = torch.eye(nodes, dtype=torch.bool)
    for i, j in edges:
        near[i, j] = near[j, i] = True
    reached = torch.eye(nodes, dtype=torch.bool)
    distances = torch.full((nodes, nodes), -1)
    step = 0
    while bool((reached & (distances < 0)).any()):
        distances[reached & (distances < 0)] = step
        reached = (reached.float() @ near.float()) > 0
        step += 1
    return torch.where(distances < 0, step, distances)
