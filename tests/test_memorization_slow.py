"""A model made to memorize: thirty people, long training. The certificate has to say COPIES."""

from pathlib import Path

import pytest
from evaluation_workspace import make
from workspaces import write_params

from tasks import loss_gap, memorization, sample, train
from tasks.files import read_json
from tasks.params import load


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_model_trained_long_on_thirty_people_is_caught(tmp_path: Path) -> None:
    make(tmp_path, 21, 6, 3, 1, 1)
    path = write_params(
        tmp_path,
        poses__width=64,
        poses__depth=3,
        poses__images=160_000,
        poses__batch=64,
        poses__learning_rate=2e-3,
        poses__ema_halflife_images=4000,
        poses__warmup_images=1000,
        poses__checkpoint_images=80_000,
        sample__poses__count=200,
        sample__poses__steps=18,
        sample__poses__batch=200,
    )
    params = load(path)
    for model in ("poses", "pictures"):
        train.run(params, tmp_path, model)
        sample.run(params, tmp_path, model)
    memorization.run(params, tmp_path)
    found = read_json(tmp_path / "reports/memorization/memorization.json")
    assert found["verdicts"]["poses"] == "COPIES", found["models"]["poses"]["sentence"]
    assert found["metrics"]["poses.originals_hit_in_train"] > 10
    assert found["verdicts"]["pictures"] == "TOO-FEW"  # trained for a moment only: nothing is learned, nor copied
    loss_gap.run(params, tmp_path)
    gap = read_json(tmp_path / "reports/loss_gap/loss_gap.json")["models"]["poses"]
    assert gap["alarm"], gap["sentence"]
