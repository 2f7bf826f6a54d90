"""Slices through an engine: the bytes of the plain stage, whatever fails on the way."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from flows import engines, on_prefect, on_ray, slices
from flows.slices import Slice
from flows.task_process import TaskProcess
from tasks import paths
from tasks.__main__ import body
from tasks.common import files
from tasks.common.errors import UserError
from tasks.config.params import Params, load
from tests.support.extraction import MODEL, draw_figures, outputs, run_extraction

WORLD = 3


@pytest.fixture(scope="module")
def heap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five figures, one of them twice."""
    folder = tmp_path_factory.mktemp("raw") / "heap"
    draw_figures(folder, 5)
    shutil.copy(next(folder.rglob("*.png")), folder / "zz.png")
    return folder


@pytest.fixture(scope="module")
def expected(heap: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The outputs of the plain stage."""
    root = tmp_path_factory.mktemp("alone")
    run_extraction(heap, root)
    return outputs(root)


def _params(root: Path, heap: Path, **engine: object) -> Params:
    """Write the workspace's params.yaml, with the part and this engine."""
    about = load(root / "params.yaml").model_dump()
    about["raw"] = {"folder": None, "parts": {"heap": str(heap)}}
    about["extract"] |= {"model": str(MODEL), "workers": 1}
    about["engine"] = {"slices": WORLD, **engine}
    (root / "params.yaml").write_text(json.dumps(about))
    return load(root / "params.yaml")


def _run_here(root: Path) -> slices.RunTask:
    """Runs the tasks of slices in this process, which saves the seconds of starting another."""
    return lambda task, *arguments: body(task)(load(root / "params.yaml"), root, *arguments)


class Faulty:
    """An engine that runs slices, and calls `fault` before each; what it raises is that slice's failure."""

    def __init__(self, fault: Callable[[Slice], None]) -> None:
        self.launched: list[int] = []
        self.fault = fault

    def run(self, root: Path, pieces: Sequence[Slice]) -> Mapping[Slice, str]:
        failures = {}
        for piece in pieces:
            self.launched.append(piece.rank)
            try:
                self.fault(piece)
                slices.work(root, piece, _run_here(root))
            except (UserError, RuntimeError) as error:
                failures[piece] = str(error)
        return failures


def _extract(params: Params, root: Path, engine: engines.Engine, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engines, "chosen", lambda params: engine)
    engines.extract(params, root, ["heap"])


def test_killed_slices_are_run_again_and_the_bytes_are_the_same(
    heap: Path, expected: dict[str, bytes], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, killed = _params(workspace, heap), []

    def kill_each_once(piece: Slice) -> None:
        if piece.rank == 0:  # a node that was given up finished nevertheless
            slices.work(workspace, piece, _run_here(workspace))
        elif piece.rank not in killed:
            killed.append(piece.rank)
            raise RuntimeError("the worker was killed")

    engine = Faulty(kill_each_once)
    _extract(params, workspace, engine, monkeypatch)
    assert engine.launched == [0, 1, 2, 1, 2]
    run_extraction(heap, workspace)
    assert outputs(workspace) == expected
    assert files.read_json(workspace / ".contrapposto/extract/heap.json")["extracted"] == 0
    assert not list((workspace / paths.SLICES).rglob("*.*"))  # `forget` deletes findings from the cache only


def test_a_slice_that_keeps_failing_is_named_and_only_it_is_launched_by_the_next_run(
    heap: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = _params(workspace, heap)

    def fail(piece: Slice) -> None:
        if piece.rank == 1:
            raise UserError("this one never works")

    engine = Faulty(fail)
    with pytest.raises(UserError, match="slice extract@heap 1 of 3: this one never works"):
        _extract(params, workspace, engine, monkeypatch)
    assert engine.launched == [0, 1, 2, 1]
    engine = Faulty(lambda piece: None)
    _extract(params, workspace, engine, monkeypatch)
    assert engine.launched == [1]


def test_local_runs_slices_in_a_process_of_this_machine(
    heap: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(TaskProcess, "run", lambda process, *arguments: calls.append(arguments) or _stop(calls))
    with pytest.raises(UserError, match="3 of 3 slices failed"):
        engines.extract(_params(workspace, heap), workspace, ["heap"])
    assert [call[:4] for call in calls] == [("extract_slice", "heap", str(rank), "3") for rank in range(WORLD)]


def _stop(calls: list) -> None:
    raise UserError("stopped")


def test_the_number_of_slices_follows_the_number_of_files(
    heap: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Faulty(lambda piece: _stop([]))
    monkeypatch.setattr(engines, "chosen", lambda params: engine)
    for per_slice, number in [(1000, 1), (5, 3)]:  # eleven files, with the joints of the figures
        monkeypatch.setattr(engines, "FILES_PER_SLICE", per_slice)
        engine.launched.clear()
        with pytest.raises(UserError):
            engines.extract(_params(workspace, heap, slices=0), workspace, ["heap"])
        assert engine.launched == list(range(number))


def test_the_chosen_engine(heap: Path, workspace: Path) -> None:
    assert isinstance(engines.chosen(_params(workspace, heap)), engines.Local)
    assert engines.chosen(_params(workspace, heap, kind="prefect", runs=4)) == on_prefect.WorkPool(4)
    cluster = engines.chosen(_params(workspace, heap, kind="ray", address="ray://head:10001"))
    assert cluster == on_ray.RayCluster("ray://head:10001", 1)
    assert not engines.cuts(_params(workspace, heap, slices=0), "extract")
    assert engines.cuts(_params(workspace, heap), "extract")
    assert engines.cuts(_params(workspace, heap, kind="ray", slices=0), "extract")
    assert not engines.cuts(_params(workspace, heap, stages=["extract"]), "sample_poses")


@pytest.mark.parametrize(
    "engine", [{"kind": "dask"}, {"address": "auto"}, {"kind": "ray", "address": "head"}, {"kind": "ray", "runs": 2}]
)
def test_impossible_engines_are_refused(heap: Path, workspace: Path, engine: dict[str, str]) -> None:
    with pytest.raises(UserError, match="engine"):
        _params(workspace, heap, **engine)


def test_without_ray_the_engine_says_how_to_install_it(
    heap: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    with pytest.raises(UserError, match=r"engine\.kind: ray needs Ray"):
        engines.extract(_params(workspace, heap, kind="ray"), workspace, ["heap"])


def test_a_worker_with_other_parameters_refuses(heap: Path, workspace: Path) -> None:
    _params(workspace, heap)
    with pytest.raises(UserError, match="would get other results"):
        slices.work(workspace, Slice("extract@heap", 0, 2, "0" * 16, "0" * 16), _run_here(workspace))


def test_flow_runs_share_slices_of_one_part_each() -> None:
    pieces = [Slice(part, rank, world, "d", "v") for part, world in (("a", 5), ("b", 1)) for rank in range(world)]
    shared = on_prefect.shares(pieces, 2)
    assert [[(piece.stage, piece.rank) for piece in share] for share in shared] == [
        [("a", 0), ("a", 2), ("a", 4)], [("a", 1), ("a", 3)], [("b", 0)],
    ]  # fmt: skip
