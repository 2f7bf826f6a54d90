"""Control of the motion model: what is given of a motion, and the rest sampled, by the core's inverse problems.

A measurement y = A x of the clip x (in the network's units) guides every step of the sampler (`inverse.moment_matching`) and is
restored after it (`inverse.project`). A selects frames or joints, or is the difference between the end and the beginning of a
loop. Motion that is longer than a clip is sampled clip by clip, each with the end of the one before it as its beginning, by
reconstruction guidance (Ho et al. 2022, arXiv 2204.03458, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion_core import inverse
from diffusion_core.conditioning import Cond, to_device
from diffusion_core.inverse import Operator
from diffusion_core.sampling.loop import generate
from tasks.common import motion
from tasks.common.errors import DataError
from tasks.config.sampling import SamplingChoices
from tasks.models import motion_codec
from tasks.models.guiding import guided
from tasks.models.modality import Model

GIVEN_SIGMA = 0.01  # noise assumed on what is given, in the network's units (data have standard deviation 0.5)


class Plan(NamedTuple):
    """How to sample, and the seed."""

    how: SamplingChoices = SamplingChoices()
    seed: int = 0


def given(model: Model, known: np.ndarray, cond: Cond, ids: Tensor, plan: Plan) -> np.ndarray:
    """Clips `[n, frames, 33, 3]` that continue what is given. Given numbers are exact in the result.

    `known` `[n, frames, 33, 3]` are features (`tasks.common.motion.features`) with NaN where the model fills in, in the same
    places of all clips: `frames_given` and `joints_given` make them. Raises DataError if the result is not finite.
    """
    values = torch.from_numpy(known)
    mask = values[0].isfinite()
    y = _units(model, values.double())[:, mask]
    sampled = _sampled(model, inverse.inpaint(mask), y, cond, ids, plan)
    return motion.from_features(torch.where(mask, values.float(), sampled).numpy())


def frames_given(clips: np.ndarray, frames: list[int]) -> np.ndarray:
    """What is known if these frames are given: a beginning to continue, or a first and a last pose to connect."""
    known = motion.features(clips)
    known[:, [frame for frame in range(clips.shape[1]) if frame not in frames]] = np.nan
    return known


def joints_given(clips: np.ndarray, joints: list[int]) -> np.ndarray:
    """What is known if these joints are given, relative to the middle of the hips, in all frames.

    The path of the hips and their direction are known only if both hips are among the joints.
    """
    known = motion.features(clips)
    hips = {motion.LEFT_HIP, motion.RIGHT_HIP}
    kept = [joint for joint in joints if joint not in hips or hips <= set(joints)]
    known[:, :, [joint for joint in range(33) if joint not in kept]] = np.nan
    return known


def loop(model: Model, cond: Cond, ids: Tensor, plan: Plan) -> np.ndarray:
    """Clips `[n, frames, 33, 3]` whose last frame continues in the first: pose and velocity agree, the path may go on.

    The pose of the last frame is that of the first; the last change of pose is the first. A looping player leaves out the last
    frame.
    """
    frames = model.shape[0]
    apart = torch.ones(33, 3, dtype=torch.bool)
    apart[motion.PATH] = False

    def operator(x: Tensor) -> Tensor:
        x = x.reshape(len(x), frames, 33, 3)[:, :, apart]
        return torch.cat([x[:, -1] - x[:, 0], (x[:, -1] - x[:, -2]) - (x[:, 1] - x[:, 0])], 1)

    y = torch.zeros(len(ids), 2 * int(apart.sum()), dtype=torch.float64)
    return motion.from_features(_sampled(model, operator, y, cond, ids, plan).float().numpy())


def long(
    model: Model,
    windows: int,
    overlap: int,
    cond_of: Callable[[int], Cond],
    ids: Tensor,
    plan: Plan,
    strength: float = 1.0,
    beginning: np.ndarray | None = None,
) -> np.ndarray:
    """Motion of `windows` clips that overlap by so many frames, `[n, frames + (windows - 1) (frames - overlap), 33, 3]`.

    `cond_of(k)` gives the conditions of clip k. `strength` is that of reconstruction guidance. `beginning`: the first clip, if
    there is one. Each later clip is sampled in coordinates in which its own first frame is at 0 and faces forward.
    """
    frames = model.shape[0]
    if beginning is None:
        z = _plain(model, cond_of(0), ids, plan)
        beginning = motion.from_features(model.codec.decode(z).cpu().numpy())
    whole = beginning.astype(np.float64)
    mask = torch.zeros(frames, 33, 3, dtype=torch.bool)
    mask[:overlap] = True
    for k in range(1, windows):
        end = whole[:, -overlap:]
        origin, angle = motion.middle_of_hips(end[:, 0]), motion.yaw(end[:, 0])
        local = motion.turned(end - origin[:, None, None], angle)
        known = torch.from_numpy(motion.features(local)).flatten(1)
        y = _units(model, known.reshape(len(known), overlap, 33, 3)).flatten(1).double()
        own = plan._replace(seed=plan.seed + 7919 * k)
        values = _sampled(model, inverse.inpaint(mask), y, cond_of(k), ids, own, strength)
        clip = motion.from_features(values.double().numpy())
        clip[:, :overlap] = local
        world = motion.turned(clip, -angle) + origin[:, None, None]
        whole = np.concatenate([whole, world[:, overlap:]], axis=1)
    return whole.astype(np.float32)


def _units(model: Model, values: Tensor) -> Tensor:
    """Features of clips as `motion_codec.scaled_features` gives them; NaN stays NaN where it is."""
    return (values - motion_codec.offset(model.codec, values)) / model.codec.scale.to(values)


def _plain(model: Model, cond: Cond, ids: Tensor, plan: Plan) -> Tensor:
    made = model.sampler(plan.how.sampling)
    with model.autocast():
        return generate(
            guided(model, plan.how.guidance_options, made.timesteps),
            made.visited,
            made.step,
            model.shape,
            plan.seed,
            ids,
            cond,
            noise=model.recipe.noise,
        )


def _sampled(
    model: Model, operator: Operator, y: Tensor, cond: Cond, ids: Tensor, plan: Plan, strength: float | None = None
) -> Tensor:
    """Samples in data units with these measurements `[n, m]`; with a strength, by reconstruction guidance.

    The operator is that of clips in `_units`.
    """
    device = next(model.denoiser.parameters()).device
    made = model.sampler(plan.how.sampling)

    def measured(x: Tensor) -> Tensor:
        return operator(motion_codec.scaled_features(model.codec, x.reshape(len(x), *model.shape)))

    a, y = inverse.matrix(measured, model.shape).to(device), y.to(device)
    plain = guided(model, plan.how.guidance_options, made.timesteps)
    if strength is None:
        denoiser = inverse.moment_matching(plain, a, y, GIVEN_SIGMA, iterations=1)
    else:
        denoiser = inverse.reconstruction_guidance(plain, measured, y, strength)
    cond = to_device(cond, device)
    with model.autocast():
        z = generate(
            denoiser,
            made.visited,
            made.step,
            model.shape,
            plan.seed,
            ids.to(device),
            cond,
            constrain=inverse.project(a, y),
            noise=model.recipe.noise,
        )
    values: Tensor = model.codec.decode(z).cpu()
    if not values.isfinite().all():
        raise DataError("The motion model gives samples that are not finite: its training has failed.")
    return values
