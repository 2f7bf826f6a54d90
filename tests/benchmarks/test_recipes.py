"""The benchmark of recipes and samplers: equal evaluations, and tables that say what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import recipes
from diffusion_core.choices import SAMPLERS, Sampling
from diffusion_core.training_choices import RECIPES, Training, default_sampler
from tasks.plots import drawing


@pytest.mark.parametrize(("sampler", "steps"), [("unipc", 10), ("heun", 5), ("predictor_corrector", 5), ("ode", 0)])
def test_samplers_get_as_many_steps_as_their_evaluations_allow(sampler: str, steps: int) -> None:
    assert recipes.steps_for(sampler, 10) == steps


def test_every_recipe_is_sampled_in_a_way_that_goes_with_it() -> None:
    for name, (sampler, steps) in recipes.LONGER.items():
        Sampling(sampler or default_sampler(name), steps).check_recipe(Training(name))
    assert set(recipes.LONGER) <= set(RECIPES) and set(recipes.SAME.values()) <= set(SAMPLERS)
    assert all(RECIPES[name].threshold != "none" for name, _, _, _, changes in recipes.VARIANTS if changes)


def result(distance: float) -> dict[str, Any]:
    """What was measured of a recipe."""
    return {
        "frechet": distance, "low": distance - 0.1, "high": distance + 0.1, "kid": 0.012, "kid_low": 0.01, "kid_high": 0.014,
        "sampler": "unipc", "steps": 10, "evaluations": 10, "seconds": 5.0, "train_seconds": 40.0, "finite": True,
    }  # fmt: skip


def test_the_page_gets_the_tables_and_the_goal_names_what_misses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- recipes -->\nold\n<!-- end -->\nbetween\n<!-- pictures -->\n<!-- end -->\nafter\n")
    work = recipes.Workspace(tmp_path, 100, 1.0)
    for name in ("edm", "ddpm"):
        drawing.save_png(work.keep("poses", name) / "poses.png", drawing.draw_pose(np.zeros((33, 3))))
    done: dict[str, Any] = {"edm": result(0.3), "ddpm": result(2.0)}
    drawn = {("unipc", 10): result(0.3), ("unipc", 200): result(0.29)}
    code = recipes.report(work, {"noise": 13.0}, done, {}, drawn, {}, page)
    assert code == 1
    missed = json.loads(capsys.readouterr().out.splitlines()[-1])["missed"]
    assert missed == ["every recipe's distance is below a tenth of the noise reference (not: ddpm)"]
    lines = page.read_text().splitlines()
    assert (
        "| `edm` | 0.300 (0.200 to 0.400) | 12 (10 to 14) | `unipc` | 10 | 40 | 5.0 |" in lines and "old" not in lines
    )
    assert [lines[0], lines[-1]] == ["before", "after"]
    metrics = {"pictures.found": 0.5, "pictures.within_0.2": 0.25, "floor.found": 1.0}
    assert recipes.pose_cells(metrics, "pictures") == ["0.50", "0.25"]
    assert recipes.pose_cells(metrics, "floor") == ["1.00", ""]
