"""The extract stage: no file is lost, the bytes depend on the pictures alone, and failures are one sentence."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import imagehash
import numpy as np
import psutil
import pytest
from PIL import Image

from tasks import extract, mannequin, params
from tasks.errors import DataError, UserError
from tasks.extraction import pose_bundle
from tasks.extraction.ingest import scan
from tasks.extraction.poses_table import REJECTS, Reason, read_poses, read_rejects
from tasks.params import Params

ROOT = Path(__file__).parents[1]
FIGURES = 6


def choose(folder: Path, **extraction) -> Params:
    """The parameters of the repository with another folder of pictures."""
    values = params.load(ROOT / "params.yaml").model_dump()
    values["raw"]["folder"] = str(folder)
    values["extract"] |= {"model": str(ROOT / pose_bundle.BUNDLE), "workers": 1, **extraction}
    return Params.model_validate(values)


def draw(folder: Path, count: int) -> None:
    """Pictures of the figure in category folders, with the true joints."""
    for index in range(count):
        drawn = mannequin.picture(seed=0, index=index, size=192)
        path = folder / str(drawn.truth["category"]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.image).save(path)
        path.with_suffix(".joints.json").write_text(json.dumps(drawn.truth))


def bomb() -> bytes:
    """A PNG of a few hundred bytes that claims 50,000 x 50,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for chunk in (header, b"IDAT" + zlib.compress(bytes(100_000)), b"IEND"):
        content += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return content


@pytest.fixture(scope="module")
def heap(tmp_path_factory) -> Path:
    """A folder of figures with hostile files among them."""
    pose_bundle.ensure(ROOT / pose_bundle.BUNDLE)
    folder = tmp_path_factory.mktemp("raw") / "heap"
    draw(folder, FIGURES)
    figure = next(iter(sorted(folder.rglob("*.png"))))
    bad = folder / "bad"
    bad.mkdir()
    (bad / "empty.jpg").touch()
    (bad / "cut.png").write_bytes(figure.read_bytes()[:3000])
    (bad / "text.jpg").write_text("no picture")
    (bad / "bomb.png").write_bytes(bomb())
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
def extracted(heap, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("one")
    extract.run(choose(heap), root)
    return root


def outputs(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "data/poses/heap").iterdir()}


def test_every_file_is_a_row_or_a_reject_and_none_is_both(heap, extracted):
    poses, rejects = read_poses(extracted / "data/poses/heap"), read_rejects(extracted / "data/poses/heap")
    sources = [source.name for source in scan(heap)]
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


def test_the_summary_adds_up(extracted):
    summary = json.loads(outputs(extracted)["summary.json"])
    assert summary["files"] == summary["files_with_person"] + sum(summary["rejects"].values())
    assert summary["persons"] == FIGURES + 2
    assert summary["rejects"]["duplicate"] == 2


def test_landmarks_lie_on_the_true_joints(extracted):
    error = json.loads(outputs(extracted)["summary.json"])["joint_error"]
    assert error["persons"] == FIGURES
    assert error["torsos_median"] < 0.1 and error["within_0.5"] > 0.9
    assert error["swapped"] < 0.3 and error["metres_mean"] < 0.25


def test_the_bytes_do_not_depend_on_the_number_of_workers(heap, extracted, tmp_path):
    extract.run(choose(heap, workers=2), tmp_path)
    assert outputs(tmp_path) == outputs(extracted)


