"""The category gate of `generate`: only people who are recognised as what was asked for pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks import paths
from tasks.common.errors import UserError
from tasks.config.recognition import Recognition
from tasks.recognise import features, recogniser
from tasks.recognise.recogniser import Recogniser
from tasks.sample import generate
from tests.support.evaluation_workspace import poses


def test_only_the_requested_category_passes(tmp_path: Path) -> None:
    down = poses(80, 1)
    up = down.copy()
    up[:, 13:23, 1] -= 0.8
    labels = np.repeat([0, 1], 80)
    view = recogniser.fit(
        features.of_poses(np.concatenate([down, up])), labels, np.arange(160), 2, Recognition(steps=40)
    )
    trained = Recogniser(["down", "up"], 0.1, 0.6, {"landmarks": view})
    (tmp_path / paths.RECOGNISER).mkdir(parents=True)
    recogniser.save(tmp_path / paths.RECOGNISER / paths.MODEL_FILE, trained, {})
    judge = generate._judge(tmp_path, ["down", "up"])
    read = np.concatenate([down[:10], up[:10], np.full((1, 33, 3), np.nan, np.float32)])
    truth = ["down"] * 10 + ["up"] * 10 + ["up"]
    assert judge(read, truth)[:20].mean() > 0.9 and not judge(read, truth)[20]
    assert not judge(read, ["up"] * 10 + ["down"] * 11).any()
    with pytest.raises(UserError):
        generate._judge(tmp_path, ["down", "handstand"])
