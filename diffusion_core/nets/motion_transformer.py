"""A transformer over the joints and frames of a motion: attention over the body, then over time (factorised attention)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from diffusion_core.conditioning import KEEP, SEGMENT, Cond
from diffusion_core.nets.attention import Rotary, SelfAttention
from diffusion_core.nets.embedding import Embedding, concat_maps, group_by_kind
from diffusion_core.nets.layers import FeedForward, modulate, zero_init
from diffusion_core.nets.pose_transformer import graph_distances


class MotionTransformer(nn.Module):
    """`(x [B, frames, joints, channels], c_noise [B], cond) -> [B, frames, joints, out or channels]`.

    The joints of `parts[p]` are one token; by default every joint is a token of its own. Each block attends among the tokens
    of a frame, biased by their distance along the skeleton as in `PoseTransformer`, and then among the frames of a token, with
    rotary positions (Ho et al. 2022, arXiv 2204.03458, section 3). It works for any number of frames.

    `segment:x` `[B, frames]` says which frames belong together: attention over time never crosses from one number to another.
    A clip has one number, and stills beside it one number each, so clips and stills are trained together (section 3.2 of the
    paper). Without it all frames are one clip.

    `vec:*` modulates every layer, `[B, n]` for a whole row or `[B, frames, n]`; `map:*` `[B, frames, joints, n]` is
    concatenated to the channels of x.

    Parameters: 25 width^2 a layer; multiply-adds 16 width^2 + 2 (tokens + frames) width a layer and token.

    Raises ValueError unless every joint is in one part.
    """

    token_of: Tensor
    slot_of: Tensor
    distances: Tensor

    def __init__(
        self,
        joints: int,
        edges: Sequence[tuple[int, int]],
        parts: Sequence[Sequence[int]] | None = None,
        channels: int = 3,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        conds: Mapping[str, int] | None = None,
        dropout: float = 0.0,
        out: int | None = None,
    ) -> None:
        super().__init__()
        kinds = group_by_kind(conds, "motion transformer", ("vec", "map"))
        self.maps = kinds["map"]
        self.out_channels = out or channels
        parts = [[joint] for joint in range(joints)] if parts is None else parts
        if sorted(joint for part in parts for joint in part) != list(range(joints)):
            raise ValueError(f"the parts must divide joints 0 ... {joints - 1} among them")
        token_of, slot_of = [0] * joints, [0] * joints
        for token, part in enumerate(parts):
            for slot, joint in enumerate(part):
                token_of[joint], slot_of[joint] = token, slot
        self.tokens, self.slots = len(parts), max(map(len, parts))
        self.register_buffer("token_of", torch.tensor(token_of), False)
        self.register_buffer("slot_of", torch.tensor(slot_of), False)
        distances = graph_distances(self.tokens, [(token_of[i], token_of[j]) for i, j in edges])
        self.register_buffer("distances", distances, False)
        self.head_width = width // heads
        if self.head_width % 2:
            raise ValueError(f"rotary positions need an even head width, got {self.head_width}")
        self.embedding = Embedding(width, kinds["vec"])
        self.token_embed = TokenLinear(self.tokens, self.slots * (channels + sum(self.maps.values())), width)
        self.token_position = nn.Parameter(torch.randn(self.tokens, width) * 0.02)
        self.bias = nn.Parameter(torch.zeros(depth, heads, int(distances.max()) + 1))
        self.blocks = nn.ModuleList(MotionBlock(width, heads, dropout) for _ in range(depth))
        self.modulation = zero_init(nn.Linear(width, 2 * width))
        self.final = TokenLinear(self.tokens, width, self.slots * self.out_channels, zero=True)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        frames = x.shape[1]
        emb = self._embed_frames(c_noise, cond, frames)
        h = self.token_embed(self._gather(concat_maps(x, cond, self.maps, 3))) + self.token_position
        together = None
        if SEGMENT in cond:
            segment = cond[SEGMENT]
            together = (segment[:, :, None] == segment[:, None])[:, None].repeat_interleave(self.tokens, 0)
        rotary = rotary_line(frames, self.head_width, x.device)
        for block, bias_by_distance in zip(self.blocks, self.bias, strict=True):
            h = block(h, emb, bias_by_distance[:, self.distances], together, rotary)
        shift, scale = self.modulation(emb)[:, :, None].chunk(2, -1)
        y = self.final(modulate(h, shift, scale)).unflatten(-1, (self.slots, self.out_channels))
        joints: Tensor = y[:, :, self.token_of, self.slot_of]
        return joints

    def _gather(self, x: Tensor) -> Tensor:
        """Joints `[B, F, joints, C]` as tokens `[B, F, tokens, slots * C]`; slots without a joint are zero."""
        tokens = x.new_zeros(*x.shape[:2], self.tokens, self.slots, x.shape[-1])
        tokens[:, :, self.token_of, self.slot_of] = x
        return tokens.flatten(3)

    def _embed_frames(self, c_noise: Tensor, cond: Cond, frames: int) -> Tensor:
        """Noise level and vectors as one vector for each frame, `[B, frames, width]`."""
        batch = len(c_noise)
        per_frame: Cond = {}
        for name in self.embedding.conds:
            for key in (f"vec:{name}", f"{KEEP}vec:{name}"):
                if key in cond:
                    value = cond[key]
                    wanted = 2 if key.startswith(KEEP) else 3
                    value = value[:, None].expand(-1, frames, *value.shape[1:]) if value.ndim < wanted else value
                    per_frame[key] = value.flatten(0, 1)
        emb = self.embedding(c_noise.repeat_interleave(frames), per_frame)
        return torch.unflatten(emb, 0, (batch, frames))


class MotionBlock(nn.Module):
    """Attention over the body, attention over time and a feed-forward layer on tokens `[B, F, N, width]`.

    All three are modulated by an embedding `[B, F, width]`; scale, shift and gate start at zero (adaLN-Zero), so that a deep
    stack starts as the identity.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.modulation = zero_init(nn.Linear(width, 9 * width))
        self.space = SelfAttention(width, heads)
        self.time = SelfAttention(width, heads)
        self.feed_forward = FeedForward(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, emb: Tensor, bias: Tensor, together: Tensor | None, rotary: Rotary) -> Tensor:
        """`bias` `[heads, N, N]` over the body; `together` `[B * N, 1, F, F]`: which frames may be attended to."""
        batch, _, tokens = x.shape[:3]
        shift1, scale1, gate1, shift2, scale2, gate2, shift3, scale3, gate3 = self.modulation(emb)[:, :, None].chunk(
            9, -1
        )
        y = self.space(modulate(x, shift1, scale1).flatten(0, 1), bias)
        x = x + gate1 * self.dropout(y.view_as(x))
        y = self.time(modulate(x, shift2, scale2).transpose(1, 2).flatten(0, 1), together, rotary)
        x = x + gate2 * self.dropout(y.unflatten(0, (batch, tokens)).transpose(1, 2))
        z: Tensor = x + gate3 * self.dropout(self.feed_forward(modulate(x, shift3, scale3)))
        return z


class TokenLinear(nn.Module):
    """A linear layer with weights of its own for every token, `[..., tokens, inp]` to `[..., tokens, out]`."""

    def __init__(self, tokens: int, inp: int, out: int, zero: bool = False) -> None:
        super().__init__()
        bound = 0.0 if zero else inp**-0.5
        self.weight = nn.Parameter((torch.rand(tokens, inp, out) * 2 - 1) * bound)
        self.offset = nn.Parameter(torch.zeros(tokens, out))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.einsum("...ti,tio->...to", x, self.weight) + self.offset
        return y


def rotary_line(length: int, head_width: int, device: torch.device, base: float = 100.0) -> Rotary:
    """Cosines and sines `[length, head_width / 2]` of the rotation angles of positions 0 ... length - 1.

    Su et al. 2021 (arXiv 2104.09864). Scores then depend on the difference of two positions only.
    """
    pairs = head_width // 2
    frequencies = base ** (-torch.arange(pairs, device=device) / pairs)
    angles = torch.arange(length, device=device)[:, None] * frequencies
    return angles.cos(), angles.sin()
