"""Runs side by side: intervals, differing parameters, and the ways to name a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.common import files
from tasks.common.errors import UserError
from tasks.config.params import Params, load
from tasks.registry import compare, model_registry
from tasks.registry.tracking import Store
from tests.support.workspaces import write_params


def test_intervals_come_from_the_low_and_high_metrics() -> None:
    numbers = compare.numbers({"a": 1.0, "a_low": 0.5, "a_high": 2.0, "b": 3.0, "c_low": 4.0})
    assert numbers == {"a": (1.0, 0.5, 2.0), "b": (3.0, 3.0, 3.0), "c_low": (4.0, 4.0, 4.0)}


def _entry(name: str, **numbers: tuple[float, float, float]) -> compare.Entry:
    return compare.Entry("id", name, "FINISHED", numbers, {}, {})


def test_differences_are_beyond_intervals_that_do_not_overlap() -> None:
    low, middle, high = (_entry(name, d=(v, v - 1, v + 1), e=(v, v, v)) for name, v in (("a", 0), ("b", 1.5), ("c", 3)))
    assert compare.beyond([high, middle, low]) == ["d: a is below c."]
    assert compare.beyond([low, middle]) == []
    assert compare.beyond([low, _entry("x"), _entry("z", d=(9, 8, 10))]) == ["d: a is below z."]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Params, Path, list[str]]:
    """A store with two pipeline runs, of which the second is the champion's."""
    root = tmp_path_factory.mktemp("store")
    params = load(write_params(root))
    store = Store(params.tracking, root)
    runs = []
    for width, value in ((64, 0.4), (96, 0.3)):
        run = store.start(f"pipeline width {width}", {"contrapposto.verdict.poses": "CLEAN"})
        run.params({"poses": {"width": width, "depth": 4}})
        name = "fidelity.poses.kernel_pose_distance"
        run.log([(name, value, 0), (f"{name}_low", value - 0.05, 0), (f"{name}_high", value + 0.05, 0)])
        run.log([("training.poses.loss", value / 2, 0)])
        run.finish("FINISHED")
        runs.append(run.id)
    client = store.client
    client.create_registered_model(model_registry.name("poses"))
    version = client.create_model_version(model_registry.name("poses"), f"runs:/{runs[1]}/model", runs[1])
    client.set_model_version_tag(model_registry.name("poses"), version.version, "judged_in", runs[1])
    client.set_registered_model_alias(model_registry.name("poses"), "champion", version.version)
    return params, root, runs


def test_the_table_and_the_figure(made: tuple[Params, Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    params, root, runs = made
    compare.run(params, root, runs[0], "champion")
    lines = (root / "reports/compare/compare.md").read_text().splitlines()
    assert lines[0].split(" | ")[1:] == [f"pipeline width 64 {runs[0][:6]}", f"pipeline width 96 {runs[1][:6]} |"]
    assert "| poses.width | 64 | 96 |" in lines and not any("poses.depth" in line for line in lines)
    assert "| fidelity.poses.kernel_pose_distance | 0.4 [0.35, 0.45] | 0.3 [0.25, 0.35] |" in lines
    assert "| memorization, poses | CLEAN | CLEAN |" in lines
    assert (root / "reports/compare/compare.png").stat().st_size > 2000
    assert files.read_json(root / "reports/compare/compare.json")[1]["run"] == runs[1]
    assert "kernel_pose_distance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "two or more runs"),
        (("champion", "challenger"), "no challenger yet"),
        (("champion", "nonsense"), r"'nonsense' means no run; there are .* \(pipeline width 96\)"),
    ],
)
def test_unknown_runs_are_a_user_error(
    made: tuple[Params, Path, list[str]], words: tuple[str, ...], sentence: str
) -> None:
    params, root, _ = made
    with pytest.raises(UserError, match=sentence):
        compare.run(params, root, *words)
