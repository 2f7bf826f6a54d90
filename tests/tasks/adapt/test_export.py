"""Serving of a registered adapter: without a pickle, over HTTP, the pictures that `contrapposto draw` draws."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from tasks.adapt import export
from tasks.common.errors import UserError
from tasks.common.images import encode_png
from tasks.config.params import load
from tasks.config.sampling import SamplingChoices
from tasks.foreign import adapter as adapters
from tasks.foreign import control, draw, folder, model
from tasks.foreign.serving import Body, Painter
from tasks.registry import promote_adapter
from tests.support import tiny_pipelines
from tests.support.serving import post, served
from tests.support.workspaces import write_params

pytestmark = pytest.mark.slow
HOW = {"steps": 3, "guidance": 3.0}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tiny_pipelines.stored(tmp_path_factory.mktemp("published") / "sd", "sd")
    (path / "unet/weights.bin").write_bytes(b"a pickle")
    return path


@pytest.fixture(scope="module")
def root(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a LoRA that is challenger, and an untrained ControlNet in `artifacts`."""
    root = tmp_path_factory.mktemp("workspace")
    sha256 = folder.digest(published)
    params = load(write_params(root, base={"source": str(published), "sha256": sha256}))
    base = model.load(published, None, torch.device("cpu"))
    _, adapter = adapters.adapted(base, 2, 2.0)
    for parameter in adapter.parameters():
        parameter.data += 0.3
    adapters.save(root / "artifacts/lora", base, adapter, {"base": sha256})
    branched = control.controlled(base)
    for parameter in control.branch_of(branched).parameters():
        parameter.data += 0.05
    (root / "artifacts/controlnet").mkdir()
    control.save(root / "artifacts/controlnet", control.branch_of(branched), {"base": sha256})
    promote_adapter.run(params, root, "lora")
    return root


def drawn(root: Path, prompt: str, seed: int, count: int) -> list[np.ndarray]:
    """As the command line draws."""
    base = load(root / "params.yaml").base
    assert base is not None
    how = SamplingChoices(sampler="dpmpp_2m", **HOW)
    request = draw.Request([prompt], count, how, negative="grey", seed=seed)
    out = draw.draw(Path(base.source), base.sha256, request, root / f"drawn-{seed}", root / "artifacts/lora")
    return [np.asarray(Image.open(path)).astype(int) for path in sorted(out.glob("*.png"))]


def picture(answer: dict[str, str]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["png"])))).astype(int)


def test_a_served_adapter_draws_what_the_command_line_draws(root: Path) -> None:
    params = load(root / "params.yaml")
    with pytest.raises(UserError):
        export.run(params, root, "lora")  # its certificate did not make it champion
    export.run(params, root, "lora", "challenger")
    exported = root / "exports/lora@challenger/mlflow"
    suffixes = {path.suffix for path in exported.rglob("*") if path.is_file()}
    assert not suffixes & {".pkl", ".bin", ".pt", ".ckpt"} and ".safetensors" in suffixes
    with served(exported, root) as address:
        request = {"prompt": "a cat", "negative": "grey", "count": 2, "seed": 3, **HOW}
        status, answer = post(address, {"inputs": [request, {**request, "seed": 4, "count": 1}]})
        refused = post(address, {"inputs": [{**request, "size": 60}]})
    assert status == 200 and [len(pictures) for pictures in answer["predictions"]] == [2, 1]
    for pictures, seed in zip(answer["predictions"], (3, 4), strict=True):
        for ours, theirs in zip(pictures, drawn(root, "a cat", seed, len(pictures)), strict=True):
            assert np.abs(picture(ours) - theirs).max() <= 1
    assert refused[0] == 400 and "size" in refused[1]["message"] and "stack_trace" not in refused[1]


def test_a_base_that_was_not_adapted_is_refused(root: Path, tmp_path: Path) -> None:
    params = load(root / "params.yaml")
    other = params.model_copy(update={"base": params.base.model_copy(update={"sha256": "0" * 64})})
    with pytest.raises(UserError):
        export.run(other, root, "lora", "challenger")


def test_requests_are_checked_and_a_controlnet_is_given_poses(root: Path, published: Path) -> None:
    painter = Painter(published, root / "artifacts/controlnet")
    png = base64.b64encode(encode_png(np.full((64, 64, 3), 255, np.uint8))).decode()
    plain, posed = (painter.answer(Body(prompt="a cat", steps=2, pose=pose))[0] for pose in (None, png))
    assert np.abs(picture(plain) - picture(posed)).max() > 1
    script = io.BytesIO()
    Image.new("RGB", (64, 64)).save(script, "EPS")  # Pillow would start Ghostscript for it
    wrong_poses = ("no picture", base64.b64encode(script.getvalue()).decode())
    wrong_requests = [{"steps": 0}, {"sampler": "nonsense"}, {"count": 1000}, {"prompt": ""}]
    for wrong in [*wrong_requests, *({"pose": pose} for pose in wrong_poses)]:
        with pytest.raises(ValueError, match="request"):
            painter.answer(Body(**{"prompt": "a cat", "steps": 2, **wrong}))
    with pytest.raises(ValueError, match="ControlNet"):
        Painter(published, root / "artifacts/lora").answer(Body(prompt="a cat", pose=png))
    for i in range(70):
        painter.embeddings[f"{i}"] = painter.embeddings["a cat"]
    painter._embed(["a dog"])
    assert len(painter.embeddings) == 64 and "a dog" in painter.embeddings
