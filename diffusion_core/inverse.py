"""Inverse problems: samples that agree with a measurement y = A x0 + noise.

There are guided denoisers (`pigdm`, `moment_matching`, `reconstruction_guidance`), guided steps (`dps`) and constraints on x
after each step (`project`). An operator A
is a function on batches, `[B, *S] -> [B, m]`; methods that invert it need its `matrix`. `benchmarks.inverse` compares all
methods with the exact posterior of Gaussian data, and so shows which of them are biased.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser
from diffusion_core.sampling.loop import Constrain, Denoise, Estimate, Step
from diffusion_core.schedules import Level, expand_like

Operator = Callable[[Tensor], Tensor]


def inpaint(mask: Tensor) -> Operator:
    """The values where mask `[*S]` is true, `[B, m]`."""
    return lambda x: x.flatten(1)[:, mask.flatten()]


def downsample(factor: int) -> Operator:
    """Pictures `[B, C, H, W]` averaged over squares of factor x factor pixels, `[B, m]`."""
    return lambda x: torch.nn.functional.avg_pool2d(x, factor).flatten(1)


def blur(width: float, radius: int) -> Operator:
    """Pictures `[B, C, H, W]` blurred by a normal kernel of this standard deviation in pixels, edges repeated, `[B, m]`."""
    kernel1d = torch.exp(-(torch.arange(-radius, radius + 1, dtype=torch.float64) ** 2) / (2 * width**2))
    kernel1d = kernel1d / kernel1d.sum()

    def apply(x: Tensor) -> Tensor:
        channels = x.shape[1]
        padded = torch.nn.functional.pad(x, [radius] * 4, mode="replicate")
        for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
            kernel = kernel1d.to(x).reshape(shape).expand(channels, -1, -1, -1)
            padded = torch.nn.functional.conv2d(padded, kernel, groups=channels)
        return padded.flatten(1)

    return apply


def matrix(operator: Operator, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """The operator's matrix `[m, d]` for one example of this shape."""
    d = int(torch.tensor(shape).prod())
    columns = operator(torch.eye(d, dtype=dtype).reshape(d, *shape))
    return columns.T


# Guided denoisers


def gaussian_posterior(
    denoiser: Denoiser, a: Tensor, y: Tensor, noise: float, prior: Callable[[Level], float]
) -> Denoiser:
    """D + C A^T (noise^2 I + A C A^T)^-1 (y - A D) with C = prior(level) I, for the matrix `a` `[m, d]` and y `[B, m]`.

    This is the mean of x0 given x and y if x0 given x is normal with covariance C. It is `pigdm` without the Jacobian factor.
    """

    def denoise(x: Tensor, level: Level, cond: Cond) -> Tensor:
        x0 = denoiser(x, level, cond)
        c = prior(level)
        gain = torch.linalg.solve(noise**2 * torch.eye(len(a), dtype=a.dtype) + c * a @ a.T, c * a).T
        correction: Tensor = (y - x0.flatten(1) @ a.T.to(x)) @ gain.T.to(x)
        return x0 + correction.view_as(x)

    return denoise


def normal_prior(sd: float) -> Callable[[Level], float]:
    """The variance of x0 given x for normal data of standard deviation sd: s^2 sd^2 / (a^2 sd^2 + s^2)."""
    return lambda level: float((level.s * sd) ** 2 / ((level.a * sd) ** 2 + level.s**2))


def pigdm(denoiser: Denoiser, a: Tensor, y: Tensor, noise: float, sd: float = 1.0) -> Denoiser:
    """D + (s^2 / a) grad_x log N(y; A D(x), noise^2 I + r^2 A A^T), where r^2 is `normal_prior(sd)`.

    For the matrix `a` `[m, d]` and y `[B, m]`. Song et al. 2023, "Pseudoinverse-guided diffusion models" (ICLR 2023), eq. 7
    and 8.
    """
    variance = normal_prior(sd)

    def denoise(x: Tensor, level: Level, cond: Cond) -> Tensor:
        cov = noise**2 * torch.eye(len(a), dtype=a.dtype) + variance(level) * a @ a.T
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            x0 = denoiser(leaf, level, cond)
            residual = y - x0.flatten(1) @ a.T.to(x)
            direction = (torch.linalg.solve(cov, a).to(x).T @ residual.detach().T).T  # A^T cov^-1 (y - A D)
            (gradient,) = torch.autograd.grad((x0.flatten(1) * direction).sum(), leaf)
        return x0.detach() + expand_like(level.s**2 / level.a, x) * gradient

    return denoise


