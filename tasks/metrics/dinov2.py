"""The vision transformer of DINOv2 (Oquab et al. 2023, arXiv 2304.07193), as far as its class token needs it.

Parameters have the names of the published weights (dinov2_vit{s,b,l}14_pretrain.pth), which load unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

HEAD = 64  # width of an attention head
OFFSET = 0.1  # the published code interpolates positions by a factor of (side + 0.1) / stored side


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, width // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(n, tokens, width))
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


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
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class _PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        patches: Tensor = self.proj(x)
        return patches.flatten(2).transpose(1, 2)


class Dinov2(nn.Module):
    """Class tokens `[n, width]` of normalised pictures float `[n, 3, h, w]`, sides multiples of `patch`.

    `positions`: number of patches at the resolution of the weights (37 x 37). At other resolutions the position embeddings are
    interpolated.
    """

    def __init__(self, width: int, depth: int, positions: int, patch: int) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbed(width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions + 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # in the published file; only training uses it
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor]) -> Dinov2:
        """The network of the size that the tensors have. Raises KeyError or RuntimeError if they are not of DINOv2."""
        width, _, patch, _ = weights["patch_embed.proj.weight"].shape
        depth = len([name for name in weights if name.endswith(".attn.qkv.weight")])
        network = cls(width, depth, weights["pos_embed"].shape[1] - 1, patch)
        network.load_state_dict(dict(weights))
        return network

    def _positions(self, down: int, across: int) -> Tensor:
        stored = round((self.pos_embed.shape[1] - 1) ** 0.5)
        if (down, across) == (stored, stored):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].reshape(1, stored, stored, -1).permute(0, 3, 1, 2)
        factor = ((down + OFFSET) / stored, (across + OFFSET) / stored)
        resized = functional.interpolate(grid, scale_factor=factor, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        patch = self.patch_embed.proj.kernel_size[0]
        positions = self._positions(x.shape[2] // patch, x.shape[3] // patch)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1) + positions
        for block in self.blocks:
            x = block(x)
        tokens: Tensor = self.norm(x)
        return tokens[:, 0]
