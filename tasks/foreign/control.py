"""ControlNet: a branch that shows Stable Diffusion the pose that a picture shall have. Zhang et al. 2023 (arXiv 2302.05543).

The branch is a copy of the U-Net's encoder, which sees a picture of the pose and adds to what the U-Net's own encoder gives.
It begins with zeros, so that the model is unchanged at first. Its files:

    model.safetensors                                 this project's: the weights, and the sha256 of the base
    config.json, diffusion_pytorch_model.safetensors  for `ControlNetModel.from_pretrained` of diffusers, and so for its
                                                      `StableDiffusionControlNetPipeline`

A picture of a pose has the bones of `tasks.dataset.pose_map` in six colours on black, 0 ... 1.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_core.conditioning import Cond, keep_mask
from diffusion_core.lora import Frozen
from tasks import paths
from tasks.common import checkpoint
from tasks.common.errors import DataError, UserError
from tasks.common.published import package
from tasks.dataset.pose_map import pose_map
from tasks.foreign.model import ForeignModel
from tasks.foreign.nets import POOLED, TEXT, UNet, size_of

POSE = "map:pose"  # condition `[B, 3, side, side]`: a picture of the pose, as large as the picture to be drawn
KIND = "controlnet"
WEIGHTS = "diffusion_pytorch_model.safetensors"
WIDTHS = (16, 32, 96, 256)  # of the layers that bring the picture of a pose to the size of latents
# Left arm, right arm, left leg, right leg, trunk, head: far from each other, so that left and right are told apart.
COLOURS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.3, 1.0), (1.0, 1.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 1.0))


def pictures(poses: np.ndarray, size: int, margin: float) -> Tensor:
    """Pictures of poses `[n, 33, 3]`, float32 `[n, 3, size, size]` in 0 ... 1; of bones that cross, the nearer line shows."""
    maps = pose_map(poses, size, margin)
    colours = torch.tensor(COLOURS)
    return (maps[:, :, None] * colours[None, :, :, None, None]).amax(1)


class Controlled(nn.Module):
    """A U-Net with a branch, called as the U-Net is. Parameters and state are those of the branch.

    Without the condition POSE, and in rows that it is withheld from, it is the U-Net alone. `scale` multiplies what the branch
    adds.
    """

    def __init__(self, net: UNet, branch: Any, scale: float = 1.0) -> None:
        super().__init__()
        self.frozen = Frozen(net)
        self.branch = branch
        self.scale = scale

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        """What the U-Net predicts."""
        net: Any = self.frozen.module
        pose = cond.get(POSE)
        if pose is None or self.scale == 0:
            plain: Tensor = net(x, c_noise, cond)
            return plain
        x = net.typed(x)
        own = x.to(next(self.branch.parameters()).dtype)
        text = net.condition(TEXT, cond, own)
        added = None
        if POOLED in net.empty:
            added = {"text_embeds": net.condition(POOLED, cond, own), "time_ids": size_of(own, net.factor)}
        down, middle = self.branch(
            own, c_noise, text, pose.to(own).expand(len(x), *pose.shape[1:]), added_cond_kwargs=added, return_dict=False
        )
        keep = keep_mask(cond, POSE)
        factor: Tensor | float = self.scale
        if keep is not None:
            factor = self.scale * keep.to(own).reshape(-1, 1, 1, 1)
        more = {
            "down_block_additional_residuals": [(factor * value).to(x.dtype) for value in down],
            "mid_block_additional_residual": (factor * middle).to(x.dtype),
        }
        prediction: Tensor = net(x, c_noise, cond, **more)
        return prediction


def controlled(model: ForeignModel, seed: int = 0, recompute: bool = False, copied: bool = True) -> ForeignModel:
    """The model with an untrained branch, which changes nothing yet. The given model's network is shared.

    `recompute`: activations, in the backward pass. `copied`: the branch begins with the weights of the network.
    Raises UserError if the model has no U-Net, or another autoencoder than Stable Diffusion's.
    """
    net = _unet(model)
    diffusers = package("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        branch = diffusers.ControlNetModel.from_unet(
            net.inner, conditioning_embedding_out_channels=WIDTHS, load_weights_from_unet=copied
        ).float()
    if recompute:
        branch.enable_gradient_checkpointing()
        net.inner.enable_gradient_checkpointing()
    return replace(model, denoiser=model.recipe.denoiser(Controlled(net, branch.requires_grad_(True))))


def _unet(model: ForeignModel) -> UNet:
    if not isinstance(model.net, UNet):
        raise UserError("A ControlNet needs the U-Net of Stable Diffusion 1, 2 or XL.")
    if model.codec.factor != 2 ** (len(WIDTHS) - 1):
        raise UserError(f"A ControlNet needs an autoencoder that makes 8 x 8 pixels one, got {model.codec.factor}.")
    return model.net


def branch_of(model: ForeignModel) -> Any:
    """The branch of a model that `controlled` gave."""
    assert isinstance(model.denoiser.net, Controlled)
    return model.denoiser.net.branch


def save(folder: Path, branch: Any, meta: dict[str, Any]) -> None:
    """Write the files of a branch into a folder."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in branch.state_dict().items()}
    checkpoint.save(folder / paths.MODEL_FILE, tensors, {"kind": KIND, **meta})
    try:
        os.link(folder / paths.MODEL_FILE, folder / WEIGHTS)  # the weights once for both
    except OSError:
        shutil.copyfile(folder / paths.MODEL_FILE, folder / WEIGHTS)
    branch.save_config(folder)


def load(folder: Path, model: ForeignModel, scale: float = 1.0) -> ForeignModel:
    """The model with the branch in a folder; `scale` multiplies what it adds, 0 is the model bit for bit.

    Raises DataError if the file is no branch, UserError if it was trained with another kind of network.
    """
    tensors, meta = checkpoint.load(folder / paths.MODEL_FILE)
    if meta.get("kind") != KIND:
        raise DataError(f"{folder / paths.MODEL_FILE} is not a ControlNet.")
    made = controlled(model, copied=False)
    net = made.denoiser.net
    assert isinstance(net, Controlled)
    try:
        net.branch.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"The ControlNet in {folder} was trained with another network: {error}.") from error
    net.scale = scale
    made.denoiser.to(model.device).eval().requires_grad_(False)
    return made
