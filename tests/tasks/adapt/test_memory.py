"""The memory that an adaptation is expected to take, against what it takes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from diffusion_core.training import memory as memory_of
from tasks.adapt import memory, stage
from tasks.adapt.memory import Estimate
from tasks.config.adapt import Lora
from tasks.config.params import load
from tasks.foreign import folder, model
from tests.support import tiny_pipelines
from tests.support.workspaces import write_params, write_shards

pytestmark = pytest.mark.slow
WITHIN = 2  # factor between what is expected of the training itself and what it takes


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.stored(tmp_path_factory.mktemp("published") / "sd", "sd")


def train(root: Path, published: Path, monkeypatch: pytest.MonkeyPatch, **lora: object) -> tuple[Estimate, int]:
    """What was expected, and the peak."""
    section = {
        "pictures": "photos", "images": 16, "batch": 16, "checkpoint_images": 16, "rank": 4, "size": 256, "val": 0.3,
        "certificate": None, **lora,
    }  # fmt: skip
    write_params(root, base={"source": str(published), "sha256": folder.digest(published)}, adapt={"lora": section})
    (root / "photos").mkdir()
    random = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(random.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(root / f"photos/{i}.png")
    told: list[Estimate] = []
    peaks: list[int] = []
    estimate, peak = memory.estimate, memory.peak
    monkeypatch.setattr(memory, "estimate", lambda *given: told.append(estimate(*given)) or told[0])
    monkeypatch.setattr(memory, "peak", lambda device: peaks.append(peak(device)) or peaks[0])
    torch.set_num_threads(1)
    stage.run(load(root / "params.yaml"), root, "lora")
    return told[0], peaks[0]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell the peak of a part of a process")
def test_the_training_takes_what_was_expected(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first training loads libraries that the estimate of the CPU's memory does not know of."""
    with monkeypatch.context() as patch:
        small, used = train(tmp_path / "small", published, patch, microbatch=1)
    assert used < 1.2 * small.peak
    with monkeypatch.context() as patch:
        told, used = train(tmp_path / "plain", published, patch)
    expected, measured = told.peak - told.held, used - told.held
    assert told.micro_batch > 5e7 and expected / WITHIN < measured < expected * WITHIN
    assert small.micro_batch < 0.3 * told.micro_batch
    with monkeypatch.context() as patch:
        recomputed, _ = train(
            tmp_path / "recomputed", published, patch, recompute=True, optimiser="adamw_8bit", rank=64
        )
    assert recomputed.micro_batch < 0.7 * told.micro_batch


def test_offloaded_weights_wait_and_the_result_has_the_same_bits(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for offload in (False, True):
        root = tmp_path / str(offload)
        with monkeypatch.context() as patch:
            told, _ = train(
                root,
                published,
                patch,
                size=64,
                recompute=True,
                offload=offload,
                certificate={"samples": 50, "steps": 1},
            )
        network = model.load(published, None, torch.device("cpu"))
        away = memory_of.of_module(network.net) if offload else 0
        assert told.waiting == away
        assert told.network == memory_of.of_module(network.net) + memory_of.of_module(network.codec.net) - away
        assert (f"{away / 1e9:.2f} GB of the network wait" in told.sentence()) == offload
        results.append(
            [(root / "artifacts/lora" / name).read_bytes() for name in ("model.safetensors", "training.json")]
        )
    assert results[0] == results[1]


@pytest.mark.parametrize("method", ["dreambooth", "textual_inversion", "controlnet"])
def test_every_method_learns_with_offload(method: str, published: Path, tmp_path: Path) -> None:
    section: dict[str, object] = {
        "images": 8, "batch": 4, "checkpoint_images": 8, "size": 64, "offload": True, "recompute": True,
        "certificate": {"samples": 50, "steps": 1},
    }  # fmt: skip
    if method == "dreambooth":
        section |= {"pictures": None, "prior": {"prompt": "a cat", "count": 2, "steps": 1}}
    if method == "textual_inversion":
        section |= {"pictures": None, "template": "a <my-thing>"}
    source = {"source": str(published), "sha256": folder.digest(published)}
    write_params(tmp_path, base=source, adapt={method: section})
    write_shards(tmp_path, train=8, val=4)
    torch.set_num_threads(1)
    stage.run(load(tmp_path / "params.yaml"), tmp_path, method)
    assert (tmp_path / "artifacts" / method / "model.safetensors").is_file()
    assert (tmp_path / "artifacts" / method / "certificate.json").is_file()


def test_offload_without_recomputed_activations_is_refused() -> None:
    with pytest.raises(ValidationError):
        Lora.model_validate({"offload": True})
