"""Samples of a trained model, with all, some or none of its conditions."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_core.conditioning import Cond
from diffusion_core.inverse import inpaint, matrix, moment_matching, project
from diffusion_core.sampling.loop import Constrain, generate
from tasks.common.errors import DataError, UserError
from tasks.config.evaluation import Guidance
from tasks.models.modality import Model

GIVEN_SIGMA = 0.01  # noise assumed on given joints, in the network's units (data have standard deviation 0.5)


def draw(
    model: Model,
    cond: Cond,
    steps: int,
    guidance: float | Guidance,
    seed: int,
    ids: Tensor,
    batch: int = 128,
    joints: Tensor | None = None,
    label: str | None = None,
    sampler: str = "unipc",
) -> Tensor:
    """Samples in data units, float32 `[len(ids), *shape]`, on the CPU; cond has a row for each.

    Sample i is a function of (model, seed, ids[i], its conditions) alone. `joints` `[33, 3]`, for a pose model: the coordinates
    that are given, NaN where the model fills them in. They guide every step (`inverse.moment_matching`), are restored after
    every step (`inverse.project`), and are exact in the result. With a `label`, a progress bar of that name counts the steps.
    Raises DataError if a sample is not finite, UserError if the model cannot fill in joints.
    """
    device = next(model.denoiser.parameters()).device
    denoiser = model.sampling_denoiser(guidance, sampler)
    timesteps, step = model.sampler(sampler, steps)
    given = {key: value.to(device) for key, value in cond.items()}
    constrain: Constrain | None = None
    if joints is not None and model.recipe.degrade is not None:
        raise UserError(f"Recipe {model.config.recipe} cannot fill in joints, because it adds no noise to poses.")
    if joints is not None:
        mask = joints.isfinite()
        a = matrix(inpaint(mask), model.shape)
        y = model.codec.encode(joints.double().to(device))[mask]
        denoiser = moment_matching(model.guided(guidance), a.to(device), y, GIVEN_SIGMA, iterations=1)
        constrain = project(a.to(device), y)
    with tqdm(desc=label, unit="step", mininterval=2, disable=label is None) as bar, model.autocast():

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        z = generate(
            denoiser,
            timesteps,
            step,
            model.shape,
            seed,
            ids.to(device),
            given,
            batch=batch,
            constrain=constrain,
            progress=progress,
            noise=model.recipe.noise,
            initial=model.initial,
        )
    values: Tensor = model.codec.decode(z, given).cpu()
    if not values.isfinite().all():
        raise DataError(f"The {model.name} model gives samples that are not finite: its training has failed.")
    return values if joints is None else torch.where(joints.isfinite(), joints.float(), values)
