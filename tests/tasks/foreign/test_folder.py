"""What is accepted as a published model; nothing here needs its libraries."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tasks.common import published
from tasks.common.errors import UserError
from tasks.foreign import folder

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
}


def stored(path: Path, suffix: str = ".safetensors", **changes: object) -> Path:
    for part in ("unet", "vae", "text_encoder"):
        (path / part).mkdir(parents=True)
        (path / part / f"weights{suffix}").write_bytes(part.encode())
    (path / "model_index.json").write_text(json.dumps({**INDEX, **changes}))
    return path


def test_a_folder_is_known_by_what_is_read_of_it(tmp_path: Path) -> None:
    path = stored(tmp_path / "sd")
    opened = folder.opened(path)
    assert (opened.kind, opened.net_name) == ("sd", "unet") and "safety_checker" not in opened.components
    digest = folder.digest(path)
    (path / "unet/weights.bin").write_bytes(b"not read")
    assert folder.digest(path) == digest and folder.checked(path, digest) == opened
    (path / "vae/weights.safetensors").write_bytes(b"other")
    with pytest.raises(UserError):
        folder.checked(path, digest)
    (path / "vae/weights.safetensors").rename(path / "vae/renamed.safetensors")
    assert folder.digest(path) != digest


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": "SomeOtherPipeline"},
        {"unet": ["my_module", "UNet2DConditionModel"]},
        {"unet": ["diffusers", "UNet3DConditionModel"]},
        {"scheduler": [None, None]},
    ],
)
def test_unknown_kinds_and_code_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(UserError):
        folder.opened(stored(tmp_path / "sd", **changes))


def test_pickles_and_folders_without_an_index_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        folder.opened(stored(tmp_path / "pickled", ".bin"))
    with pytest.raises(UserError):
        folder.opened(tmp_path)


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"contrapposto\[foreign\]"):
        published.package("peft")
