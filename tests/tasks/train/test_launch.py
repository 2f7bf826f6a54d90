"""How many processes train a model, and what is told when one of them fails."""

import os
from pathlib import Path

import pytest
import torch

from tasks.common import machine
from tasks.common.errors import DataError, UserError
from tasks.config.optimisation import Optimisation
from tasks.train import launch
from tests.support.project import PROJECT


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


RANK = """\
import os
from tasks.common.errors import DataError
from tasks.train import launch

with launch.device():
    if os.environ["RANK"] == "1":
        raise {error}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "sentence", "code"),
    [
        ("DataError('Nobody was found.')", "Nobody was found.", 3),
        ("ZeroDivisionError", "stopped with exit code 1; run it again", 1),
    ],
)
def test_what_stops_a_rank_is_the_sentence_of_the_training(
    error: str,
    sentence: str,
    code: int,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "work.py").write_text(RANK.format(error=error))
    monkeypatch.setenv("PYTHONPATH", f"{PROJECT}{os.pathsep}{tmp_path}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(UserError, match=sentence) as caught:
        launch.torchrun(["work"], 2, tmp_path)
    assert caught.value.code == code and "ChildFailedError" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "sentence", "code"),
    [
        (DataError("Nobody was found."), "Nobody was found.", 3),
        (OSError(28, "No space left on device", "a.bin"), "The disk is full", 1),
        (OSError("a fault of the program"), "stopped with exit code 1; run it again", 1),
    ],
)
def test_a_rank_leaves_its_sentence_to_the_process_that_started_it(
    error: UserError | OSError, sentence: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Guard:
        """Stands for torchrun and its second rank."""

        def __init__(self, command: list[str], cwd: Path, environment: dict[str, str], **_: object) -> None:
            for name, value in (
                ("TORCHELASTIC_RUN_ID", "x"),
                ("RANK", "1"),
                (launch.REPORTS, environment[launch.REPORTS]),
            ):
                monkeypatch.setenv(name, value)

        def wait(self) -> int:
            try:
                launch._report(error)
            except SystemExit:
                return code
            return 1

    monkeypatch.setattr("tasks.common.process.start", Guard)
    monkeypatch.setattr("tasks.common.process.stop", lambda guard: 0)
    with pytest.raises(UserError, match=sentence) as caught:
        launch.torchrun(["work"], 2, tmp_path)
    assert caught.value.code == code
