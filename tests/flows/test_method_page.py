"""A method that is added to a table of diffusion_core is accepted, listed, documented, tagged and on the model's card."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from diffusion_core import method_tables, training_choices
from flows import method_page
from flows.cli import main
from tasks import paths
from tasks.common.errors import UserError
from tasks.config.params import load
from tasks.registry import model_registry
from tasks.registry.tracking import Store
from tasks.train import stage as train
from tests.support.workspaces import write_params, write_shards

FAKE = dataclasses.replace(training_choices.RECIPES["edm"], title="Fake diffusion", paper="arXiv 9999.99999")


def test_the_page_has_the_tables_as_they_are() -> None:
    """`python -m flows.method_page` brings it up to date."""
    page = method_page.PAGE.read_text(encoding="utf-8")
    assert method_page.current(page) == page
    assert all(f"<!-- {table} -->" in page for table in method_tables.TABLES)


def test_a_new_recipe_is_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one_step = {"images": 32, "warmup_images": 0, "checkpoint_images": 32}
    write_params(tmp_path, poses__recipe="fake", **{f"poses__{key}": value for key, value in one_step.items()})
    with pytest.raises(UserError, match="no recipe 'fake'"):
        load(tmp_path / "params.yaml")
    monkeypatch.setitem(training_choices.RECIPES, "fake", FAKE)

    params = load(tmp_path / "params.yaml")
    assert params.poses.recipe == "fake"
    page = method_page.PAGE.read_text(encoding="utf-8")
    row = "| Fake diffusion, `fake` (p_mean -1.2, p_std 1.2) | `presets.edm()` | arXiv 9999.99999 |"
    assert row not in page and row in method_page.current(page)
    assert main(["methods", "fake"]) == 0
    assert "9999.99999" in capsys.readouterr().out

    write_shards(tmp_path)
    train.run(params, tmp_path, "poses")
    [run] = Store(params.tracking, tmp_path).trainings()
    assert run.data.tags["contrapposto.recipe"] == "Fake diffusion (fake, arXiv 9999.99999)"
    assert run.info.run_name.startswith("poses fake ")
    card = model_registry.card_of(paths.model_folder(tmp_path, "poses"), "CLEAN", {}, [])
    assert "| recipe | Fake diffusion (fake, arXiv 9999.99999) |" in card
