"""One, two and four ranks, with replicated and with sharded weights, train alike."""

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


def test_batches_do_not_depend_on_ranks(outcomes: dict) -> None:
    alone = outcomes["1"]["batches"]
    assert [len(batch) for batch in alone] == [32, 32, 32, 64, 64]  # the batch grows after 96 images
    assert all(outcome["batches"] == alone for outcome in outcomes.values())


def test_losses_weights_averages_and_moments_agree_up_to_rounding(outcomes: dict) -> None:
    for name, outcome in outcomes.items():
        alone = outcomes["1 muon" if "muon" in name else "1"]
        assert outcome["losses"] == pytest.approx(alone["losses"], rel=1e-5), name
        assert outcome["weights"] == pytest.approx(alone["weights"], rel=1e-4, abs=1e-5), name
        assert outcome["averaged"] == pytest.approx(alone["averaged"], abs=1e-4), name
        assert outcome["noise_scale"] == pytest.approx(alone["noise_scale"], rel=1e-4), name


def test_a_restored_state_continues_bit_identically(outcomes: dict) -> None:
    assert all(outcome["restored"] for outcome in outcomes.values())


def test_divergence_on_one_rank_is_reported_on_all(outcomes: dict) -> None:
    assert all(outcome["named"] == [17] for outcome in outcomes.values())


def test_stopping_one_rank_stops_all(outcomes: dict) -> None:
    assert all(
        outcome["stops"] == [[False] * outcome["world"], [True] * outcome["world"]] for outcome in outcomes.values()
    )