def moment_matching(denoiser: Denoiser, a: Tensor, y: Tensor, noise: float, iterations: int | None = None) -> Denoiser:
    """`gaussian_posterior` with the covariance of x0 given x, C = (s^2 / a) dD/dx, from automatic differentiation.

    Exact for Gaussian data. The equations for A C A^T + noise^2 I are solved by conjugate gradients, one backward pass per
    iteration; None makes as many as there are measured numbers. For learned denoisers use 1 or 2: their Jacobian is not
    exactly a covariance, and few iterations are robust. A row's iteration ends at a direction without positive variance.
    Rozet et al. 2024 (arXiv 2405.13712), section 4.
    """

    def denoise(x: Tensor, level: Level, cond: Cond) -> Tensor:
        matrix = a.to(x)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            x0 = denoiser(leaf, level, cond).flatten(1)

            def cov_at(v: Tensor) -> Tensor:
                """C A^T v `[B, d]` for v `[B, m]`."""
                (product,) = torch.autograd.grad(x0, leaf, v @ matrix, retain_graph=True)
                return expand_like(level.s**2 / level.a, x0) * product.flatten(1)

            correction = torch.zeros_like(x0)
            residual = y.to(x) - x0.detach() @ matrix.T
            direction, square = residual, residual.square().sum(1, keepdim=True)
            for _ in range(len(a) if iterations is None else iterations):
                step = cov_at(direction)
                variance = ((step @ matrix.T) * direction).sum(1, keepdim=True)
                total = variance + noise**2 * direction.square().sum(1, keepdim=True)
                size = torch.where((variance > 0) & (total > 0), square / total, 0.0)
                correction = correction + size * step
                residual = residual - size * (step @ matrix.T + noise**2 * direction)
                before, square = square, residual.square().sum(1, keepdim=True)
                # A row that has ended or converged keeps direction 0.
                direction = torch.where((size > 0) & (before > 0), residual + square / before * direction, 0.0)
        return (x0.detach() + correction).view_as(x)

    return denoise


def reconstruction_guidance(denoiser: Denoiser, operator: Operator, y: Tensor, strength: float = 1.0) -> Denoiser:
    """D - strength * (a / 2) grad_x ||y - A D(x)||^2, for y `[m]` or `[B, m]`; A need not be linear.

    Ho et al. 2022 (arXiv 2204.03458), eq. 7. With strength 1 it is the guidance for p(y | x) = N(A D(x), (s / a)^2 I).
    """

    def denoise(x: Tensor, level: Level, cond: Cond) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            x0 = denoiser(leaf, level, cond)
            (gradient,) = torch.autograd.grad((y - operator(x0)).square().sum(), leaf)
        return x0.detach() - expand_like(strength * level.a / 2, x) * gradient

    return denoise


# Guided steps


def dps(step: Step, operator: Operator, y: Tensor, strength: float = 1.0) -> Step:
    """Diffusion posterior sampling: after `step`, x is moved by -strength * grad_x ||y - A D(x)||, the gradient at the old x.

    y is `[m]` or `[B, m]`; A need not be linear. `strength` is in data units and applies to x at the variance-preserving scale
    a^2 + s^2 = 1, so that the result does not depend on the scale of the levels. Use it with `ddim(eta=1)` and 100 steps or
    more. Each step needs one more evaluation and a backward pass. Chung et al. 2022 (arXiv 2209.14687), algorithm 1 with the
    step size of section 4 (strength / ||y - A D(x)|| times the gradient of the squared norm, up to a factor of 2).
    """

    def guided(history: list[Estimate], to: Level, denoise: Denoise, noise: Iterator[Tensor]) -> Tensor:
        level, x = history[-1][:2]
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            norms = (y - operator(denoise(leaf, level))).norm(dim=1)
            (gradient,) = torch.autograd.grad(norms.sum(), leaf)
        scale = torch.hypot(*level) * torch.hypot(*to)
        return step(history, to, denoise, noise) - strength * scale.to(x) * gradient

    return guided


# Constraints


def project(a: Tensor, y: Tensor) -> Constrain:
    """After each step, replace x by the nearest point whose measurement A x equals a y + s A noise.

    If A selects entries, this is the replacement method of Score SDE (Song et al. 2021, arXiv 2011.13456, appendix I.2). If A
    averages, it is ILVR (Choi et al. 2021, arXiv 2108.02938). In general it is a projection onto a convex set (POCS). Together
    with `dps` it makes manifold-constrained gradients (MCG; Chung et al. 2022, arXiv 2206.00941), together with
    `timesteps.truncate` CCDF (arXiv 2112.05146). The samples are biased, because the other entries of x adapt to y too late;
    `timesteps.repaint` reduces the bias.
    """
    inverse = torch.linalg.pinv(a)

    def constrain(x: Tensor, level: Level, noise: Iterator[Tensor]) -> Tensor:
        a_noise = next(noise).to(x).flatten(1) @ a.T.to(x)
        noisy_y = level.a.to(x) * y.to(x) + level.s.to(x) * a_noise
        flat = x.flatten(1)
        correction: Tensor = (noisy_y - flat @ a.T.to(x)) @ inverse.T.to(x)
        return (flat + correction).view_as(x)

    return constrain
