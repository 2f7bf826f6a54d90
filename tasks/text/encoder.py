"""A published text encoder: captions become embeddings, which are kept by digest so that none is computed twice.

The folder is that of a pipeline of diffusers, whose `text_encoder` and `tokenizer` are used, or one in which transformers
stored both a CLIP or T5 model and its tokenizer. Only safetensors files are read, never pickles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks import paths
from tasks.common import files
from tasks.common.errors import UserError
from tasks.common.files import check_folder
from tasks.common.published import digest, package
from tasks.config.text import TextEncoder

MODELS = {  # model_type of the configuration -> class of transformers
    "clip_text_model": "CLIPTextModel",
    "clip": "CLIPTextModel",
    "t5": "T5EncoderModel",
}


@dataclass(frozen=True)
class Folders:
    """Where the encoder and its tokenizer are."""

    encoder: Path
    tokenizer: Path


def opened(path: Path) -> Folders:
    """The text encoder in a folder. Raises UserError if there is none."""
    check_folder(path)
    pipeline = (path / "model_index.json").is_file()
    found = Folders(path / "text_encoder", path / "tokenizer") if pipeline else Folders(path, path)
    if not (found.encoder / "config.json").is_file():
        raise UserError(f"{path} holds no text encoder: there is no {found.encoder / 'config.json'}.")
    kind = files.read_json(found.encoder / "config.json").get("model_type")
    if kind not in MODELS:
        raise UserError(
            f"{path}: a text encoder of type {kind!r} is not known; the known ones are {', '.join(MODELS)}."
        )
    return found


def embeddings(root: Path, config: TextEncoder, captions: Sequence[str]) -> np.ndarray:
    """The embedding of every caption, float32 `[n, length, width]`; what fills a short caption up is zero.

    Embeddings are kept in `.contrapposto/text/`, by the digests of the encoder and of the caption. A caption is encoded alone,
    so that it does not depend on the others. Raises UserError if the folder is another one or cannot be loaded.
    """
    folder = root / paths.TEXT / hashlib.sha256(f"{config.sha256} {config.length}".encode()).hexdigest()[:32]
    named = {caption: folder / f"{hashlib.sha256(caption.encode()).hexdigest()[:32]}.npy" for caption in captions}
    missing = [caption for caption, path in named.items() if not path.is_file()]
    if missing:
        encoder = _Encoder(root / config.source, config)
        for caption in missing:
            with files.new_file(named[caption]) as temporary, temporary.open("wb") as file:
                np.save(file, encoder(caption), allow_pickle=False)
    return np.stack([np.load(named[caption], allow_pickle=False) for caption in captions])


class _Encoder:
    """Model and tokenizer in memory, on the CPU in single precision."""

    def __init__(self, path: Path, config: TextEncoder) -> None:
        import torch

        found = opened(path)
        if (actual := digest(path)) != config.sha256:
            raise UserError(f"{path}: sha256 mismatch, expected {config.sha256}, got {actual}.")
        transformers = package("transformers")
        kind = files.read_json(found.encoder / "config.json")["model_type"]
        options: dict[str, Any] = {"local_files_only": True}
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(found.tokenizer, **options)
            model = getattr(transformers, MODELS[kind]).from_pretrained(
                found.encoder, dtype=torch.float32, use_safetensors=True, **options
            )
        except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
            raise UserError(f"The text encoder in {path} cannot be loaded: {error}.") from error
        self.model, self.length, self.no_grad = model.eval(), config.length, torch.no_grad

    def __call__(self, caption: str) -> np.ndarray:
        """The embedding of a caption, float32 `[length, width]`."""
        tokens = self.tokenizer(
            caption, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        with self.no_grad():
            hidden = self.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state[0]
        embedded: np.ndarray = (hidden * tokens.attention_mask[0][:, None]).numpy().astype(np.float32)
        return embedded
