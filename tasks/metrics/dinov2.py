"""The vision transformer of DINOv2 (Oquab et al. 2023, arXiv 2304.07193), as far as its class token needs it.

Parameters are named as in the published weights (dinov2_vit{s,b,l}14_pretrain.pth), so that those load as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

HEAD = 64  # numbers a head of attention
OFFSET = 0.1  # of the published code, which interpolates positions by a scale factor of (side + 0.1) / stored side


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, width // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(n, tokens, width))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = _Attention(width), _Mlp(width)
        self.ls1, self.ls2 = _Scale(width), _Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Dinov2(nn.Module):
    """Pictures float `[n, 3, h, w]`, normalised, sides multiples of `patch`, to class tokens `[n, width]`.

    `positions`: patches of the weights' own resolution (37 x 37); others are interpolated from them.
    """

    def __init__(self, width: int, depth: int, positions: int, patch: int) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbed(width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions + 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of the training; in the file, and not used
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor]) -> Dinov2:
        """The network that the tensors belong to; KeyError or RuntimeError if they belong to none."""
        width, _, patch, _ = weights["patch_embed.proj.weight"].shape
        depth = len([name for name in weights if name.endswith(".attn.qkv.weight")])
        network = cls(width, depth, weights["pos_embed"].shape[1] - 1, patch)
        network.load_state_dict(dict(weights))
        return network

    def _positions(self, down: int, across: int) -> Tensor:
        stored = round((self.pos_embed.shape[1] - 1) ** 0.5)
        if (down, across) == (stored, stored):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (stored, stored)).permute(0, 3, 1, 2)
        factor = ((down + OFFSET) / stored, (across + OFFSET) / stored)
        resized = functional.interpolate(grid, scale_factor=factor, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        patch = self.patch_embed.proj.kernel_size[0]
        positions = self._positions(x.shape[2] // patch, x.shape[3] // patch)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1) + positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]
