"""Prompts as conditions, by the text encoders of a published model.

The encoders are loaded for the time of a `with` statement and freed after it, because they are as large as the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diffusion_core.conditioning import Cond
from tasks.common.errors import UserError
from tasks.common.published import package
from tasks.foreign.folder import PipelineFolder
from tasks.foreign.nets import CATEGORY, POOLED, TEXT

BATCH = 16  # prompts that are encoded at once


class Encoder:
    """Turns prompts into conditions. `pipeline`: diffusers' pipeline with nothing but its tokenizers and text encoders."""

    def __init__(self, folder: PipelineFolder, pipeline: Any, device: torch.device) -> None:
        self.folder, self.pipeline, self.device = folder, pipeline, device

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Cond:
        """The conditions of the prompts, a row each, on the CPU."""
        parts = [self._encoded(list(prompts[i : i + BATCH])) for i in range(0, len(prompts), BATCH)]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def empty(self) -> Cond:
        """What stands for a prompt that is withheld: the empty prompt, or zeros for models that were trained with them."""
        cond = self([""])
        if self.folder.kind == "sdxl" and self.folder.index.get("force_zeros_for_empty_prompt", True):
            return {key: torch.zeros_like(value) for key, value in cond.items()}
        return cond

    def _encoded(self, prompts: list[str]) -> Cond:
        kind, pipeline = self.folder.kind, self.pipeline
        if kind == "sd":
            text, _ = pipeline.encode_prompt(prompts, self.device, 1, False)
            return {TEXT: text.float().cpu()}
        if kind == "flux":
            text, pooled, _ = pipeline.encode_prompt(prompts, None, device=self.device)
        else:
            others = [None] * (1 if kind == "sdxl" else 2)
            text, _, pooled, _ = pipeline.encode_prompt(
                prompts, *others, device=self.device, do_classifier_free_guidance=False
            )
        return {TEXT: text.float().cpu(), POOLED: pooled.float().cpu()}


class Categories:
    """Names of categories as conditions, for a model that was not trained on text."""

    def __init__(self, folder: PipelineFolder, count: int) -> None:
        self.numbers = {str(i): i for i in range(count)}
        for number, names in folder.index.get("id2label", {}).items():
            for name in str(names).split(","):
                self.numbers.setdefault(name.strip(), int(number))
        self.count = count

    def __call__(self, prompts: Sequence[str]) -> Cond:
        """A row for each name or number of a category. Raises UserError for one that the model does not know."""
        rows = torch.zeros(len(prompts), self.count)
        for row, prompt in zip(rows, prompts, strict=True):
            if prompt and prompt not in self.numbers:
                raise UserError(f"The model has no category {prompt!r}; it has 0 to {self.count - 1} and their names.")
            if prompt:
                row[self.numbers[prompt]] = 1
        return {CATEGORY: rows}

    def empty(self) -> Cond:
        """What stands for a withheld category."""
        return self([""])


@contextmanager
def encoder(
    folder: PipelineFolder, device: torch.device, dtype: torch.dtype, word: Path | None = None
) -> Iterator[Encoder | Categories]:
    """The text encoders of a model, in memory until the `with` statement ends. `word`: a file of textual inversion."""
    package("transformers")
    diffusers = package("diffusers")
    if folder.kind == "dit":
        config = diffusers.DiTTransformer2DModel.load_config(folder.path / folder.net_name)
        yield Categories(folder, int(config["num_embeds_ada_norm"]))
        return
    nothing = {name: None for name in (*folder.index, folder.net_name) if name in OTHERS}
    try:
        pipeline = getattr(diffusers, folder.pipeline).from_pretrained(
            folder.path, dtype=dtype, use_safetensors=True, local_files_only=True, **nothing
        )
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"The text encoders in {folder.path} cannot be loaded: {error}.") from error
    if word is not None:
        try:
            pipeline.load_textual_inversion(word)
        except ValueError as error:
            raise UserError(f"{word} does not fit the model in {folder.path}: {error}.") from error
    yield Encoder(folder, pipeline.to(device), device)


OTHERS = frozenset({
    "unet", "transformer", "vae", "scheduler", "safety_checker", "feature_extractor", "image_encoder",
})  # fmt: skip
