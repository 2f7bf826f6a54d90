"""Promotion: the gate, the comparison with the champion, the aliases in the registry, and the rollback."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks import paths
from tasks.common import files
from tasks.common.errors import DataError, UserError
from tasks.config.params import load
from tasks.dataset.shards import ShardDataset
from tasks.registry import model_comparison, model_registry, promote, rollback
from tasks.registry.tracking import Store
from tasks.sample import stage as sample
from tests.support.workspaces import TINY_UPSCALER, write_params, write_shards, write_untrained, write_upscaler

CLEAN = {"poses": "CLEAN", "pictures": "CLEAN", "pose_reuse": "COPIES"}
METRICS = {promote.DISTANCE: 0.3, f"{promote.DISTANCE}_low": 0.2, f"{promote.DISTANCE}_high": 0.4}


@pytest.mark.parametrize(
    ("verdicts", "metrics", "objections", "promoted", "word"),
    [
        (CLEAN, METRICS, [], True, ""),
        (CLEAN, METRICS, ["neither model is better."], False, "Neither"),
        (CLEAN, {}, [], False, "could not be computed"),
        (CLEAN | {"pictures": "COPIES"}, METRICS, [], False, "pictures model copies"),
        (CLEAN | {"poses": "SPLIT-UNRELIABLE"}, METRICS, [], False, "split"),
        (CLEAN | {"poses": "TOO-FEW"}, METRICS, [], False, "too few"),
        (CLEAN | {"poses": "LOW-POWER"}, METRICS, [], False, "up to 100.0%"),  # no bound at all
    ],
)
def test_the_gate(
    verdicts: dict[str, str], metrics: dict[str, float], objections: list[str], promoted: bool, word: str
) -> None:
    decision = promote.decide(verdicts, {}, 0.05, metrics, objections)
    assert decision.promote is promoted
    assert word in " ".join(decision.reasons) and bool(decision.reasons) is not promoted


def test_low_power_is_promoted_with_a_warning_if_few_copies_can_have_been_missed() -> None:
    verdicts = CLEAN | {"pictures": "LOW-POWER"}
    few = promote.decide(verdicts, {"pictures": 0.04}, 0.05, METRICS, [])
    assert few.promote and not few.reasons
    assert len(few.warnings) == 1 and "pictures" in few.warnings[0] and "4.0%" in few.warnings[0]
    many = promote.decide(verdicts, {"pictures": 0.06}, 0.05, METRICS, [])
    assert not many.promote and not many.warnings and "6.0%" in many.reasons[0]
    assert promote.decide(CLEAN, {"pictures": 0.9}, 0.05, METRICS, []).promote  # CLEAN needs no bound


class Registry:
    """A workspace in which untrained models of chosen quality are registered: the worse ones are shifted."""

    def __init__(self, root: Path) -> None:
        self.root, self.params = root, load(write_params(root))
        self.store = Store(self.params.tracking, root)
        write_shards(root)
        self.model("poses", 0.5)
        self.model("pictures", 0.0)

    def model(self, name: str, shift: float, images: int = 0) -> None:
        """Save an untrained model, all of its samples moved by `shift`, and its samples; `images` changes the file only."""
        write_untrained(self.root, self.params, name, shift, images)
        sample.run(self.params, self.root, name)

    def promote(self, verdicts: dict[str, str] = CLEAN) -> dict[str, Any]:
        """Run the stage and return what it wrote."""
        files.write_json(self.root / "reports/memorization/memorization.json", {"verdicts": verdicts})
        files.write_json(self.root / "reports/fidelity/fidelity.json", {"metrics": METRICS})
        promote.run(self.params, self.root)
        return files.read_json(self.root / "reports/promote/promote.json")

    def alias(self, alias: str, model: str = "poses") -> str | None:
        """The number of the version with an alias."""
        registered = model_registry.version(self.store, model, alias)
        return None if registered is None else str(registered.version)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(tmp_path_factory.mktemp("registry"))


def test_a_better_challenger_replaces_the_champion_and_a_rollback_restores_it(made: Registry) -> None:
    with pytest.raises(UserError, match="There is no champion of the poses model yet"):
        model_registry.fetch(made.store, made.root, "poses", "champion")
    first = made.promote()
    assert first == {"promote": True, "reasons": [], "warnings": []}  # nobody to beat
    assert (made.alias("champion"), made.alias("previous")) == ("1", None)
    with pytest.raises(UserError, match="no previous champion"):
        rollback.run(made.params, made.root)

    made.model("poses", 0.0)
    copied = made.promote(CLEAN | {"poses": "COPIES"})
    assert not copied["promote"] and copied["reasons"] == ["The poses model copies its training data."]
    assert (made.alias("champion"), made.alias("challenger")) == ("1", "2")

    better = made.promote()
    assert better["promote"], better
    assert (made.alias("champion"), made.alias("previous"), made.alias("challenger")) == ("2", "1", "2")
    (whole,) = [
        comparison for comparison in better["model_comparison"]["comparisons"] if comparison["category"] == "all"
    ]
    assert whole["high"] < 0 and whole["difference"] == pytest.approx(whole["challenger"] - whole["champion"])
    assert better["model_comparison"]["same"] == ["pictures"]
    assert (made.root / "reports/promote/model_comparison.png").is_file()

    assert made.promote() == {
        "promote": True,
        "reasons": [],
        "warnings": [],
    }  # again: no rival of itself, no further version
    assert (made.alias("champion"), made.alias("previous")) == ("2", "1")

    made.model("poses", 0.3)
    worse = made.promote()
    assert not worse["promote"] and worse["reasons"][0].startswith("The poses model is worse than the champion beyond")
    assert (made.alias("champion"), made.alias("challenger")) == ("2", "3")

    made.model("poses", 0.0, images=1)  # another file that draws the same
    as_good = made.promote()
    assert not as_good["promote"] and "Neither model is better" in as_good["reasons"][0]

    rollback.run(made.params, made.root)
    assert (made.alias("champion"), made.alias("previous")) == ("1", "2")
    versions = made.store.client.search_model_versions("name = 'contrapposto-poses'")
    assert len(versions) == 4
    champion = made.store.client.get_model_version("contrapposto-poses", "2")
    assert "# Contrapposto, poses" in champion.description and "CLEAN" in champion.description


def test_an_upscaler_is_promoted_with_the_pictures_and_leaves_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Registry(tmp_path)
    assert made.promote()["promote"] and made.alias("champion", "upscaler") is None
    write_params(tmp_path, shard__size=32, upscaler=TINY_UPSCALER)
    write_shards(tmp_path, size=32)
    made.params = load(tmp_path / paths.PARAMS)
    write_upscaler(tmp_path, made.params)
    made.model("pictures", 0.0, images=1)
    assert ShardDataset(paths.sample_folder(tmp_path, "pictures"), "samples").picture(0).shape == (32, 32, 3)
    compared = made.promote()["model_comparison"]
    assert compared["same"] == ["poses"] and "pictures" in {entry["model"] for entry in compared["comparisons"]}
    monkeypatch.setattr(model_comparison, "run", lambda *_: None)  # an untrained upscaler does not beat anybody
    assert made.promote()["promote"]
    assert (made.alias("champion", "upscaler"), made.alias("previous", "upscaler")) == ("1", None)
    assert set(model_registry.fetch_all(made.store, tmp_path, "champion")) == {"poses", "pictures", "upscaler"}

    rollback.run(made.params, tmp_path)  # to the champions without an upscaler
    assert (made.alias("champion", "upscaler"), made.alias("previous", "upscaler")) == (None, "1")
    assert set(model_registry.fetch_all(made.store, tmp_path, "champion")) == set(paths.MODELS)
    rollback.run(made.params, tmp_path)
    assert (made.alias("champion", "upscaler"), made.alias("challenger", "upscaler")) == ("1", "1")

    shutil.rmtree(
        paths.model_folder(tmp_path, "upscaler")
    )  # switched off again: it is no longer part of the challenger
    made.promote()
    assert made.alias("challenger", "upscaler") is None


def test_a_category_that_has_become_worse_is_named() -> None:
    from tasks.registry.model_comparison import CategoryComparison, ModelComparison

    better = CategoryComparison("poses", "all", 0.1, 0.2, -0.1, -0.15, -0.05)
    assert ModelComparison([better], {}, ["pictures"]).objections(0.5) == []
    a_little = CategoryComparison("poses", "run", 0.13, 0.1, 0.03, 0.01, 0.05)
    assert ModelComparison([better, a_little], {}, []).objections(0.5) == []
    much = CategoryComparison("poses", "run", 0.3, 0.1, 0.2, 0.1, 0.3)
    (objection,) = ModelComparison([better, much], {}, []).objections(0.5)
    assert "in the category run the poses model has become worse by more than 50%: from 0.1 to 0.3." == objection
    pictures = CategoryComparison("pictures", "all", 0.3, 0.1, 0.2, 0.1, 0.3)
    assert len(ModelComparison([better, pictures], {}, []).objections(0.5)) == 1


def test_a_damaged_registered_file_is_refused(made: Registry, tmp_path: Path) -> None:
    registered = model_registry.version(made.store, "poses", "challenger")
    assert registered is not None
    for path in made.root.glob(f"mlruns/{registered.run_id}/artifacts/model/{paths.MODEL_FILE}"):
        path.write_bytes(path.read_bytes()[:-4] + b"oops")
    with pytest.raises(DataError, match="is damaged: sha256 mismatch"):
        model_registry.fetch(made.store, tmp_path, "poses", "challenger")
    assert not list((tmp_path / ".contrapposto/models").glob("[!.]*[!p]"))
