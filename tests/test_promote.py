"""The gate: what may become champion, and that the registry says so."""

import json
from pathlib import Path

import pytest
import torch
from workspaces import write_params

from tasks import artifacts, checkpoint, files, promote
from tasks.params import load
from tasks.tracking import Store

CLEAN = {"poses": "CLEAN", "pictures": "CLEAN", "pose_reuse": "COPIES"}


def _metrics(value: float, half: float = 0.1) -> dict[str, float]:
    name = promote.DISTANCE
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


@pytest.mark.parametrize(
    ("verdicts", "metrics", "champion", "promoted", "word"),
    [
        (CLEAN, _metrics(0.3), None, True, ""),
        (CLEAN, _metrics(0.3), _metrics(0.2), True, ""),  # worse, but within the intervals
        (CLEAN, _metrics(0.9), _metrics(0.2), False, "champion"),
        (CLEAN, {}, None, False, "could not be computed"),
        (CLEAN | {"pictures": "COPIES"}, _metrics(0.3), None, False, "pictures model copies"),
        (CLEAN | {"poses": "SPLIT-UNRELIABLE"}, _metrics(0.3), None, False, "split"),
        (CLEAN | {"poses": "TOO-FEW"}, _metrics(0.3), None, False, "too few"),
    ],
)
def test_the_gate(
    verdicts: dict[str, str],
    metrics: dict[str, float],
    champion: dict[str, float] | None,
    promoted: bool,
    word: str,
) -> None:
    decision = promote.decide(verdicts, metrics, champion)
    assert decision.promote is promoted
    assert word in " ".join(decision.reasons) and bool(decision.reasons) is not promoted


def _findings(root: Path, seed: int, value: float, verdicts: dict[str, str]) -> None:
    for model in artifacts.MODELS:
        checkpoint.save(artifacts.folder(root, model) / artifacts.FILE, {"w": torch.full((2,), float(seed))}, {})
    files.write_json(root / "reports/memorization/memorization.json", {"verdicts": verdicts})
    files.write_json(root / "reports/fidelity/fidelity.json", {"metrics": _metrics(value)})


def test_the_champion_changes_only_when_the_gate_opens(tmp_path: Path) -> None:
    params = load(write_params(tmp_path))
    store = Store(params.tracking, tmp_path)

    def run(seed: int, value: float, verdicts: dict[str, str] = CLEAN) -> tuple[str, bool]:
        _findings(tmp_path, seed, value, verdicts)
        promote.run(params, tmp_path)
        champion = store.champion("poses")
        assert champion is not None
        return champion[0], json.loads((tmp_path / "reports/promote/promote.json").read_bytes())["promote"]

    first, promoted = run(1, 0.3)
    assert promoted and first == artifacts.sha256(tmp_path, "poses")
    assert run(2, 5.0) == (first, False)  # much worse
    assert run(3, 0.1, CLEAN | {"poses": "COPIES"}) == (first, False)
    assert run(1, 0.3) == (first, True)  # again: neither a rival of itself nor a second version
    second, promoted = run(4, 0.25)
    assert promoted and second != first
    versions = store.client.search_model_versions("name = 'contrapposto-poses'")
    assert len(versions) == 4
    challenger = store.client.get_model_version_by_alias("contrapposto-poses", "challenger")
    assert challenger.tags["sha256"] == second
