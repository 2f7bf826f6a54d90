"""A folder in which diffusers stored a pipeline: which kind of model it is, its sha256, and what is allowed in it.

Only configurations, vocabularies and safetensors files are read. A folder whose weights are pickles, or which brings code of
its own, is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasks.common.errors import UserError
from tasks.common.files import check_folder, read_json
from tasks.common.published import digest as digest

INDEX = "model_index.json"
LIBRARIES = frozenset({"diffusers", "transformers"})
UNUSED = ("safety_checker", "feature_extractor", "image_encoder", "watermark")  # components that are never loaded

Kind = Literal["sd", "sdxl", "sd3", "flux", "dit"]

KINDS: dict[str, Kind] = {  # by diffusers' name of the pipeline
    "StableDiffusionPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
    "DiTPipeline": "dit",
}
NETS: dict[str, str] = {  # the classes of their networks
    "sd": "UNet2DConditionModel",
    "sdxl": "UNet2DConditionModel",
    "sd3": "SD3Transformer2DModel",
    "flux": "FluxTransformer2DModel",
    "dit": "DiTTransformer2DModel",
}


@dataclass(frozen=True)
class PipelineFolder:
    """A folder of diffusers whose content was checked."""

    path: Path
    pipeline: str  # diffusers' name of it
    components: dict[str, tuple[str, str]]  # sub-folder -> (library, class)
    index: dict[str, Any]

    @property
    def kind(self) -> Kind:
        """What kind of model it is."""
        return KINDS[self.pipeline]

    @property
    def net_name(self) -> str:
        """The sub-folder with the network that is trained: `unet` or `transformer`."""
        return "unet" if self.kind in ("sd", "sdxl") else "transformer"


def opened(path: Path) -> PipelineFolder:
    """The pipeline in a folder.

    Raises UserError if there is no such folder or no pipeline in it, if it is of an unknown kind, if it brings code of its
    own, or if a network has no safetensors file.
    """
    check_folder(path)
    if not (path / INDEX).is_file():
        raise UserError(f"{path} has no {INDEX}: it is not a folder that a pipeline of diffusers was stored in.")
    index = read_json(path / INDEX)
    name = index.get("_class_name") if isinstance(index, dict) else None
    if name not in KINDS:
        raise UserError(f"{path / INDEX} is of {name}; the known pipelines are {', '.join(KINDS)}.")
    components = {}
    for key, value in index.items():
        if key.startswith("_") or key in UNUSED or not isinstance(value, list) or value == [None, None]:
            continue
        library, component = value
        if library not in LIBRARIES:
            raise UserError(f"{path / INDEX}: {key} is of {library}, which is neither diffusers nor transformers.")
        components[key] = (library, component)
        if component.endswith(("Model", "AutoencoderKL", "AutoencoderTiny", "Projection")) and not list(
            (path / key).glob("*.safetensors")
        ):
            raise UserError(f"{path / key} has no safetensors file. Other files of weights are not read.")
    folder = PipelineFolder(path, name, components, index)
    for needed, allowed in ((folder.net_name, NETS[folder.kind]), ("vae", "Autoencoder"), ("scheduler", "")):
        if needed not in components or not components[needed][1].startswith(allowed):
            raise UserError(f"{path / INDEX}: a {name} needs {needed} of class {allowed or 'Scheduler'}.")
    return folder


def checked(path: Path, sha256: str | None) -> PipelineFolder:
    """The pipeline in a folder with this digest (None: any). Raises UserError if it is another one."""
    folder = opened(path)
    if sha256 is not None and (actual := digest(path)) != sha256:
        raise UserError(f"{path}: sha256 mismatch, expected {sha256}, got {actual}.")
    return folder
