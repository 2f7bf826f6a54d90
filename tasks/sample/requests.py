"""Requests for samples and their answers, as the served model and the command `generate` use them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict, Field

from diffusion_core import choices
from diffusion_core.training_choices import RECIPES, default_sampler
from tasks import paths
from tasks.common import checkpoint
from tasks.common.errors import UserError
from tasks.common.images import encode_png
from tasks.config.params import Upscaler, Upscaling, check_sampling
from tasks.config.sampling import GuidanceOrScale, SamplingChoices
from tasks.models import classifier as classifiers
from tasks.models import inputs, modality, model_file, upscaler
from tasks.models.modality import Model
from tasks.models.sampler import Sampler
from tasks.sample import given_joints
from tasks.sample.given_joints import Joints
from tasks.text.encoder import embeddings

MAX_COUNT = 256  # samples in one answer
KEPT = 64  # ways to sample that are kept ready


class Request(SamplingChoices):
    """A request for samples. Every key has a default.

    Sampler, steps, timesteps and their options are those of both models, except for samplers that only pictures have; guidance
    and start are those of the pictures.
    """

    model_config = ConfigDict(strict=False)  # whole numbers may come as floats

    category: str | None = None  # None: any
    prompt: str | None = Field(default=None, min_length=1)  # of the pictures, for models with text
    # Joint name -> x, y, z (hips at the origin, torso 1 long, y down). The pose model fills in joints that are not given.
    pose: Joints | None = None
    count: int = Field(default=1, ge=1, le=MAX_COUNT)
    guidance: GuidanceOrScale = 2.0  # of the pictures; 1: none
    seed: int = Field(default=0, ge=0, lt=2**31)

    def for_poses(self, recipe: str) -> SamplingChoices:
        """How the pose model of this recipe is sampled: in the same way, unless the sampler is one of pictures alone."""
        solver, own = choices.SAMPLERS[self.sampler], RECIPES[recipe]
        of_pictures = (
            (solver.tokens and not own.tokens) or (solver.cold and not own.cold) or (solver.own and not own.own_steps)
        )
        if of_pictures or (own.own_steps and not solver.own):
            return SamplingChoices(sampler=default_sampler(recipe), steps=self.steps)
        return SamplingChoices(sampler=self.sampler, steps=self.steps, timesteps=self.timesteps, options=self.options)

    def joints(self) -> torch.Tensor | None:
        """The pose float64 `[33, 3]`, NaN for joints that are not given; None if no joint is given."""
        return given_joints.as_tensor(self.pose)


@dataclass(frozen=True)
class Samples:
    """Poses float32 `[n, 33, 3]` and pictures of them, uint8 `[n, s, s, 3]`."""

    poses: np.ndarray
    pictures: np.ndarray


class Artist:
    """The trained models in their folders: samples poses, then a picture of each, and enlarges it if there is an upscaler.

    With an upscaler one model is in memory at a time; without, both stay there. `enlarging`: how pictures are enlarged.
    `classifier`: the folder of the one that can guide the pictures. `prepare` makes what draws from a model; by default a
    `Sampler` that knows no other models than these. `home`: the workspace, from where the text encoder is looked for.
    """

    def __init__(
        self,
        poses: Path,
        pictures: Path,
        prepare: Callable[[Model, SamplingChoices], Sampler] | None = None,
        upscaler: Path | None = None,
        enlarging: Upscaling | None = None,
        classifier: Path | None = None,
        home: Path = Path(),
    ) -> None:
        self._folders = {"poses": poses, "pictures": pictures} | ({paths.UPSCALER: upscaler} if upscaler else {})
        self._about = {name: checkpoint.about(path / paths.MODEL_FILE) for name, path in self._folders.items()}
        self._loaded: dict[str, Model] = {}
        self.classifier, self._home = classifier, home
        self.prepare = prepare or self._prepared
        self.enlarging = enlarging or Upscaling()
        self.samplers: dict[str, Sampler] = {}  # timesteps may have been learned for them

    @property
    def categories(self) -> list[str]:
        """The categories that can be asked for."""
        known: list[str] = self._about["poses"]["categories"]
        return known

    @property
    def reads(self) -> bool:
        """Whether the pictures can be asked for by a prompt."""
        return "text" in self._about["pictures"]

    @property
    def margin(self) -> float:
        """The margin around a person in the pictures."""
        return float(self._about["pictures"]["margin"])

    @property
    def size(self) -> int:
        """Pixels along the side of the pictures."""
        return int(self._about[paths.UPSCALER if paths.UPSCALER in self._folders else "pictures"]["config"]["size"])

    def _model(self, name: str) -> Model:
        if name not in self._loaded:
            if paths.UPSCALER in self._folders:
                self._loaded.clear()
                self.samplers.clear()
            self._loaded[name] = model_file.load(self._folders[name], modality.device())
        return self._loaded[name]

    def samples(self, request: Request, ids: torch.Tensor) -> Samples:
        """The samples with these numbers. Each is a function of the request and its number alone.

        Raises ValueError if the models do not know the category or cannot be sampled in this way, DataError if a sample is not
        finite or something was not measured in training.
        """
        if request.category is not None and request.category not in self.categories:
            known = ", ".join(self.categories)
            raise ValueError(f"there is no category {request.category!r}; there are {known}")
        for_poses = request.for_poses(self._about["poses"]["config"]["recipe"])
        if paths.UPSCALER not in self._folders:  # say what is wrong before anything is drawn
            self._sampler("poses", for_poses), self._sampler("pictures", request)
        categories = [request.category] * len(ids)
        joints = request.joints()
        if joints is not None and joints.isfinite().all():
            poses = joints.float().expand(len(ids), -1, -1).numpy()
        else:
            sampler = self._sampler("poses", for_poses)
            poses = sampler.draw(sampler.model.conditions(categories), request.seed, ids, joints=joints).numpy()
        sampler = self._sampler("pictures", request)
        text = self._embedded(sampler.model, request.prompt)
        cond = sampler.model.conditions(categories, poses, None if text is None else text.repeat(len(ids), 0))
        pictures = inputs.as_pictures(sampler.draw(cond, request.seed, ids))
        if paths.UPSCALER in self._folders:
            del sampler
            pictures = upscaler.upscale(self._model(paths.UPSCALER), pictures, self.enlarging, request.seed, ids)
        return Samples(poses, pictures)

    def _embedded(self, model: Model, prompt: str | None) -> np.ndarray | None:
        """The embedding of a prompt, `[1, length, width]`.

        Raises ValueError if the model was trained without text.
        """
        if prompt is None:
            return None
        if model.text is None:
            raise ValueError("the pictures know no text: prompt must be null")
        return embeddings(self._home, model.text.encoder, [prompt])

    def _sampler(self, name: str, how: SamplingChoices) -> Sampler:
        model = self._model(name)
        assert not isinstance(model.config, Upscaler)
        how = model.fitting(how)
        check_sampling(model.name, model.config, how)
        key = f"{model.name} {json.dumps(how.sampling_json)}"
        if key not in self.samplers:
            if len(self.samplers) >= KEPT:
                self.samplers.clear()
            self.samplers[key] = self.prepare(model, how)
        return self.samplers[key]

    def _prepared(self, model: Model, how: SamplingChoices) -> Sampler:
        """The model with a way to sample it. Raises UserError if the classifier that shall guide it is not at hand."""
        wanted, own = how.guidance_options.classifier, self.classifier
        if wanted is None:
            return Sampler(model, how, unwanted=self._embedded(model, how.guidance_options.negative_prompt))
        if own is None:
            raise UserError("guidance.classifier: no classifier was exported with these models, so it must be null.")
        if (known := paths.sha256(own)) != wanted:
            raise UserError(f"guidance.classifier: the classifier of these models is {known}, not {wanted}.")
        return Sampler(model, how, classifier=classifiers.load(own, model))

    def answer(self, request: Request) -> list[dict[str, Any]]:
        """For each sample: `png` (base64), `landmarks` (33 times x, y, z), `category`, `seed` and `number`."""
        samples = self.samples(request, torch.arange(request.count))
        return [
            {
                "png": base64.b64encode(encode_png(picture)).decode(),
                "landmarks": pose.tolist(),
                "category": request.category,
                "seed": request.seed,
                "number": number,
            }
            for number, (pose, picture) in enumerate(zip(samples.poses, samples.pictures, strict=True))
        ]
