"""Denoisers that hold several networks, and what the mixed models share: an encoder with a decoder, a discriminator.

The networks are of one kind, made by `recipe.Build`, and take what all networks take. All are part of the denoiser, so that the
training loop trains, averages and stores them like any weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from diffusion_core.conditioning import LATENT, WEIGHT, Cond
from diffusion_core.denoiser import Preconditioned
from diffusion_core.schedules import Level
from diffusion_core.targets import Target

LOG_2PI = math.log(2 * math.pi)


class Parts(Preconditioned):
    """A denoiser whose `net` is a `nn.ModuleDict` of networks; `denoiser` among them, if it has one, predicts the target."""

    def __init__(self, net: nn.Module, target: Target, sd: float, c_noise: Callable[[Level], Tensor]) -> None:
        super().__init__(net, target, sd, c_noise)

    def part(self, name: str) -> nn.Module:
        """One of the networks."""
        return cast(nn.ModuleDict, self.net)[name]

    def run(
        self, name: str, x: Tensor, c_noise: Tensor | float, cond: Cond, weights: dict[str, Tensor] | None = None
    ) -> Tensor:
        """What a network makes of x `[B, *S]`, in the dtype of x. `weights`: used instead of its own."""
        return _called(self.part(name), x, c_noise, cond, weights)


def _called(
    net: nn.Module, x: Tensor, c_noise: Tensor | float, cond: Cond, weights: dict[str, Tensor] | None = None
) -> Tensor:
    dtype = next(net.parameters()).dtype
    embedded = torch.as_tensor(c_noise, device=x.device, dtype=dtype).expand(len(x))
    typed = {k: v.to(dtype) if v.is_floating_point() else v for k, v in cond.items()}
    given = (x.to(dtype), embedded, typed)
    out: Tensor = net(*given) if weights is None else functional_call(net, weights, given)
    return out.to(x.dtype)


class Coder(nn.Module):
    """Encoder and decoder of a variational autoencoder, with a decoder of one learned variance.

    Latents have the shape of the examples; the divergence from the prior switches off those that are not needed. The best
    variance of the decoder balances both terms without a weight (Rybkin et al. 2021, arXiv 2006.13202). Both networks add to
    their input, and the variances begin small: latents are the examples at first, from where they do not collapse. `sd` is that
    of the data.
    """

    SMALL = -3.0  # log variance at first

    def __init__(self, encoder: nn.Module, decoder: nn.Module, sd: float) -> None:
        super().__init__()
        self.encoder, self.decoder, self.sd = encoder, decoder, sd
        self.log_var = nn.Parameter(torch.tensor(self.SMALL))  # of the decoder over sd^2

    def encode(self, x0: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents given x0, `[B, *S]` each, of which zeros are a standard normal law."""
        dim = 2 if x0.ndim == 3 else 1
        change, log_var = _called(self.encoder, x0 / self.sd, 0.0, cond).chunk(2, dim)
        return x0 / self.sd + change, (log_var + self.SMALL).clamp(-12, 4)

    def decode(self, z: Tensor, cond: Cond) -> Tensor:
        """The mean of x0 given latents."""
        return self.sd * (z + _called(self.decoder, z, 0.0, cond))

    def reconstruction(self, x0: Tensor, z: Tensor, cond: Cond) -> Tensor:
        """-log p(x0 | z) in nats a coordinate, `[B]`. Condition `weight:x` weighs the coordinates."""
        log_var = self.log_var.clamp(-16, 4).to(x0.dtype) + 2 * math.log(self.sd)
        nll = 0.5 * ((x0 - self.decode(z, cond)).square() * torch.exp(-log_var) + log_var + LOG_2PI)
        if WEIGHT in cond:
            nll = nll * cond[WEIGHT]
        return nll.flatten(1).mean(1)


def divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL divergence of a normal law from the standard one, in nats a coordinate, `[B]`."""
    return 0.5 * (mean.square() + log_var.exp() - log_var - 1).flatten(1).mean(1)


class Adversary(nn.Module):
    """Either network of an adversarial game. It tells the training loop to use Adam without momentum, which makes the two sides
    circle each other (Gidel et al. 2019, arXiv 1807.04740), and to clip its gradient by itself. Muon does not update it.
    """

    clipped_alone = True
    rate_scale = 1.0
    betas = (0.0, 0.99)

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        out: Tensor = self.net(x, c_noise, cond)
        return out


class Discriminator(Adversary):
    """Verdicts `[B]` of a network on examples `[B, *S]`: the mean of what it returns."""

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        return super().forward(x, c_noise, cond).flatten(1).mean(1)


class Versus:
    """The two-sided loss of a discriminator against what a generator made, for one backward pass.

    Relativistic pairing (Jolicoeur-Martineau 2018, arXiv 1807.00734): the discriminator learns that a real example is more real
    than the fake one beside it, and the generator the opposite. With gradient penalties on both sides it converges where the
    plain loss drops modes (R3GAN, Huang et al. 2025, arXiv 2501.05441). The penalty gamma / 2 |grad D|^2 is the squared change
    of the verdict under noise of standard deviation `width`, over width^2 (Lin et al. 2025, arXiv 2501.08316): no second
    derivative of the network is needed.
    """

    def __init__(self, gamma: float, width: float) -> None:
        self.gamma, self.width = gamma, width

    def __call__(
        self,
        denoiser: Parts,
        real: Tensor,
        fake: Tensor,
        c_noise: Tensor | float,
        cond: Cond,
        beside: Tensor | None = None,
    ) -> Tensor:
        """The generator's loss `[B]`, with the discriminator's added as a gradient only.

        `beside`: what both sides are judged with, shaped as x.
        """
        given = cond if beside is None else {**cond, LATENT: beside}
        own = {name: value for name, value in denoiser.part("discriminator").named_parameters()}
        fixed = {name: value.detach() for name, value in own.items()}

        def judge(x: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
            return denoiser.run("discriminator", x, c_noise, given, weights).float()

        generators = softplus(judge(real, fixed) - judge(fake, fixed))
        on_real, on_fake = judge(real), judge(fake.detach())
        loss = softplus(on_fake - on_real)
        for x, verdict in ((real, on_real), (fake.detach(), on_fake)):
            moved = judge(x + self.width * torch.randn_like(x))
            loss = loss + self.gamma / 2 * ((moved - verdict) / self.width).square()
        return generators + loss - loss.detach()
