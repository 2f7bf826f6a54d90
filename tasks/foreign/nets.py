"""Networks of diffusers with the signature of ours: (x [B, C, h, w], c_noise [B], conditions) -> [B, C, h, w].

Conditions are `tok:text` `[B, n, width]`, the embedding of a prompt, and, for models that have one, its summary `vec:pooled`
`[B, width]`. A network for categories has `vec:category` `[B, count]` instead. Where a condition is withheld, the network gets
the embedding of the empty prompt, as diffusers does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffusion_core.conditioning import Cond, keep_mask
from diffusion_core.denoiser import Preconditioned
from diffusion_core.schedules import Level, expand_like

TEXT, POOLED, CATEGORY = "tok:text", "vec:pooled", "vec:category"


class ForeignNet(nn.Module):
    """A network of diffusers. `empty`: what stands for a withheld condition, one row for each key."""

    inner: Any  # an nn.Module of diffusers

    def __init__(self, inner: nn.Module, empty: Cond) -> None:
        super().__init__()
        self.inner = inner
        self.empty = empty

    def typed(self, x: Tensor) -> Tensor:
        """x in the type of the network's weights."""
        return x.to(next(self.inner.parameters()).dtype)

    @property
    def about(self) -> Any:
        """The configuration of diffusers' network."""
        return self.inner.config

    def condition(self, key: str, cond: Cond, x: Tensor) -> Tensor:
        """A condition of every row of x `[B, ...]`, or of the empty prompt where it is withheld."""
        empty = self.empty[key].to(x)
        value = cond.get(key)
        if value is None:
            return empty.expand(len(x), *empty.shape[1:])
        value = value.to(x).expand(len(x), *value.shape[1:])
        keep = keep_mask(cond, key)
        if keep is None:
            return value
        return torch.where(keep.to(x.device).reshape(-1, *[1] * (value.ndim - 1)), value, empty)


class UNet(ForeignNet):
    """`UNet2DConditionModel` of Stable Diffusion 1, 2 and XL. Sizes and crops of XL are those of an uncropped picture."""

    factor = 8  # pixels along the side of a latent

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond, **more: Any) -> Tensor:
        """What the network predicts. `more`: what a ControlNet adds, as diffusers names it."""
        x = self.typed(x)
        added = None
        if POOLED in self.empty:
            added = {"text_embeds": self.condition(POOLED, cond, x), "time_ids": size_of(x, self.factor)}
        prediction: Tensor = self.inner(
            x, c_noise, self.condition(TEXT, cond, x), added_cond_kwargs=added, return_dict=False, **more
        )[0]
        return prediction


def size_of(x: Tensor, factor: int) -> Tensor:
    """Size, crop and target size of latents of uncropped pictures, as Stable Diffusion XL is told them, `[B, 6]`."""
    side = torch.tensor([x.shape[-2], x.shape[-1]], device=x.device) * factor
    return torch.cat([side, torch.zeros_like(side), side]).to(x.dtype).expand(len(x), 6)


class SD3(ForeignNet):
    """`SD3Transformer2DModel` of Stable Diffusion 3 and 3.5."""

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        """What the network predicts."""
        x = self.typed(x)
        text, pooled = self.condition(TEXT, cond, x), self.condition(POOLED, cond, x)
        prediction: Tensor = self.inner(x, text, pooled, c_noise, return_dict=False)[0]
        return prediction


class Flux(ForeignNet):
    """`FluxTransformer2DModel`. `strength`: of the guidance that the network was distilled to (FLUX.1-dev)."""

    strength = 3.5

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        """What the network predicts."""
        x = self.typed(x)
        text, pooled = self.condition(TEXT, cond, x), self.condition(POOLED, cond, x)
        height, width = x.shape[-2] // 2, x.shape[-1] // 2
        packed = x.unflatten(3, (width, 2)).unflatten(2, (height, 2)).permute(0, 2, 4, 1, 3, 5)
        places = torch.zeros(height, width, 3, device=x.device, dtype=x.dtype)
        places[..., 1] = torch.arange(height, device=x.device)[:, None]
        places[..., 2] = torch.arange(width, device=x.device)
        guidance = torch.full((len(x),), self.strength, device=x.device) if self.about["guidance_embeds"] else None
        prediction = self.inner(
            hidden_states=packed.flatten(3).flatten(1, 2),
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=c_noise / 1000,
            img_ids=places.flatten(0, 1),
            txt_ids=torch.zeros(text.shape[1], 3, device=x.device, dtype=x.dtype),
            guidance=guidance,
            return_dict=False,
        )[0]
        unpacked: Tensor = prediction.unflatten(2, (-1, 2, 2)).unflatten(1, (height, width)).permute(0, 3, 1, 4, 2, 5)
        return unpacked.flatten(4).flatten(2, 3)


class DiT(ForeignNet):
    """`DiTTransformer2DModel` with a category. Its second half of channels, a learned variance, is not used."""

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        """What the network predicts."""
        x = self.typed(x)
        labels = self.condition(CATEGORY, cond, x)
        # The row after those of the categories stands for a withheld one, which is all zeros here.
        numbers = torch.where(labels.any(1), labels.argmax(1), labels.shape[1])
        prediction: Tensor = self.inner(x, timestep=c_noise, class_labels=numbers, return_dict=False)[0]
        return prediction[:, : x.shape[1]]


class ForeignDenoiser(Preconditioned):
    """A network of diffusers as a denoiser. The net gets x and c_noise in single precision, whatever the type of its weights.

    bfloat16 could not hold the number of a level.
    """

    def predict(self, x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        """The net's prediction of the target at x `[B, *S]`, in the dtype of x."""
        c_noise = self.c_noise(level).to(device=x.device, dtype=torch.float32).expand(len(x))
        scaled = (expand_like(self.c_in(level), x) * x).float()
        prediction: Tensor = self.net(scaled, c_noise, cond or {})
        return prediction.to(x.dtype)

    def c_in(self, level: Level) -> Tensor:
        """What x is multiplied by: the input of a variance-preserving model has a^2 + s^2 = 1."""
        return 1 / torch.hypot(level.a, level.s)


class Flow(ForeignDenoiser):
    """A network of a flow, whose input is x at the level (1 - t, t)."""

    def c_in(self, level: Level) -> Tensor:
        """What x is multiplied by, so that a + s = 1."""
        return 1 / (level.a + level.s)
