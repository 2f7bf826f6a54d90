"""A published model as a denoiser, a codec and a recipe of this project."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_core import choices, losses
from diffusion_core.codecs import Latent
from diffusion_core.conditioning import Cond, to_device
from diffusion_core.denoiser import Denoiser, Preconditioned
from diffusion_core.guidance import cfg, negative
from diffusion_core.recipe import Recipe
from diffusion_core.sampling import solvers
from diffusion_core.sampling.loop import generate
from diffusion_core.schedules import Level, NoiseSchedule
from tasks.common.errors import UserError
from tasks.common.published import package
from tasks.config.sampling import SamplingChoices
from tasks.foreign import levels, text
from tasks.foreign.folder import PipelineFolder, checked
from tasks.foreign.nets import SD3, DiT, Flow, Flux, ForeignDenoiser, ForeignNet, UNet
from tasks.models.published_codec import Published, about

WRAPPERS: Mapping[str, type[ForeignNet]] = {"sd": UNet, "sdxl": UNet, "sd3": SD3, "flux": Flux, "dit": DiT}
# diffusers' scheduler whose levels a sampler visits; any other sampler visits those of the folder's own scheduler.
SCHEDULERS = {"ddim": "DDIMScheduler", "ddpm": "DDIMScheduler", "euler": "EulerDiscreteScheduler"}
SCHEDULERS |= {"dpmpp_2m": "DPMSolverMultistepScheduler", "dpmpp_2m_sde": "DPMSolverMultistepScheduler"}
SCHEDULERS |= {"unipc": "UniPCMultistepScheduler", "lms": "LMSDiscreteScheduler", "heun": "HeunDiscreteScheduler"}
LOGIT_NORMAL = (0.0, 1.0)  # mean and standard deviation of logit t when flows are trained


@dataclass(frozen=True)
class ForeignModel:
    """A published model. Its network's units are latents times the published scaling factor, of variance about 1."""

    folder: PipelineFolder
    net: ForeignNet
    denoiser: Preconditioned  # `net`, or `net` with an adapter
    codec: Latent
    recipe: Recipe
    device: torch.device
    dtype: torch.dtype
    word: Path | None = None  # a file of textual inversion: a word that prompts may use

    @property
    def size(self) -> int:
        """Pixels along the side of the pictures that it was trained on."""
        return (
            int(self.net.about["sample_size"] or 128) * self.codec.factor if "sample_size" in self.net.about else 1024
        )

    def shape(self, size: int) -> tuple[int, int, int]:
        """The shape of a picture of so many pixels in the network's units. Raises UserError if there is none."""
        multiple = self.codec.factor * (int(self.net.about.get("patch_size") or 1) if self.folder.kind != "flux" else 2)
        if self.folder.kind in ("sd", "sdxl"):
            multiple = self.codec.factor * 2 ** (len(self.net.about["block_out_channels"]) - 1)
        if size < 1 or size % multiple:
            raise UserError(f"The size of pictures must be a multiple of {multiple} pixels, got {size}.")
        return (self.codec.net.latents, size // self.codec.factor, size // self.codec.factor)

    def conditions(self, prompts: Sequence[str]) -> Cond:
        """The conditions of prompts, a row each, on the CPU. The text encoders are loaded and freed again."""
        with text.encoder(self.folder, self.device, self.dtype, self.word) as encode:
            return encode(prompts)

    def guided(self, scale: float, unwanted: Cond | None = None, rescale: float = 0.0) -> Denoiser:
        """The denoiser under guidance away from the unwanted prompt, one row, or from the empty one; scale 1: none.

        What else the model is given, such as a pose, both have.
        """
        if unwanted is None:
            return cfg(self.denoiser, scale, *self.net.empty, rescale=rescale)
        return negative(self.denoiser, to_device(unwanted, self.device), scale, rescale)

    def draw(
        self,
        cond: Cond,
        how: SamplingChoices,
        seed: int,
        ids: Tensor,
        size: int | None = None,
        unwanted: Cond | None = None,
        batch: int = 1,
        denoiser: Denoiser | None = None,
    ) -> Tensor:
        """Pictures in -1 ... 1, float32 `[len(ids), 3, size, size]`, on the CPU; cond has a row for each.

        Picture i is a function of (model, how, seed, ids[i], size, its prompts) alone. `unwanted`: the negative prompt.
        `denoiser`: in place of the model's own under guidance. Raises UserError if the model cannot be sampled in this way.
        """
        latents = self.latents(cond, how, seed, ids, size, unwanted, batch, denoiser)
        with torch.no_grad():
            return torch.cat([self.codec.decode(part.to(self.device)).cpu() for part in latents.split(batch)])

    def latents(
        self,
        cond: Cond,
        how: SamplingChoices,
        seed: int,
        ids: Tensor,
        size: int | None = None,
        unwanted: Cond | None = None,
        batch: int = 1,
        denoiser: Denoiser | None = None,
    ) -> Tensor:
        """As `draw`, before the codec decodes them."""
        shape = self.shape(size or self.size)
        walk = self.walk(how, shape)
        guidance = how.guidance_options
        solver = choices.SAMPLERS[how.sampler]
        values = how.sampling.values()
        return generate(
            denoiser or self.guided(guidance.scale, unwanted, guidance.rescale),
            solver.visited(walk.timesteps, values),
            solver.step(self.recipe, values),
            shape,
            seed,
            ids.to(self.device),
            to_device(cond, self.device),
            batch=batch,
            initial=lambda noise: walk.start * noise,
        )

    def walk(self, how: SamplingChoices, shape: Sequence[int]) -> levels.Walk:
        """The levels that a sampler visits: those of diffusers' scheduler for it. UserError if it does not fit the model."""
        solver, guidance = choices.SAMPLERS[how.sampler], how.guidance_options
        plain = guidance.model_copy(update={"scale": 1.0, "rescale": 0.0})
        if solver.cold or solver.tokens or solver.variance == "measured" or how.start or how.timesteps:
            raise UserError(
                f"Sampler {how.sampler} with timesteps or start as given cannot sample a published model: choose ddim, euler, "
                "heun, dpmpp_2m, unipc or another one, without timesteps and start."
            )
        if plain != type(plain)():
            raise UserError("The guidance of a published model has the keys scale and rescale only.")
        folder = self.folder.path / "scheduler"
        scheduler = levels.read(folder)
        if not levels.is_flow(scheduler) and how.sampler in SCHEDULERS:
            scheduler = levels.read(folder, SCHEDULERS[how.sampler])
        places = shape[-1] * shape[-2] // (4 if self.folder.kind in ("sd3", "flux") else 1)
        return levels.walk(scheduler, how.steps, places)


def recipe(scheduler: Any) -> Recipe:
    """How the model was trained, from its scheduler: loss of the prediction, levels evenly (flows: logit-normally) drawn."""
    target, schedule = levels.target(scheduler), levels.schedule(scheduler)
    form: type[ForeignDenoiser]
    if levels.is_flow(scheduler):
        density = losses.logitnormal(schedule, *LOGIT_NORMAL)
        step, form = solvers.heun(solvers.FLOW_ODE), Flow
        c_noise: Callable[[Level], Tensor] = _flow_time
    else:
        density = losses.discrete(schedule, int(scheduler.config.num_train_timesteps))
        step, form = solvers.ddim(), ForeignDenoiser
        c_noise = partial(_number, schedule)
    return Recipe(
        target=target,
        density=density,
        weight=losses.unit(target),
        timesteps=lambda n: levels.walk(scheduler, n, 1024).timesteps,
        step=step,
        sd=1.0,
        c_noise=c_noise,
        form=form,
        draw=losses.iid,
    )


def _number(schedule: NoiseSchedule, level: Level) -> Tensor:
    """The number of the level, 0 ... 999, which need not be whole."""
    return schedule.invert(level.logsnr).clamp(min=0)


def _flow_time(level: Level) -> Tensor:
    return 1000 * level.s / (level.a + level.s)


def load(
    path: Path, sha256: str | None, device: torch.device, dtype: torch.dtype = torch.float32, offloaded: bool = False
) -> ForeignModel:
    """The published model in a folder, in evaluation mode; its text encoders were used once and freed.

    `sha256`: of the folder, see `folder.digest`; None: not checked. `dtype`: of the network. `offloaded`: the network stays on
    the CPU, for `offload`. Raises UserError if diffusers is not installed, or if the folder is another one, incomplete, or of a
    kind that is not known.
    """
    folder = checked(path, sha256)
    diffusers = package("diffusers")
    scheduler = levels.read(path / "scheduler")
    with text.encoder(folder, device, dtype) as encode:
        empty = encode.empty()
    net_class = getattr(diffusers, folder.components[folder.net_name][1])
    inner = _pretrained(net_class, path / folder.net_name, dtype)
    net = WRAPPERS[folder.kind](inner, empty)
    made = recipe(scheduler)
    denoiser = made.denoiser(net).to("cpu" if offloaded else device).eval().requires_grad_(False)
    return ForeignModel(folder, net, denoiser, codec(folder, device), made, device, dtype)


class OneByOne(Latent):
    """The codec of a published model, whose pictures are so large that several at once would take more memory than training.

    On processors it computes in float32, as the rest of a published model does there.
    """

    BATCH = 1
    BF16_DEVICES = ("cuda",)


def codec(folder: PipelineFolder, device: torch.device) -> Latent:
    """The autoencoder of a published model, with its scaling and shift. Raises UserError if it cannot be loaded."""
    diffusers, path = package("diffusers"), folder.path / "vae"
    net = Published(about(path))
    net.net = _pretrained(getattr(diffusers, folder.components["vae"][1]), path, torch.float32)
    config = net.net.config
    shift = float(config.get("shift_factor") or 0.0)
    net.to(device)
    return OneByOne(net, torch.full((net.latents, 1, 1), shift), torch.tensor(1 / float(config["scaling_factor"])))


def _pretrained(of: Any, path: Path, dtype: torch.dtype) -> Any:
    try:
        return of.from_pretrained(path, dtype=dtype, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{path} cannot be loaded: {error}.") from error
