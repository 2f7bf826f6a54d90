"""Published autoencoders as codecs: diffusers' `AutoencoderKL` and `AutoencoderTiny`, from a folder that diffusers wrote.

diffusers is the optional extra `foreign`. Whole published models are in `tasks/foreign`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion_core.nets.autoencoder import FirstStage
from tasks.common.errors import UserError
from tasks.common.files import read_json

CLASSES = ("AutoencoderKL", "AutoencoderTiny")
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


class Published(FirstStage):
    """An autoencoder of diffusers. Latents are the mean of the encoder's distribution, without diffusers' scaling factor.

    about: `{"diffusers": <class>, "config": <its config>}`. Raises UserError if diffusers is not installed or does not know the
    class or a key of the config.
    """

    def __init__(self, about: dict[str, Any]) -> None:
        super().__init__()
        self.codebook = None
        try:
            import diffusers
        except ImportError as error:
            raise UserError(
                "A published codec needs the package diffusers: install it with  pip install 'contrapposto[foreign]'."
            ) from error
        name, config = about["diffusers"], about["config"]
        if name not in CLASSES:
            raise UserError(f"A published codec must be one of {', '.join(CLASSES)}, not {name!r}.")
        try:
            self.net = getattr(diffusers, name).from_config(config)
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(f"diffusers cannot build this {name} from its {CONFIG}: {error}.") from error
        channels = self.net.config.get("block_out_channels", self.net.config.get("encoder_block_out_channels"))
        self.factor, self.latents = 2 ** (len(channels) - 1), int(self.net.config["latent_channels"])
        self.config = {"diffusers": name, "config": config}

    def encode(self, x: Tensor) -> Tensor:
        """The latents of pictures in -1 ... 1."""
        coded = self.net.encode(x)
        latents: Tensor = coded.latent_dist.mode() if hasattr(coded, "latent_dist") else coded.latents
        return latents

    def decode(self, z: Tensor, maps: Tensor | None = None) -> Tensor:
        """Pictures from latents."""
        pictures: Tensor = self.net.decode(z).sample
        return pictures


def about(folder: Path) -> dict[str, Any]:
    """What to build the autoencoder in a folder from. Raises UserError if the folder is not one of diffusers'."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} has no {CONFIG}: it is not the folder of an autoencoder of diffusers.")
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or "_class_name" not in config:
        raise UserError(f"{folder / CONFIG} does not say which class of diffusers it is for.")
    return {
        "diffusers": config["_class_name"],
        "config": {key: value for key, value in config.items() if not key.startswith("_")},
    }
