"""Embeddings of captions by tiny text encoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import diffusers

from tasks.common import published
from tasks.common.errors import UserError
from tasks.config.text import TextEncoder
from tasks.text import encoder
from tests.support import tiny_pipelines

pytestmark = pytest.mark.slow


def test_the_embedding_is_that_of_the_pipeline_and_is_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_pipelines.stored(tmp_path / "sd", "sd")
    config = TextEncoder(source=str(source), sha256=published.digest(source), length=77)
    embedded = encoder.embeddings(tmp_path, config, ["a cat", "dogs", "a cat"])
    assert embedded.shape == (3, 77, 32) and np.array_equal(embedded[0], embedded[2])
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(source, local_files_only=True)
    wanted = pipeline.encode_prompt(["dogs"], "cpu", 1, False)[0][0].detach().numpy()
    known = len(pipeline.tokenizer("dogs").input_ids)
    assert np.allclose(embedded[1, :known], wanted[:known], atol=1e-5)
    assert not embedded[1, known:].any()

    monkeypatch.setattr(encoder, "package", lambda name: pytest.fail("the encoder was loaded again"))
    assert np.array_equal(encoder.embeddings(tmp_path, config, ["dogs"])[0], embedded[1])


def test_t5_and_folders_that_cannot_be_used(tmp_path: Path) -> None:
    tokenizer, model = tiny_pipelines.t5()
    for part in (tokenizer, model):
        part.save_pretrained(tmp_path / "t5")
    digest = published.digest(tmp_path / "t5")
    embedded = encoder.embeddings(tmp_path, TextEncoder(source="t5", sha256=digest, length=8), ["a cat"])
    assert embedded.shape == (1, 8, 32) and embedded[0].any()
    with pytest.raises(UserError):
        encoder.embeddings(tmp_path, TextEncoder(source="t5", sha256="0" * 64, length=9), ["a cat"])
    (tmp_path / "t5/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError):
        encoder.opened(tmp_path / "t5")
    with pytest.raises(UserError):
        encoder.opened(tmp_path)
