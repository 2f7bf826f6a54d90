"""Samples of a trained model, with all, some or none of its conditions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_core import choices, rng
from diffusion_core.conditioning import Cond, to_device
from diffusion_core.extras.classifier import NoisyClassifier
from diffusion_core.inverse import inpaint, matrix, moment_matching, project
from diffusion_core.sampling.loop import Constrain, Step, generate
from diffusion_core.sampling.timestep_search import match_solution
from diffusion_core.sampling.timesteps import Timesteps
from diffusion_core.training_choices import RECIPES, default_sampler
from tasks.common.errors import DataError, UserError
from tasks.config.sampling import SamplingChoices
from tasks.models.guiding import guided, sampling_denoiser
from tasks.models.modality import Model

GIVEN_SIGMA = 0.01  # noise assumed on given joints, in the network's units (data have standard deviation 0.5)
LEARNING = 16  # samples with which timesteps are learned
START, LEARNED = 1, 2  # what else a seed is for: folded into it


class Sampler:
    """A model with a way to sample it.

    `weak`: the model that `guidance.weak_model` names. `source`: the one that `start.model` names. `classifier`: the one that
    `guidance.classifier` names. `unwanted`: the embedding of `guidance.negative_prompt`. Raises UserError if the
    model cannot be sampled in this way, DataError if the timesteps need errors that were not measured.
    """

    def __init__(
        self,
        model: Model,
        how: SamplingChoices,
        weak: Model | None = None,
        source: Model | None = None,
        classifier: NoisyClassifier | None = None,
        unwanted: np.ndarray | None = None,
    ) -> None:
        self.model, self.how, self.source = model, how, source
        self.guidance, self.weak, self.classifier = how.guidance_options, weak, classifier
        self.unwanted = unwanted
        self.device = next(model.denoiser.parameters()).device
        sampling = how.sampling
        known = choices.Known(model.errors if sampling.needs_errors else None, self._match)
        made = model.sampler(sampling, known)
        self.timesteps, self.visited, self.step = made.timesteps, made.visited, made.step

    def draw(
        self,
        cond: Cond,
        seed: int,
        ids: Tensor,
        batch: int = 128,
        joints: Tensor | None = None,
        label: str | None = None,
    ) -> Tensor:
        """Samples in data units, float32 `[len(ids), *shape]`, on the CPU; cond has a row for each.

        Sample i is a function of (model, how, seed, ids[i], its conditions) alone. `joints` `[33, 3]`, for a pose model: the
        coordinates that are given, NaN where the model fills them in. They guide every step (`inverse.moment_matching`), are
        restored after every step (`inverse.project`), and are exact in the result. With a `label`, a progress bar of that name
        counts the steps. Raises DataError if a sample is not finite, UserError if the model cannot fill in joints.
        """
        given = to_device(cond, self.device)
        values: Tensor = self.decoded(self.latents(cond, seed, ids, batch, joints, label), given)
        return values if joints is None else torch.where(joints.isfinite(), joints.float(), values)

    def decoded(self, z: Tensor, cond: Cond) -> Tensor:
        """Samples in data units of what `latents` returned. Raises DataError if one is not finite."""
        values: Tensor = self.model.codec.decode(z.to(self.device), to_device(cond, self.device)).cpu()
        if not values.isfinite().all():
            raise DataError(f"The {self.model.name} model gives samples that are not finite: its training has failed.")
        return values

    def latents(
        self,
        cond: Cond,
        seed: int,
        ids: Tensor,
        batch: int = 128,
        joints: Tensor | None = None,
        label: str | None = None,
    ) -> Tensor:
        """Samples in the network's units, `[len(ids), *model.shape]`, on the device; otherwise as `draw`."""
        model = self.model
        denoiser = sampling_denoiser(
            model, self.guidance, self.how.sampler, self.timesteps, self.weak, self.classifier, self.unwanted
        )
        constrain: Constrain | None = None
        if joints is not None:
            self._check_fills_in()
            mask = joints.isfinite()
            a = matrix(inpaint(mask), model.shape)
            y = model.codec.encode(joints.double().to(self.device))[mask]
            free = guided(model, self.guidance, self.timesteps, self.weak, self.classifier)
            denoiser = moment_matching(free, a.to(self.device), y, GIVEN_SIGMA, iterations=1)
            constrain = project(a.to(self.device), y)
        start = self._start(cond, seed, ids, batch)
        given = to_device(cond, self.device)
        with tqdm(desc=label, unit="step", mininterval=2, disable=label is None) as bar, model.autocast():

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            return generate(
                denoiser,
                self.visited,
                self.step,
                model.shape,
                seed,
                ids.to(self.device),
                given,
                batch=batch,
                constrain=constrain,
                progress=progress,
                start=start,
                start_noise=0.0 if self._start_is_noisy() else 1.0,
                **model.drawing(model.denoiser),
            )

    def _check_fills_in(self) -> None:
        if self.model.recipe.degrade is not None:
            raise UserError(
                f"Recipe {self.model.config.recipe} cannot fill in joints, because it adds no noise to poses."
            )
        recipe = RECIPES[self.model.config.recipe]
        if recipe.own_steps or recipe.finished:
            raise UserError(f"Recipe {self.model.config.recipe} cannot fill in joints.")
        if self.how.sampler == "ode":
            raise UserError("Sampler ode cannot fill in joints, because it takes one step: choose another sampler.")

    def _start(self, cond: Cond, seed: int, ids: Tensor, batch: int) -> Tensor | None:
        """The clean examples in the network's units to which noise is added at the start; None: noise alone."""
        if self.how.start is None:
            return None
        seed = rng.fold(seed, START)
        if self.how.start.model is None:
            return self.model.recipe.sd * rng.normal(self.model.shape, seed, ids).to(self.device)
        if self.source is None:
            raise UserError("start.model names a model that is not at hand: set it to null.")
        source = self.model.check_same_kind(self.source)
        how = SamplingChoices(sampler=default_sampler(source.config.recipe))
        drawn = Sampler(source, how).draw(cond, seed, ids, batch)
        return self.model.codec.encode(drawn.to(self.device))

    def _start_is_noisy(self) -> bool:
        """Whether the start has its noise already (TDPM). Raises UserError if that noise is of another level."""
        start, source = self.how.start, self.source
        if start is None or source is None:
            return False
        sigma = float(source.config.training.values.get("sigma") or 0.0)
        if sigma and abs(sigma / start.sigma - 1) > 1e-6:
            raise UserError(f"start.model makes examples with noise of sigma {sigma:g}: start.sigma must be the same.")
        return sigma > 0

    def _match(self, step: Step, timesteps: Timesteps, fine: Timesteps, iterations: int, rate: float) -> Timesteps:
        """Timesteps learned for the model's categories in turn, so that they do not depend on what is asked for."""
        model = self.model
        names = [model.categories[i % len(model.categories)] for i in range(LEARNING)]
        cond = to_device(model.conditions(names), self.device)
        ids = torch.arange(LEARNING, device=self.device)
        noise = model.recipe.noise(model.shape, rng.fold(0, LEARNED), ids).double()
        denoiser = guided(model, self.guidance, timesteps, self.weak, self.classifier, self.unwanted)
        with model.autocast():
            return match_solution(denoiser, step, timesteps, fine, noise, cond, iterations, rate)


def draw(
    model: Model,
    cond: Cond,
    how: SamplingChoices,
    seed: int,
    ids: Tensor,
    batch: int = 128,
    joints: Tensor | None = None,
    label: str | None = None,
) -> Tensor:
    """Samples of a model that needs no other model for it; see `Sampler.draw`."""
    return Sampler(model, how).draw(cond, seed, ids, batch, joints, label)
