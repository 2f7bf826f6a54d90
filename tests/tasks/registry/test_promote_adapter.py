"""Adapters in the registry: the gate, the aliases, and drawing by alias."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tasks.common import checkpoint, files
from tasks.common.errors import UserError
from tasks.config.params import load
from tasks.registry import promote_adapter
from tests.support.workspaces import write_params


def test_the_gate_is_open_for_clean_adapters_and_for_few_copies_that_may_be_missed() -> None:
    assert promote_adapter.objection({"verdict": "CLEAN", "share_bound": 0.04}, 0.05) is None
    assert promote_adapter.objection({"verdict": "LOW-POWER", "share_bound": 0.04}, 0.05) is None
    for certificate in (
        None, {"verdict": "LOW-POWER", "share_bound": 0.2}, {"verdict": "LOW-POWER"}, {"verdict": "COPIES", "share_bound": 0.0},
        {"verdict": "SPLIT-UNRELIABLE"},
    ):  # fmt: skip
        assert promote_adapter.objection(certificate, 0.05)


def adapter(root: Path, value: float, verdict: str) -> Path:
    folder = root / "artifacts/lora"
    checkpoint.save(folder / "model.safetensors", {"a": torch.full((2,), value)}, {"kind": "lora", "base": "0" * 64})
    files.write_json(folder / "certificate.json", {"verdict": verdict, "sentence": "So it is.", "share_bound": 0.5})
    return folder


def test_an_adapter_becomes_champion_and_is_found_by_its_alias(tmp_path: Path) -> None:
    params = load(write_params(tmp_path))
    folder = adapter(tmp_path, 1.0, "LOW-POWER")
    with pytest.raises(UserError):
        promote_adapter.located(params, tmp_path, "lora@champion")
    promote_adapter.run(params, tmp_path, "lora")
    with pytest.raises(UserError):
        promote_adapter.located(params, tmp_path, "lora@champion")
    found = promote_adapter.located(params, tmp_path, "lora@challenger")
    assert (found / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    promote_adapter.run(params, tmp_path, "lora", "LOW-POWER")
    champion = promote_adapter.located(params, tmp_path, "lora@champion")
    assert champion == found

    adapter(tmp_path, 2.0, "COPIES")
    promote_adapter.run(params, tmp_path, "lora")
    assert promote_adapter.located(params, tmp_path, "lora@champion") == champion
    with pytest.raises(UserError):
        promote_adapter.run(params, tmp_path, "lora", "COPIES")
    assert promote_adapter.located(None, tmp_path, str(folder)) == folder
    with pytest.raises(UserError):
        promote_adapter.run(params, tmp_path, "dreambooth")
