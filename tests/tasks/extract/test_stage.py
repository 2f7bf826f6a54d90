"""The extract stage: no file is lost, the outputs depend on the pictures alone, and failures are one sentence."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from tasks.common.errors import DataError, UserError
from tasks.extract import pose_bundle
from tasks.extract import stage as extract
from tasks.extract.findings import Reason
from tasks.extract.poses_table import read_poses, read_rejects
from tasks.extract.scan import scan
from tasks.synthetic import stage as mannequin
from tests.support.extraction import MODEL, draw_figures, outputs, png_bomb, run_extraction, write_video
from tests.support.project import PROJECT

FIGURES = 6


@pytest.fixture(scope="module")
def heap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of figures with hostile files among them."""
    pose_bundle.ensure(MODEL)
    folder = tmp_path_factory.mktemp("raw") / "heap"
    draw_figures(folder, FIGURES)
    figure = next(iter(sorted(folder.rglob("*.png"))))
    bad = folder / "bad"
    bad.mkdir()
    (bad / "empty.jpg").touch()
    (bad / "cut.png").write_bytes(figure.read_bytes()[:3000])
    (bad / "text.jpg").write_text("no picture")
    (bad / "bomb.png").write_bytes(png_bomb())
    (bad / "loop").symlink_to(folder)
    (bad / "dangling.png").symlink_to(bad / "gone.png")
    Image.new("RGB", (300, 200), "grey").save(bad / "wall.png")
    Image.new("RGB", (300, 20), "grey").save(bad / "strip.png")
    shutil.copy(figure, folder / "zz copy of the first.png")
    shutil.copy(figure, folder / "zzz copy of the first.png")
    Image.open(figure).save(bad / "line\nbreak é.bmp")  # other bytes, so another picture
    (bad / ("n" * 251 + ".jpg")).write_bytes((bad / "line\nbreak é.bmp").read_bytes()[:-1] + b"\x7f")
    return folder


