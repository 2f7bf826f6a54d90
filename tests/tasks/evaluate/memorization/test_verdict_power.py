"""A reduced grid of the memorization benchmark: its goals hold, and its table shows what the verdict is for."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import copy_peers
from benchmarks.memorization_cells import copied, law_set, peer_set, video_set
from benchmarks.memorization_power import Cell, run_cells
from benchmarks.synthetic_law import Law, with_copies
from tasks.evaluate.memorization.copy_test import Verdict

SMALLEST = (200, 50, 500)
COPIES, UNRELIABLE = Verdict.COPIES.value, Verdict.SPLIT_UNRELIABLE.value


def shares(sets: list[dict[str, float]], measure: str) -> float:
    return float(np.mean([numbers[measure] for numbers in sets]))


def test_fresh_samples_raise_no_alarm_and_few_near_copies_do() -> None:
    fresh = [law_set(SMALLEST, "fresh", rep) for rep in range(40)]
    assert shares(fresh, COPIES) <= 0.05
    assert shares(fresh, "control found") >= 0.95
    for scenario in ("0.002 eta 0.1", "0.01 eta 0.3"):
        caught = [law_set(SMALLEST, scenario, rep) for rep in range(10)]
        assert shares(caught, COPIES) >= 0.9
        assert shares(caught, "true positives") >= 0.95
        assert shares(caught, "false discoveries") <= 0.2


@pytest.mark.parametrize("scenario", ["blur", "shrink", "half the modes", "noise"])
def test_bad_generators_that_copy_nothing_are_not_accused(scenario: str) -> None:
    sets = [law_set(SMALLEST, scenario, rep) for rep in range(10)]
    assert shares(sets, COPIES) <= 0.1
    assert shares(sets, "split test") == 0


def test_a_split_through_scenes_is_told_from_a_split_by_scene() -> None:
    random = [video_set(5, 0.5, False, 0, rep) for rep in range(3)]
    by_scene = [video_set(5, 0.5, True, 0, rep) for rep in range(3)]
    copies = [video_set(5, 0.2, True, 20, rep) for rep in range(3)]
    assert shares(random, UNRELIABLE) == 1
    assert shares(by_scene, UNRELIABLE) == 0
    assert shares(copies, COPIES) == 1 and shares(copies, "true positives") >= 0.95


def test_published_statistics_accuse_a_blurred_generator_and_the_verdict_does_not() -> None:
    fresh, blurred = ([peer_set(scenario, rep) for rep in range(3)] for scenario in ("fresh", "blur"))
    for name in ("authpct", "c_t", "mifid_penalty", "mean_d1"):
        assert max(numbers[name] for numbers in blurred) < min(numbers[name] for numbers in fresh)
    assert shares(blurred, COPIES) == 0


def test_every_statistic_falls_with_the_share_of_copies() -> None:
    law, rng = Law(latent=8, width=32), np.random.default_rng(0)
    train, heldout, fresh = law.draw(200, rng), law.draw(100, rng), law.draw(200, rng)
    copies = with_copies(fresh, train, heldout, 150, 0.1, rng)
    for name, statistic in copy_peers.PEERS.items():
        assert statistic(train, heldout, copies) < statistic(train, heldout, fresh), name


def test_stored_cells_are_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which it sets
    state = tmp_path / "state.json"
    cells = [Cell("one", _squares, 5), Cell("two", _squares, 3)]
    found = run_cells(cells, 1, state)
    assert found["one"].values == {"square": [0, 1, 4, 9, 16]}
    assert found["two"].mean("square") == pytest.approx(5 / 3)
    known = json.loads(state.read_text())
    known["one"]["square"][:] = [7, 7]
    known["two"]["square"][:] = [7, 7, 7]
    state.write_text(json.dumps(known))
    again = run_cells(cells, 1, state)
    assert again["one"].values == {"square": [7, 7, 4, 9, 16]}  # goes on where it was
    assert again["two"].values == {"square": [7, 7, 7]}


def _squares(rep: int) -> dict[str, float]:
    return {"square": float(rep * rep)}


def test_names_of_scenarios_are_parsed() -> None:
    assert copied("0.01 eta 0.3") == (0.01, 0.3)
    assert copied("blur") == (0.0, 0.0)
