"""A part in slices: whichever machine extracts which, the outputs are the same bytes."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from flows.remote_store import RemoteStore, fetch_slice
from flows.slices import Slice, work
from tasks import paths
from tasks.common import files
from tasks.common.blocks import MARK
from tasks.common.errors import DataError, UserError
from tasks.config.params import load, set_values
from tasks.extract import slices as extract_slice
from tasks.extract.slices import FINDINGS, absorb, combine, name
from tests.support.dvc_project import dvc
from tests.support.extraction import MODEL, draw_figures, extraction_params, outputs, run_extraction

WORLD = 3


@pytest.fixture(scope="module")
def heap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five figures, one of them twice, a text and labels."""
    folder = tmp_path_factory.mktemp("raw") / "heap"
    draw_figures(folder, 5)
    shutil.copy(next(folder.rglob("*.png")), folder / "zz.png")
    (folder / "text.jpg").write_text("no picture")
    (folder / "labels.csv").write_text("file,category\nzz.png,copies\n")
    return folder


@pytest.fixture(scope="module")
def machines(heap: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Workspaces that have done one slice each."""
    made = [tmp_path_factory.mktemp(f"machine{rank}") for rank in range(WORLD)]
    for rank, root in enumerate(made):
        extract_slice.run(extraction_params(heap), root, "heap", str(rank), str(WORLD))
    return made


def slice_of(machines: list[Path], rank: int, place: Path) -> Path:
    """A copy of a machine's slice, because `absorb` removes it."""
    copy = place / f"slice{rank}"
    shutil.copytree(machines[rank] / paths.SLICES / "heap" / name(rank, WORLD), copy)
    return copy


def test_combined_slices_give_the_outputs_of_one_machine(heap: Path, machines: list[Path], tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    run_extraction(heap, one)
    statistics = [absorb(extraction_params(heap), many, slice_of(machines, rank, tmp_path)) for rank in (2, 0, 1)]
    run_extraction(heap, many)
    assert outputs(many) == outputs(one)
    assert files.read_json(many / ".contrapposto/extract/heap.json")["extracted"] == 0
    summary = files.read_json(one / "data/poses/heap/summary.json")
    total = combine(statistics)
    assert total.files == summary["files"] == 7 and total.rejects == {"not_a_picture": 1}
    assert total.persons == summary["persons"] + 1  # the copy lies in another slice than the original


def test_a_missing_slice_is_extracted_by_the_stage(heap: Path, machines: list[Path], tmp_path: Path) -> None:
    absorb(extraction_params(heap), tmp_path, slice_of(machines, 0, tmp_path))
    run_extraction(heap, tmp_path)
    made = files.read_json(tmp_path / ".contrapposto/extract/heap.json")
    assert 0 < made["extracted"] < made["files"] - 1


def test_findings_of_other_parameters_are_ignored(heap: Path, machines: list[Path], tmp_path: Path) -> None:
    other = extraction_params(heap, min_confidence=0.4)
    absorb(other, tmp_path, slice_of(machines, 0, tmp_path))
    with sqlite3.connect(tmp_path / paths.FINDINGS) as db:
        assert not list(db.execute("select * from findings"))


@pytest.mark.parametrize("how", ["text", "key", "kind", "arrays"])
def test_malformed_findings_are_refused_completely(heap: Path, machines: list[Path], tmp_path: Path, how: str) -> None:
    folder = slice_of(machines, 1, tmp_path)
    if how == "text":
        (folder / FINDINGS).write_text("no database, but long enough to be looked at " * 100)
    else:
        wrong = {"key": "'../../x'", "kind": "'sculpture'", "arrays": "x'00'"}[how]
        with sqlite3.connect(folder / FINDINGS) as db:
            db.execute(f"update findings set {how} = {wrong} where key = (select max(key) from findings)")
    with pytest.raises(DataError, match=r"findings\.db holds no findings that can be read"):
        absorb(extraction_params(heap), tmp_path, folder)
    with sqlite3.connect(tmp_path / paths.FINDINGS) as db:
        assert not list(db.execute("select * from findings"))
    assert folder.exists()


def test_processes_that_extract_the_same_slice_do_not_disturb_each_other(heap: Path, tmp_path: Path) -> None:
    """A worker was killed, its process still runs, and the slice is run again on the same machine."""
    errors: list[BaseException] = []

    def again() -> None:
        try:
            extract_slice.run(extraction_params(heap), tmp_path, "heap", "0", "3")
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=again) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert absorb(extraction_params(heap), tmp_path / "home", tmp_path / paths.SLICES / "heap/0-of-3").files == 3


WRONG = [("heap", "3", "3"), ("heap", "-1", "3"), ("heap", "a", "3"), ("sky", "0", "1"), ("heap", "0", "1", "", "x")]


@pytest.mark.parametrize("wrong", WRONG)
def test_an_impossible_slice_raises_a_user_error(heap: Path, tmp_path: Path, wrong: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"RANK below WORLD|no part 'sky'|WORKERS"):
        extract_slice.run(extraction_params(heap), tmp_path, *wrong)


@pytest.fixture(params=["folder", "s3"])
def tracked(request: pytest.FixtureRequest, heap: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose part is only in its DVC remote."""
    (workspace / "data/raw").mkdir(parents=True, exist_ok=True)
    shutil.copytree(heap, workspace / "data/raw/heap")
    if request.param == "s3":
        server = ThreadedMotoServer(port=0)
        server.start()
        request.addfinalizer(server.stop)
        host, port = server.get_host_and_port()
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(variable, "testing")
        address = f"http://{host}:{port}"
        boto3.client("s3", endpoint_url=address, region_name="us-east-1").create_bucket(Bucket="poses")
        dvc(workspace, "remote", "add", "--local", "--default", "store", "s3://poses/here")
        dvc(workspace, "remote", "modify", "--local", "store", "endpointurl", address)
    dvc(workspace, "add", "data/raw/heap")
    dvc(workspace, "push", "data/raw/heap.dvc")
    shutil.rmtree(workspace / "data/raw/heap")
    shutil.rmtree(workspace / ".dvc/cache")
    return workspace


def test_files_are_fetched_from_the_remote_and_findings_stored_there(tracked: Path, heap: Path, tmp_path: Path) -> None:
    brought = []
    for rank in range(WORLD):
        fetch_slice(tracked, "data/raw/heap", rank, WORLD, tmp_path / str(rank))
        brought += [
            str(path.relative_to(tmp_path / str(rank))) for path in (tmp_path / str(rank)).rglob("*") if path.is_file()
        ]
        assert all((heap / name).read_bytes() == (tmp_path / str(rank) / name).read_bytes() for name in brought[-1:])
    there = {str(path.relative_to(heap)) for path in heap.rglob("*") if path.is_file()}
    assert sorted(brought) == sorted(path for path in there if not path.endswith((".json", ".csv")))
    done = tmp_path / "done"
    done.mkdir()
    (done / MARK).write_text("{}")
    (done / FINDINGS).write_bytes(bytes(range(256)) * 1000)
    store = RemoteStore(tracked)
    assert not store.has("heap/a/b/0-of-3", MARK)
    store.put("heap/a/b/0-of-3", done, MARK)
    assert RemoteStore(tracked).has("heap/a/b/0-of-3", MARK) and not store.has("heap/a/b/1-of-3", MARK)
    store.get("heap/a/b/0-of-3", (FINDINGS, MARK), tmp_path / "back")
    assert (tmp_path / "back" / FINDINGS).read_bytes() == (done / FINDINGS).read_bytes()


def test_workers_without_the_part_do_their_slices_from_the_remote(tracked: Path, heap: Path, tmp_path: Path) -> None:
    """The remote is all that they share with the machine that combines the slices."""
    raw = {"raw.folder": None, "raw.parts": {"heap": "data/raw/heap"}}
    set_values(tracked / "params.yaml", {**raw, "extract.model": str(MODEL), "extract.workers": 1})

    def run_here(task: str, *given: str) -> None:
        extract_slice.run(load(tracked / "params.yaml"), tracked, *given)

    params, home = extraction_params(heap), tmp_path / "home"
    for rank in range(WORLD):
        piece = Slice("extract@heap", rank, WORLD, extract_slice.digest(params, tracked), "0")
        assert work(tracked, piece, run_here) and not work(tracked, piece, run_here)
        RemoteStore(tracked).get(piece.stored, (FINDINGS, MARK), tmp_path / str(rank))
        absorb(params, home, tmp_path / str(rank))
    run_extraction(heap, home)
    run_extraction(heap, tmp_path / "alone")
    assert files.read_json(home / ".contrapposto/extract/heap.json")["extracted"] == 0
    assert outputs(home) == outputs(tmp_path / "alone")
    assert not (tracked / "data/raw/heap").exists() and not list((tracked / paths.SLICES).rglob("*.*"))


def test_a_part_unknown_to_dvc_raises_a_user_error(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no data/raw/sky, and DVC cannot fetch it: `dvc add data/raw/sky`"):
        fetch_slice(workspace, "data/raw/sky", 0, 1, tmp_path / "sky")
