"""One, two and four ranks, with repeated and with split weights, train as one."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.project import PROJECT


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.ranks", str(tmp_path_factory.mktemp("ranks"))],
        capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_batches_are_the_same(outcomes: dict) -> None:
    alone = outcomes["1"]["batches"]
    assert [len(batch) for batch in alone] == [32, 32, 32, 64, 64]  # the batch grows after 96 images
    assert all(found["batches"] == alone for found in outcomes.values())


def test_losses_weights_averages_and_moments_are_the_same_but_for_rounding(outcomes: dict) -> None:
    for name, found in outcomes.items():
        alone = outcomes["1 muon" if "muon" in name else "1"]
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5), name
        assert found["weights"] == pytest.approx(alone["weights"], rel=1e-4, abs=1e-5), name
        assert found["twin"] == pytest.approx(alone["twin"], abs=1e-4), name
        assert found["scale"] == pytest.approx(alone["scale"], rel=1e-4), name


def test_a_state_goes_on_to_the_same_bits(outcomes: dict) -> None:
    assert all(found["restored"] for found in outcomes.values())


def test_divergence_on_one_rank_is_named_on_all(outcomes: dict) -> None:
    assert all(found["named"] == [17] for found in outcomes.values())


def test_stopping_one_rank_stops_all(outcomes: dict) -> None:
    assert all(found["stops"] == [[False] * found["world"], [True] * found["world"]] for found in outcomes.values())
