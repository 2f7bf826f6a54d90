"""The quality of reconstructions: perfect for a code of full rank, worse for a short one, absent for pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import paths
from tasks.common.files import read_json
from tasks.config.params import load
from tasks.evaluate import codec_quality, pose_accuracy
from tasks.train import stage
from tests.support.workspaces import write_params, write_shards


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what training sets


def _nobody(pictures: np.ndarray, *_: Any) -> np.ndarray:
    """What MediaPipe reads in pictures without people."""
    return np.full((len(pictures), 33, 3), np.nan, np.float32)


def _metrics(root: Path, codec: dict[str, Any]) -> dict[str, float]:
    write_params(root, codec=codec, pictures__patch=1)
    write_shards(root)
    params = load(root / paths.PARAMS)
    stage.run(params, root, "codec")
    codec_quality.run(params, root)
    return dict(read_json(root / paths.CODEC_QUALITY / "codec_quality.json")["metrics"])


def test_principal_components_of_full_rank_reconstruct_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pose_accuracy, "read_poses", _nobody)
    full = _metrics(tmp_path / "full", {"kind": "pca", "factor": 4, "latents": 48})
    short = _metrics(tmp_path / "short", {"kind": "pca", "factor": 4, "latents": 2})
    assert full["codec.psnr_heldout"] > 35 > short["codec.psnr_heldout"]
    assert full["codec.ssim_heldout"] > 0.99 > short["codec.ssim_heldout"]
    assert full["codec.found"] == 0
    assert (tmp_path / "full" / paths.CODEC_QUALITY / "codec.png").is_file()


def test_without_a_codec_nothing_is_measured(tmp_path: Path) -> None:
    assert _metrics(tmp_path, {"kind": "none"}) == {}
