"""Discrete diffusion of pictures: the codes of a codebook are masked and guessed again, with any network for pictures.

Three methods, as recipes for the common training loop: `masked` (MaskGIT, Muse), `absorbing` (D3PM's absorbing state in
continuous time) and `uniform` (D3PM's uniform transitions). An example is the codes of a picture row by row, int64 `[N]`,
N = side^2; the number `codes` is the mask.
Levels only encode the time, see `corruptions.process_time`. Condition `weight:x` `[B, 1, side, side]` weighs the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from diffusion_core.conditioning import WEIGHT, Cond
from diffusion_core.denoiser import Denoiser, Preconditioned
from diffusion_core.extras.corruptions import masked_share, process_time, unmask
from diffusion_core.losses import Weight
from diffusion_core.recipe import Recipe
from diffusion_core.sampling import timesteps
from diffusion_core.sampling.loop import Denoise, Estimate, Step
from diffusion_core.schedules import Level, expand_like, trig
from diffusion_core.targets import X0

SOONEST = 1e-3  # the loss of absorbing diffusion weighs time t by 1 / t
MaskedShare = Callable[[Tensor], Tensor]  # time -> expected share of masked tokens


class TokenNet(nn.Module):
    """`(tokens [B, N], t [B], cond) -> logits [B, N, codes]`, by a network for pictures of side x side places.

    Each code, and the mask, has a learned vector of `width` numbers. `net` takes pictures of `width` channels and gives `codes`
    channels.
    """

    def __init__(self, net: nn.Module, side: int, codes: int, width: int) -> None:
        super().__init__()
        self.net, self.side = net, side
        self.embed = nn.Embedding(codes + 1, width)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        picture = self.embed(x).transpose(1, 2).unflatten(2, (self.side, self.side))
        return cast(Tensor, self.net(picture, t, cond).flatten(2).transpose(1, 2))


class TokenDenoiser(Preconditioned):
    """A denoiser whose network gets tokens and the time, and gives logits of the clean tokens."""

    def __init__(self, net: nn.Module, *_: object) -> None:
        super().__init__(net, X0, 1.0)

    def predict(self, x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        """The logits `[B, N, codes]` of tokens x `[B, N]`."""
        dtype = next(self.net.parameters()).dtype
        t = process_time(level).to(device=x.device, dtype=dtype).expand(len(x))
        typed = {k: v.to(dtype) if v.is_floating_point() else v for k, v in (cond or {}).items()}
        logits: Tensor = self.net(x, t, typed)
        return logits.float()

    def forward(self, x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        """The same."""
        return self.predict(x, level, cond)


def masked(codes: int, temperature: float = 0.5) -> Recipe:
    """MaskGIT and Muse: a cosine schedule, cross-entropy of the masked tokens, decoding by confidence (`corruptions.unmask`).

    Chang et al. 2022 (arXiv 2202.04200); Chang et al. 2023 (arXiv 2301.00704).
    """

    def loss(denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        nll, hidden = _guess(denoiser, x0, masked_share(process_time(level)), level, noise, cond, codes)
        mean: Tensor = nll.sum(1) / hidden.sum(1).clamp(min=1)
        return mean

    return _recipe(loss, unmask(codes, temperature), codes)


def absorbing(codes: int) -> Recipe:
    """Masked diffusion as a diffusion model: each token is masked by time t with probability t, and stays so.

    The loss is the negative evidence lower bound in nats a token: the cross-entropy of the masked tokens over t. Sampling is
    ancestral. Austin et al. 2021 (arXiv 2107.03006); in continuous time Sahoo et al. 2024 (arXiv 2406.07524), eq. 10.
    """

    def loss(denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        t = process_time(level).clamp(min=SOONEST)
        nll, _ = _guess(denoiser, x0, t, level, noise, cond, codes)
        return nll.mean(1) / t.to(nll).expand(len(nll))

    return _recipe(loss, reveal(codes), codes)


def reveal(codes: int) -> Step:
    """One ancestral step from t to t': each masked token is drawn with probability (t - t') / t, and then stays.

    The noise stream gives `[B, N, codes]` normal numbers. Sahoo et al. 2024 (arXiv 2406.07524), eq. 7.
    """

    def step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        level, x, logits = history[-1][:3]
        now, then = process_time(level), process_time(to)
        gumbel = -torch.log(-torch.special.log_ndtr(next(noise).double()))
        drawn = (logits + gumbel).argmax(-1)
        shown = torch.special.ndtr(next(noise)[..., 0]) < ((now - then) / now).to(x.device)
        return torch.where((x == codes) & shown, drawn, x)

    return step


def uniform(codes: int, chain: int = 1000) -> Recipe:
    """D3PM with uniform transitions: by time t each token has become a random code with probability t, and may change again.

    Austin et al. 2021 (arXiv 2107.03006), appendix A.2.1, on a chain of `chain` steps. The loss is the negative evidence lower
    bound in nats a token: `chain` times the divergence of the model's step at a time on the chain from the true one given x0
    (eq. 1). Sampling is ancestral, in any number of steps. Unlike masked tokens, none is final before the last step.
    """

    def loss(denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        now = (process_time(level) * chain).ceil().clamp(1, chain).to(noise.device).expand(len(x0)) / chain
        then = now - 1 / chain
        x = _randomised(x0, now, noise, codes)
        logits = denoiser(x, trig()(now), cond).double()
        given_x0 = one_hot(x0, codes).double()
        truth = backward(x, given_x0, now, then)
        log_ratio = torch.log(truth.clamp(min=1e-30)) - torch.log(
            backward(x, logits.softmax(-1), now, then).clamp(min=1e-30)
        )
        bound = chain * (truth * log_ratio).sum(-1)
        if WEIGHT in cond:
            bound = bound * cond[WEIGHT].flatten(1)
        return bound.mean(1).to(logits.dtype).float()

    def error(denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor, cond: Cond) -> Tensor:
        time = process_time(level).to(noise.device).expand(len(x0))
        logits = denoiser(_randomised(x0, time, noise, codes), level, cond)
        return cross_entropy(logits.transpose(1, 2).float(), x0, reduction="none").mean(1)

    return _recipe(loss, exchange(), codes).replace(initial=lambda noise: noise.argmax(-1), error=error)


def backward(x: Tensor, guess: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """p(token at time `then` | tokens x at time `now`) under uniform transitions, `[B, N, codes]`.

    `guess` `[B, N, codes]`: the probabilities of the clean token given x. The result is the exact mixture over it, sum over x0
    of guess(x0) q(x_then | x_now, x0), Austin et al. 2021 (arXiv 2107.03006), eq. 3 and 4. Times are `[]` or `[B]`.
    """
    codes = guess.shape[-1]
    keep_now, keep_then = (expand_like(1 - time, guess) for time in (now, then))
    step = keep_now / keep_then  # probability that a step does not redraw the token
    same = one_hot(x, codes).to(guess)
    likelihood = keep_now * same + (1 - keep_now) / codes  # of x at `now`, for each clean token
    scaled = guess / likelihood
    arrival = keep_then * scaled + (1 - keep_then) / codes * scaled.sum(-1, keepdim=True)
    return (step * same + (1 - step) / codes) * arrival


def exchange() -> Step:
    """One ancestral step under uniform transitions: every token is drawn anew from `backward`.

    The noise stream gives `[B, N, codes]` normal numbers.
    """

    def step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        level, x, logits = history[-1][:3]
        now, then = (process_time(one).to(x.device) for one in (level, to))
        law = backward(x, logits.double().softmax(-1), now, then)
        gumbel = -torch.log(-torch.special.log_ndtr(next(noise).double()))
        return (torch.log(law.clamp(min=1e-30)) + gumbel).argmax(-1)

    return step


def _randomised(x0: Tensor, time: Tensor, noise: Tensor, codes: int) -> Tensor:
    """Tokens x0 `[B, N]` at times `[B]`: with probability `time` replaced by a random code. noise: normal, `[B, N]`.

    One number decides both: below `time` it is uniform on (0, time), and its place there is the code.
    """
    u = torch.special.ndtr(noise.reshape(x0.shape).double())
    time = time.to(u)[:, None]
    code = (u / time.clamp(min=1e-12) * codes).long().clamp(max=codes - 1)
    return torch.where(u < time, code, x0)


def cross_entropies(denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor, cond: Cond, codes: int) -> Tensor:
    """Mean cross-entropy of the masked tokens at a level, in nats, `[B]`: with `masked_share` of them masked."""
    nll, hidden = _guess(denoiser, x0, masked_share(process_time(level)), level, noise, cond, codes)
    mean: Tensor = nll.sum(1) / hidden.sum(1).clamp(min=1)
    return mean


def _guess(
    denoiser: Denoiser, x0: Tensor, share: Tensor, level: Level, noise: Tensor, cond: Cond, codes: int
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of tokens `[B, N]`, zero where they are not masked, and which are. noise: normal, `[B, N]`."""
    noise = noise.reshape(x0.shape)
    hidden = torch.special.ndtr(noise) < share.to(noise).expand(len(x0))[:, None]
    logits = denoiser(torch.where(hidden, codes, x0), level, cond)
    nll = cross_entropy(logits.transpose(1, 2).float(), x0, reduction="none") * hidden
    if WEIGHT in cond:
        nll = nll * cond[WEIGHT].flatten(1)
    return nll, hidden


def _recipe(loss: Callable[..., Tensor], step: Step, codes: int) -> Recipe:
    schedule = trig()

    def error(denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor, cond: Cond) -> Tensor:
        return cross_entropies(denoiser, x0, level, noise, cond, codes)

    return Recipe(
        target=X0, density=schedule, weight=lambda level: torch.ones_like(level.a), loss=loss, form=TokenDenoiser,
        timesteps=lambda steps: timesteps.uniform(schedule, steps), step=step, codes=codes, error=error,
    )  # fmt: skip
