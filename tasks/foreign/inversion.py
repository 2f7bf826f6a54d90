"""Textual inversion: a new word of a published model, learned from pictures. Gal et al. 2022 (arXiv 2208.01618).

The word is one or several vectors in the table of the text encoder; everything else stays as it is. Its files:

    model.safetensors             this project's: the vectors, the word, and the sha256 of the base
    learned_embeds.safetensors    for `load_textual_inversion` of diffusers' pipelines, and for tools that read its files

For Stable Diffusion 1 and 2, which have one text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_core import rng
from diffusion_core.conditioning import KEEP, Cond, without
from diffusion_core.lora import Frozen
from tasks import paths
from tasks.common import checkpoint
from tasks.common.errors import UserError
from tasks.foreign import text
from tasks.foreign.model import ForeignModel
from tasks.foreign.nets import TEXT

TOKENS = "ids:text"  # condition `[B, length]`: the numbers of a prompt's tokens
EMBEDDINGS = "learned_embeds.safetensors"
KIND = "textual_inversion"
SPREAD = 0.01  # of the vectors of a word without an initial one, over the others' spread


class Word(nn.Module):
    """A published network and its text encoder, both frozen, with a word that is trained.

    Called as the network is, with TOKENS in place of `tok:text`.
    """

    def __init__(self, net: nn.Module, encoder: Any, first: int, vectors: Tensor) -> None:
        super().__init__()
        self.net, self.encoder = Frozen(net), Frozen(encoder)
        self.first = first  # number of the word's first token
        self.vectors = nn.Parameter(vectors)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        """What the network predicts."""
        tokens = cond.get(TOKENS)
        rest = without(cond, TOKENS)
        if tokens is not None:
            rest = {**rest, TEXT: self.embedded(tokens)}
            if KEEP + TOKENS in cond:
                rest[KEEP + TEXT] = cond[KEEP + TOKENS]
        prediction: Tensor = self.net.module(x, c_noise, rest)
        return prediction

    def embedded(self, tokens: Tensor) -> Tensor:
        """The embedding of prompts `[B, length]`, `[B, length, width]`."""
        encoder: Any = self.encoder.module

        def insert(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            number = inputs[0] - self.first
            inside = (number >= 0) & (number < len(self.vectors))
            return torch.where(
                inside[..., None], self.vectors[number.clamp(0, len(self.vectors) - 1)].to(output), output
            )

        handle = encoder.get_input_embeddings().register_forward_hook(insert)
        try:
            hidden: Tensor = encoder(tokens, return_dict=False)[0]
        finally:
            handle.remove()
        return hidden


class Inversion:
    """A word to be trained, and prompts that contain it as conditions.

    `word`: such as `<red-cat>`, which must not be in the vocabulary. `count`: of its vectors. `initial`: a word of the
    vocabulary whose vector they start from; None: near the mean of all. Raises UserError if the model has no single text
    encoder, or if a word does not fit.
    """

    def __init__(self, model: ForeignModel, word: str, count: int, initial: str | None, seed: int) -> None:
        if model.folder.kind != "sd":
            raise UserError("Textual inversion needs Stable Diffusion 1 or 2, which have one text encoder.")
        self.model, self.word = model, word
        with text.encoder(model.folder, model.device, torch.float32) as encode:
            assert isinstance(encode, text.Encoder)
            self.pipeline = encode.pipeline
        self.tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder.eval().requires_grad_(False)
        self.names = [word, *(f"{word}_{i}" for i in range(1, count))]
        table: Tensor = encoder.get_input_embeddings().weight
        vectors = self._start(table, count, initial, seed)
        if word in self.tokenizer.get_vocab():
            raise UserError(f"adapt: {word!r} is a word of the model already; choose another one.")
        self.tokenizer.add_tokens(self.names)
        encoder.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        encoder.requires_grad_(False)
        self.module = Word(model.net, encoder, self.tokenizer.convert_tokens_to_ids(word), vectors).to(model.device)
        self.denoiser = model.recipe.denoiser(self.module)

    def _start(self, table: Tensor, count: int, initial: str | None, seed: int) -> Tensor:
        if initial is None:
            noise = rng.normal((count, table.shape[1]), seed, torch.zeros(1, dtype=torch.int64))[0].to(table)
            return table.mean(0) + SPREAD * table.std(0) * noise
        numbers = self.tokenizer.encode(initial, add_special_tokens=False)
        if len(numbers) != 1:
            raise UserError(
                f"adapt: {initial!r} is {len(numbers)} tokens of the model; choose an initial word that is one."
            )
        return table[numbers[0]].repeat(count, 1).clone()

    def conditions(self, prompts: Sequence[str]) -> Cond:
        """The tokens of prompts. Raises UserError for one that lacks the word."""
        for prompt in prompts:
            if self.word not in prompt:
                raise UserError(f"adapt: the caption {prompt!r} lacks the word {self.word}.")
        expanded = [prompt.replace(self.word, " ".join(self.names)) for prompt in prompts]
        length = self.tokenizer.model_max_length
        encoded = self.tokenizer(
            expanded, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return {TOKENS: encoded.input_ids}

    def save(self, folder: Path, weights: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Write the files of the word with trained weights of the denoiser."""
        vectors = weights["net.vectors"].detach().cpu()
        about = {"kind": KIND, "word": self.word, "pipeline": self.model.folder.pipeline, **meta}
        checkpoint.save(folder / paths.MODEL_FILE, {"vectors": vectors}, about)
        checkpoint.save(folder / EMBEDDINGS, {self.word: vectors}, {})


def load(folder: Path, model: ForeignModel) -> ForeignModel:
    """The model with the word in a folder, for its prompts."""
    if model.folder.kind != "sd":
        raise UserError(f"The word in {folder} is of Stable Diffusion 1 or 2.")
    return replace(model, word=folder / EMBEDDINGS)
