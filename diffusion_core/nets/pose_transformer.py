"""A transformer over the joints of a pose: each joint is a token, the skeleton biases who listens to whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from diffusion_core.cond import Cond
from diffusion_core.nets.layers import Block, Embedding, Head


class PoseTransformer(nn.Module):
    """`(x [B, joints, channels], c_noise [B], cond) -> [B, joints, channels]`.

    edges are the skeleton's bones; each head of each layer learns a bias for every distance along them. conds gives the width
    of each `vec:*` condition.
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
    ) -> None:
        super().__init__()
        distances = graph_distances(joints, edges)
        self.register_buffer("distances", distances, False)
        self.embedding = Embedding(width, conds or {})
        self.enter = nn.Linear(channels, width)
        self.joint = nn.Parameter(torch.randn(joints, width) * 0.02)
        self.bias = nn.Parameter(torch.zeros(depth, heads, int(distances.max()) + 1))
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.head = Head(width, channels)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        emb = self.embedding(c_noise, cond)
        h = self.enter(x) + self.joint
        for block, bias in zip(self.blocks, self.bias, strict=True):
            h = block(h, emb, bias[:, self.distances])
        return self.head(h, emb)


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
