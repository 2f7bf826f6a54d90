"""The table of a run and its key figures."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.paths import MODELS
from tasks.report import page, results
from tasks.report.results import Results


def measured(**changes: Any) -> Results:
    """The results of a run, as far as the summary needs them."""
    values: dict[str, Any] = {
        "extraction": {"files": 12, "rejects": {"unreadable": 1}, "joint_error": {"mannequin": {"within_0.2": 0.9}}},
        "curation": {"persons_kept": 10, "splits": {"train": 7, "val": 2, "test": 1}, "gated": {"too_dark": 1}},
        "losses": {"poses": 0.5, "pictures": 0.25},
        "memorization": {"verdicts": {"poses": "CLEAN", "pictures": "COPIES"}, "metrics": {"poses.p": 0.5}},
        "membership_inference": {"metrics": {}},
        "likelihood": {"metrics": {"poses.bits_per_dim": -1.5}, "sentences": {}, "absent": {}},
        "pose_accuracy": {"metrics": {"pictures.found": 0.75, "pictures.within_0.2": 0.5}},
        "codec_quality": {"metrics": {"codec.psnr_heldout": 31.0}},
        "recognition": {"metrics": {"landmarks.accuracy": 0.9}, "confusion": {}, "absent": {}},
        "fidelity": {"metrics": {"poses.frechet_pose_distance": 0.33819, "poses.frechet_pose_distance_floor": 0.1598},
                     "absent": {}},
        "promotion": {"promote": False, "reasons": ["Worse than the champion."]},
    }  # fmt: skip
    return Results(**{**values, **changes})


def test_table_and_metrics() -> None:
    summary = results.summarise(measured())
    rows = dict(summary.rows)
    assert rows["persons kept"] == "10 (test 1, train 7, val 2)"
    assert rows["rejects"] == "too dark 1, unreadable 1"
    assert rows["Frechet pose distance"] == "0.3382 (training data 0.1598)"
    assert rows["promoted"] == "no: Worse than the champion."
    assert summary.metrics["extraction.mannequin.within_0.2"] == 0.9
    assert summary.metrics["data.rejects.too_dark"] == 1


def test_key_figures_are_flat_and_name_what_was_measured() -> None:
    run = measured()
    figures = results.key_figures(run, results.summarise(run).metrics)
    assert figures["poses.frechet_distance"] == pytest.approx(0.33819)
    assert (figures["pictures.found"], figures["pictures.within_0.2_torso"]) == (0.75, 0.5)
    assert (figures["poses.memorization"], figures["pictures.memorization"]) == ("CLEAN", "COPIES")
    assert figures["poses.bits_per_dim"] == -1.5
    assert figures["promoted"] == "no"
    assert all(isinstance(value, int | float | str) for value in figures.values())
    assert "pictures.fid" not in figures


def test_a_missing_distance_is_absent_with_its_reason() -> None:
    run = measured(fidelity={"metrics": {}, "absent": {"poses": "there are no held-out poses."}})
    assert dict(results.summarise(run).rows)["Frechet pose distance"] == "absent (there are no held-out poses.)"
    assert "poses.frechet_distance" not in results.key_figures(run, results.summarise(run).metrics)


PLAIN = {"pictures.fid": 61.25, "pictures.fid_floor": 48.5}
CORRECTED = {"pictures.fid_corrected": 20.0, "pictures.fid_corrected_low": 15.0, "pictures.fid_corrected_high": 25.0}
NOTE = "plain value of 24 and 22 pictures, biased upwards when they are few"


@pytest.mark.parametrize("corrected", [{}, CORRECTED])
def test_the_plain_fid_is_shown_with_its_floor_its_sizes_and_its_bias(corrected: dict[str, float]) -> None:
    run = measured(fidelity={"metrics": {**PLAIN, **corrected}, "notes": {"pictures.fid": NOTE}, "absent": {}})
    run.memorization["models"] = {model: {"verdict": "CLEAN"} for model in MODELS}
    summary = results.summarise(run)
    row = dict(summary.rows)["FID"]
    assert row.startswith("61.25 (training data 48.5") and NOTE in row
    assert ("corrected 20, 95% interval 15 to 25" in row) == bool(corrected)
    assert summary.metrics["fidelity.pictures.fid"] == 61.25
    figures = results.key_figures(run, summary.metrics)
    assert (figures["pictures.fid"], figures["pictures.fid_training_data"]) == (61.25, 48.5)
    (card,) = [card for card in page._cards(run) if card.label == "FID"]
    assert card.value == "61.25" and "48.5" in card.note and NOTE in card.note
    assert (f"pictures.fid ({NOTE})", "61.25") in page._metrics(run)


def test_without_the_weights_of_inception_there_is_no_fid() -> None:
    run = measured()
    run.memorization["models"] = {model: {"verdict": "CLEAN"} for model in MODELS}
    assert "FID" not in dict(results.summarise(run).rows) and "FID" not in [card.label for card in page._cards(run)]