@pytest.fixture(scope="module")
def extracted(heap: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("one")
    run_extraction(heap, root)
    return root


def test_every_file_is_either_a_row_or_a_reject(heap: Path, extracted: Path) -> None:
    poses, rejects = read_poses(extracted / "data/poses/heap"), read_rejects(extracted / "data/poses/heap")
    sources = [source.name for source in scan(heap).sources]
    kept, refused = set(poses.source), [reject.source for reject in rejects]
    assert sorted([*kept, *refused]) == sources
    assert len(set(poses.key)) == len(poses)
    assert list(poses.source) == sorted(poses.source) and refused == sorted(refused)
    reasons = {reject.source: reject.reason for reject in rejects}
    assert reasons == {
        "bad/bomb.png": Reason.TOO_LARGE,
        "bad/cut.png": Reason.DAMAGED,
        "bad/dangling.png": Reason.UNREADABLE,
        "bad/empty.jpg": Reason.DAMAGED,
        "bad/loop": Reason.UNREADABLE,
        "bad/strip.png": Reason.TOO_SMALL,
        "bad/text.jpg": Reason.NOT_A_PICTURE,
        "bad/wall.png": Reason.NO_PERSON,
        "zz copy of the first.png": Reason.DUPLICATE,
        "zzz copy of the first.png": Reason.DUPLICATE,
    }
    keys = {reject.source: reject.key for reject in rejects}
    assert keys["bad/loop"] is None and keys["bad/wall.png"] is not None
    assert keys["zz copy of the first.png"] in poses.key


def test_the_summary_adds_up(extracted: Path) -> None:
    summary = json.loads(outputs(extracted)["summary.json"])
    assert summary["files"] == summary["files_with_person"] + sum(summary["rejects"].values())
    assert summary["persons"] == FIGURES + 2
    assert summary["rejects"]["duplicate"] == 2


def test_landmarks_lie_on_the_true_joints(extracted: Path) -> None:
    error = json.loads(outputs(extracted)["summary.json"])["joint_error"]
    assert error["persons"] == FIGURES
    assert error["torsos_median"] < 0.1 and error["within_0.5"] > 0.9
    assert error["swapped"] < 0.3 and error["metres_mean"] < 0.25


def test_the_bytes_do_not_depend_on_the_number_of_workers(heap: Path, extracted: Path, tmp_path: Path) -> None:
    run_extraction(heap, tmp_path, workers=2)
    assert outputs(tmp_path) == outputs(extracted)


def test_a_killed_run_continues_and_gives_the_same_bytes(heap: Path, extracted: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.support.extraction import run_extraction;"
        f"run_extraction(Path({str(heap)!r}), Path({str(tmp_path)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    progress = ""
    while not re.search(r"\b[1-9]\d*/\d+ \[", progress):  # the first pictures are done
        assert process.poll() is None
        progress += process.stderr.read(1)
    process.kill()
    process.communicate()
    assert not (tmp_path / "data/poses/heap").exists()
    run_extraction(heap, tmp_path)
    assert outputs(tmp_path) == outputs(extracted)


@pytest.mark.slow
@pytest.mark.parametrize(("pictures", "times"), [(40, 20)])
def test_runs_killed_at_random_points_end_with_the_same_bytes(tmp_path: Path, pictures: int, times: int) -> None:
    draw_figures(tmp_path / "raw/heap", pictures)
    write_video(
        tmp_path / "raw/heap/clip.mp4", [mannequin.picture(seed=0, index=i // 10, size=192).image for i in range(60)]
    )
    code = (
        "from pathlib import Path; from tests.support.extraction import run_extraction;"
        f"run_extraction(Path({str(tmp_path / 'raw/heap')!r}), Path(__import__('sys').argv[1]), workers=2)"
    )

    def start(root: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", code, str(root)]
        return subprocess.Popen(command, cwd=PROJECT, start_new_session=True)

    began = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    seconds = time.monotonic() - began
    rng, kills, whole = random.Random(0), 0, 0
    root = tmp_path / "killed0"
    while kills < times:
        process = start(root)
        try:
            process.wait(rng.uniform(0.2, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            (os.killpg if rng.random() < 0.5 else os.kill)(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        else:  # it was done before: from the beginning again
            assert outputs(root) == outputs(tmp_path / "whole")
            whole += 1
            root = tmp_path / f"killed{whole}"
    assert start(root).wait() == 0
    assert outputs(root) == outputs(tmp_path / "whole")


def timing(root: Path, part: str = "heap") -> Any:
    return json.loads((root / f".contrapposto/extract/{part}.json").read_text())


def test_known_files_are_not_extracted_again(heap: Path, extracted: Path, tmp_path: Path) -> None:
    """Of a part with the same pictures under other names and one new picture, only the new one is extracted."""
    shutil.copytree(extracted / ".contrapposto", tmp_path / ".contrapposto")
    part = tmp_path / "raw/again"
    shutil.copytree(heap / "bad", part / "renamed", symlinks=True)
    drawn = mannequin.picture(seed=0, index=FIGURES, size=192)
    Image.fromarray(drawn.image).save(part / "new.png")
    run_extraction(part, tmp_path)
    assert timing(tmp_path, "again")["extracted"] == 1
    poses = read_poses(tmp_path / "data/poses/again")
    old = read_poses(extracted / "data/poses/heap")
    assert poses.source[0] == "new.png" and set(poses.category) == {"again", "renamed"}
    for i, key in enumerate(poses.key[1:], start=1):
        at = old.key.index(key)
        assert np.array_equal(poses.landmarks[i], old.landmarks[at]) and poses.sharpness[i] == old.sharpness[at]
    run_extraction(part, tmp_path, max_people=1)
    assert timing(tmp_path, "again")["extracted"] > 1, "other parameters need other findings"


def test_unreadable_files_do_not_count_as_known(heap: Path, extracted: Path, tmp_path: Path) -> None:
    shutil.copytree(extracted / ".contrapposto", tmp_path / ".contrapposto")
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    extract.log.addHandler(handler)
    extract.log.setLevel(logging.INFO)
    try:
        run_extraction(heap, tmp_path)
    finally:
        extract.log.removeHandler(handler)
        extract.log.setLevel(logging.NOTSET)
    files = len(scan(heap).sources)
    assert f"{files - 2} known" in messages[-1]  # two are links
    assert any("categories (its folders)" in message for message in messages)


def test_a_damaged_cache_raises_a_data_error(heap: Path, tmp_path: Path) -> None:
    store = tmp_path / ".contrapposto/extract/findings.db"
    store.parent.mkdir(parents=True)
    store.write_bytes(b"no database" * 1000)
    with pytest.raises(DataError, match=r"findings\.db is damaged .* delete it"):
        run_extraction(heap, tmp_path)


def test_exif_orientation_gives_the_landmarks_of_the_upright_picture(tmp_path: Path) -> None:
    image = mannequin.picture(seed=0, index=0, size=192).image[:, 16:-8]
    (tmp_path / "raw").mkdir()
    Image.fromarray(image).save(tmp_path / "raw/upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(image)).save(tmp_path / "raw/lying.png", exif=exif)
    run_extraction(tmp_path / "raw", tmp_path)
    poses = read_poses(tmp_path / "data/poses/raw")
    assert len(poses) == 2
    assert poses.size.tolist() == [[168, 192], [168, 192]]
    assert np.array_equal(poses.landmarks[0], poses.landmarks[1])
    assert np.array_equal(poses.fingerprint[0], poses.fingerprint[1])


def test_a_part_without_persons_gives_an_empty_table_and_rejects(tmp_path: Path) -> None:
    folder = tmp_path / "walls"
    folder.mkdir()
    for grey in (60, 120, 180):
        Image.new("RGB", (100, 100), (grey,) * 3).save(folder / f"{grey}.png")
    (folder / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    run_extraction(folder, tmp_path)
    assert len(read_poses(tmp_path / "data/poses/walls")) == 0
    rejects = read_rejects(tmp_path / "data/poses/walls")
    assert [reject.source for reject in rejects] == ["120.png", "180.png", "60.png", "cut.jpg"]


def test_a_missing_model_raises_a_user_error(heap: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.task does not exist"):
        run_extraction(heap, tmp_path, model=str(tmp_path / "gone.task"))


def test_another_model_than_the_pinned_one_raises_a_user_error(heap: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sha256 mismatch"):
        run_extraction(heap, tmp_path, model_sha256="0" * 64)


@pytest.mark.slow
def test_killed_workers_lose_no_picture(tmp_path: Path) -> None:
    heap = tmp_path / "raw/heap"
    draw_figures(heap, 80)  # enough that the workers are still busy when they are killed
    run_extraction(heap, tmp_path / "whole")
    code = (
        "from pathlib import Path; from tests.support.extraction import run_extraction\n"
        f"run_extraction(Path({str(heap)!r}), Path({str(tmp_path)!r}), workers=2)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    parent = psutil.Process(process.pid)
    assert process.stderr is not None
    progress = ""
    while not re.search(r"\b[1-9]\d*/\d+ \[", progress):  # both workers are about to work
        assert process.poll() is None
        progress += process.stderr.read(1)
    own = parent.children()  # those that Python has for itself; on Linux workers are children of one of them
    below = [process for process in parent.children(recursive=True) if process not in own]
    workers = below or [process for process in own if "spawn_main" in " ".join(process.cmdline())]
    assert len(workers) == 2
    for worker in workers:
        worker.kill()
    assert process.communicate() and process.returncode == 0
    assert outputs(tmp_path) == outputs(tmp_path / "whole")


def test_the_preloaded_module_imports_the_landmarker() -> None:
    """Python ignores a missing module here: every worker would just start more slowly."""
    code = f"import sys, {extract.PRELOAD}; assert 'tasks.extract.landmarker' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_file_that_crashes_its_decoder_is_refused_and_the_others_kept(tmp_path: Path) -> None:
    """A worker that decodes this file gets SIGSEGV, as from a fault in native code."""
    draw_figures(tmp_path / "raw/heap", 3)
    Image.new("RGB", (9000, 9000)).save(tmp_path / "raw/heap/fatal.png")  # a second to decode
    code = (
        "from pathlib import Path; from tests.support.extraction import run_extraction\n"
        f"run_extraction(Path({str(tmp_path / 'raw/heap')!r}), Path({str(tmp_path)!r}), workers=2)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT)
    crashed = set()
    while process.poll() is None:
        for worker in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            try:
                decodes = worker.memory_info().rss > 4e8 and any("fatal" in file.path for file in worker.open_files())
                if worker.pid not in crashed and decodes:
                    worker.send_signal(signal.SIGSEGV)
                    crashed.add(worker.pid)
            except psutil.Error:
                continue
    assert process.returncode == 0 and len(crashed) == 2
    (reject,) = read_rejects(tmp_path / "data/poses/heap")
    assert (reject.source, reject.reason) == ("fatal.png", Reason.CRASHED)
    assert "exit code -11" in reject.detail
    assert len(read_poses(tmp_path / "data/poses/heap")) == 3


@pytest.mark.slow
def test_a_file_that_takes_too_long_is_refused_and_tried_again_by_the_next_run(tmp_path: Path) -> None:
    draw_figures(tmp_path / "raw/slow", 1)
    run_extraction(tmp_path / "raw/slow", tmp_path, time_limit=1e-3)
    assert [reject.reason for reject in read_rejects(tmp_path / "data/poses/slow")] == [Reason.TOO_SLOW]
    run_extraction(tmp_path / "raw/slow", tmp_path)
    assert len(read_poses(tmp_path / "data/poses/slow")) == 1


@pytest.mark.skipif("CONTRAPPOSTO_PHOTOS" not in os.environ, reason="CONTRAPPOSTO_PHOTOS names no folder of photos")
def test_real_photos(tmp_path: Path) -> None:
    photos = Path(os.environ["CONTRAPPOSTO_PHOTOS"])
    run_extraction(photos / "people/tiny_coco/val2017", tmp_path, workers=0)
    summary = json.loads((tmp_path / "data/poses/val2017/summary.json").read_text())
    assert summary["files"] == 50
    assert summary["persons"] >= 8
    assert summary["rejects"] == {"no_person": 50 - summary["files_with_person"]}
    run_extraction(photos / "drawings", tmp_path, workers=0)
    summary = json.loads((tmp_path / "data/poses/drawings/summary.json").read_text())
    assert summary["files"] == 150 and summary["persons"] == 0