def test_killed_in_the_middle_and_run_again_gives_the_same_bytes(heap, extracted, tmp_path):
    code = (
        "from pathlib import Path; from test_extract import choose; from tasks import extract;"
        f"extract.run(choose(Path({str(heap)!r})), Path({str(tmp_path)!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    progress = ""
    while not re.search(r"\b[1-9]\d*/\d+ \[", progress):  # the first pictures are done
        assert process.poll() is None
        progress += process.stderr.read(1)
    process.kill()
    process.communicate()
    assert (tmp_path / "data/poses/heap.tmp").exists() and not (tmp_path / "data/poses/heap").exists()
    extract.run(choose(heap), tmp_path)
    assert outputs(tmp_path) == outputs(extracted)
    assert not (tmp_path / "data/poses/heap.tmp").exists()


def test_exif_orientation_gives_the_landmarks_of_the_upright_picture(tmp_path):
    image = mannequin.picture(seed=0, index=0, size=192).image[:, 16:-8]
    (tmp_path / "raw").mkdir()
    Image.fromarray(image).save(tmp_path / "raw/upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(image)).save(tmp_path / "raw/lying.png", exif=exif)
    extract.run(choose(tmp_path / "raw"), tmp_path)
    poses = read_poses(tmp_path / "data/poses/raw")
    assert len(poses) == 2
    assert poses.size.tolist() == [[168, 192], [168, 192]]
    assert np.array_equal(poses.landmarks[0], poses.landmarks[1])
    assert poses.phash[0] == poses.phash[1]


def test_the_hashes_are_those_of_the_picture_and_of_its_mirror_image():
    picture = mannequin.picture(seed=0, index=0, size=192).image
    upright, mirrored = extract.perceptual_hashes(picture)
    assert upright == int(str(imagehash.phash(Image.fromarray(picture))), 16)
    library = int(str(imagehash.phash(Image.fromarray(picture[:, ::-1]))), 16)
    assert (mirrored ^ library).bit_count() <= 2  # reducing and mirroring commute up to rounding


def test_nobody_at_all_is_a_sentence_and_the_refusals_are_kept(tmp_path):
    folder = tmp_path / "walls"
    folder.mkdir()
    for grey in (60, 120, 180):
        Image.new("RGB", (100, 100), (grey,) * 3).save(folder / f"{grey}.png")
    (folder / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DataError, match=r"Nobody was found in the 4 files of .*walls \(no_person 3, ") as caught:
        extract.run(choose(folder), tmp_path)
    assert caught.value.code == 3
    assert not (tmp_path / "data/poses/walls").exists()
    rejects = read_rejects(tmp_path / ".contrapposto/rejected/walls")
    assert [reject.source for reject in rejects] == ["120.png", "180.png", "60.png", "cut.jpg"]


def test_a_missing_model_is_one_sentence(heap, tmp_path):
    with pytest.raises(UserError, match=r"gone\.task does not exist"):
        extract.run(choose(heap, model=str(tmp_path / "gone.task")), tmp_path)


def test_a_worker_that_dies_is_named_with_its_picture(heap, tmp_path):
    code = (
        "import sys; from pathlib import Path; from test_extract import choose; from tasks import extract\n"
        "from tasks.errors import DataError\n"
        f"try: extract.run(choose(Path({str(heap)!r})), Path({str(tmp_path)!r}))\n"
        "except DataError as error: print(error)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True
    )
    parent = psutil.Process(process.pid)
    while not (workers := [c for c in parent.children() if "spawn_main" in " ".join(c.cmdline())]):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(workers[0].pid, signal.SIGKILL)
    said, _ = process.communicate()
    assert "A worker process died (exit code -9) on" in said
    assert not (tmp_path / "data/poses/heap" / REJECTS).exists()


@pytest.mark.skipif("CONTRAPPOSTO_PHOTOS" not in os.environ, reason="CONTRAPPOSTO_PHOTOS names no folder of photos")
def test_real_photos(tmp_path):
    photos = Path(os.environ["CONTRAPPOSTO_PHOTOS"])
    extract.run(choose(photos / "people/tiny_coco/val2017", workers=0), tmp_path)
    summary = json.loads((tmp_path / "data/poses/val2017/summary.json").read_text())
    assert summary["files"] == 50
    assert summary["persons"] >= 8
    assert summary["rejects"] == {"no_person": 50 - summary["files_with_person"]}
    with pytest.raises(DataError, match="Nobody was found in the 150 files"):
        extract.run(choose(photos / "drawings", workers=0), tmp_path)
