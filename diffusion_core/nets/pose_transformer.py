"""A transformer over the joints of a pose: each joint is a token, and the skeleton biases attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from diffusion_core.conditioning import MASK, Cond
from diffusion_core.nets.embedding import Embedding, concat_maps, context_embedding, group_by_kind
from diffusion_core.nets.layers import DiTBlock, FinalLayer


class PoseTransformer(nn.Module):
    """`(x [B, joints, channels], c_noise [B], cond) -> [B, joints, out or channels]`.

    edges are the skeleton's bones. Each head of each layer learns an attention bias for every distance along them, as Ying et
    al. 2021 (arXiv 2106.05234) do on graphs. `vec:*` modulates every layer, `map:*` `[B, joints, n]` is concatenated to the
    channels of x, `tok:*` is attended to. No token attends to joints that the mask `mask:x` `[B, joints]` leaves out, and
    their own output is zero.

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
        kinds = group_by_kind(conds, "pose transformer", ("vec", "map", "tok"))
        self.maps = kinds["map"]
        distances = graph_distances(joints, edges)
        self.register_buffer("distances", distances, False)
        self.embedding = Embedding(width, kinds["vec"])
        self.context = context_embedding(width, kinds["tok"])
        self.joint_embed = nn.Linear(channels + sum(self.maps.values()), width)
        self.joint_position = nn.Parameter(torch.randn(joints, width) * 0.02)
        self.bias = nn.Parameter(torch.zeros(depth, heads, int(distances.max()) + 1))
        context_width = width if kinds["tok"] else None
        self.blocks = nn.ModuleList(DiTBlock(width, heads, dropout, context_width) for _ in range(depth))
        self.final = FinalLayer(width, out or channels)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        emb = self.embedding(c_noise, cond)
        context = self.context(cond, len(x)) if self.context is not None else None
        present = cond.get(MASK)
        h = self.joint_embed(concat_maps(x, cond, self.maps, 2)) + self.joint_position
        for block, bias_by_distance in zip(self.blocks, self.bias, strict=True):
            bias = bias_by_distance[:, self.distances]  # [heads, joints, joints]
            if present is not None:
                bias = bias.masked_fill(~present[:, None, None], -torch.inf)
            h = block(h, emb, bias, context=context)
        y: Tensor = self.final(h, emb)
        return y if present is None else y * present[..., None]


def graph_distances(nodes: int, edges: Sequence[tuple[int, int]]) -> Tensor:
    """Edges on the shortest path between each two nodes, `[nodes, nodes]` int64; 1 + the longest where there is no path."""
    adjacent = torch.eye(nodes, dtype=torch.bool)
    for i, j in edges:
        adjacent[i, j] = adjacent[j, i] = True
    reached = torch.eye(nodes, dtype=torch.bool)
    distances = torch.full((nodes, nodes), -1)
    step = 0
    while bool((reached & (distances < 0)).any()):
        distances[reached & (distances < 0)] = step
        reached = (reached.float() @ adjacent.float()) > 0
        step += 1
    return torch.where(distances < 0, step, distances)
