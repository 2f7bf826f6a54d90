"""How many processes train a model."""

import pytest
import torch

from tasks.common import machine
from tasks.config.optimisation import Optimisation
from tasks.train import launch


def ranks(monkeypatch: pytest.MonkeyPatch, cores: int, gpus: int, **settings: object) -> int:
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    values = {
        "images": 64_000, "batch": 64, "learning_rate": 1e-3, "warmup_images": 0, "ema_halflife_images": 0,
        "checkpoint_images": 1000, "ranks": "auto", **settings,
    }  # fmt: skip
    return launch.ranks(Optimisation.model_validate(values))


def test_auto_takes_every_core_or_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks(monkeypatch, cores=2, gpus=0) == 2
    assert ranks(monkeypatch, cores=1, gpus=0) == 1
    assert ranks(monkeypatch, cores=2, gpus=8) == 8


def test_auto_divides_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    growth = [{"images": 1000, "batch": 96}]
    assert ranks(monkeypatch, cores=4, gpus=0, batch=144, batch_growth=growth) == 3
    assert ranks(monkeypatch, cores=4, gpus=5, batch=64) == 4


def test_auto_leaves_each_core_enough_images(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks(monkeypatch, cores=64, gpus=0, batch=64) == 4
    assert ranks(monkeypatch, cores=2, gpus=0, batch=8) == 1
    assert ranks(monkeypatch, cores=2, gpus=0, images=9_999) == 1


def test_a_number_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks(monkeypatch, cores=2, gpus=0, ranks=4) == 4
