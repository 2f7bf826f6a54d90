"""`certify` for folders: verdicts, names, groups, refusals, the page and the files it writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.certify import certify
from tasks.certify.findings import remedies
from tasks.certify.folder import letterboxed
from tasks.common.errors import DataError, UserError
from tasks.common.files import read_json
from tasks.evaluate.memorization.copy_test import Verdict
from tests.support.photos import photo, write

SIZES = ((96, 72), (72, 96), (80, 80))


def pictures(seeds: range, prefix: str) -> dict[str, np.ndarray]:
    return {f"{prefix}{seed:04d}.png": photo(seed, *SIZES[seed % 3]) for seed in seeds}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training pictures (one three times), held-out pictures (one a crop of a training picture), two sets of samples."""
    root = tmp_path_factory.mktemp("folders")
    train = pictures(range(100), "t")
    repeated = {f"again/r{i}.png": np.ascontiguousarray(train["t0003.png"][i : 70 + i, :, :]) for i in range(2)}
    write(root / "train", train | repeated)
    (root / "train/t0000.txt").write_text("a caption")
    (root / "train/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    crop = np.asarray(Image.fromarray(train["t0006.png"]).resize((96, 72), box=(4, 3, 92, 69)))
    write(root / "heldout", pictures(range(100, 130), "h") | {"cut.png": crop})
    fresh = pictures(range(200, 254), "s")
    write(root / "fresh", fresh)
    copies = {
        "step-100/mirrored.png": np.ascontiguousarray(train["t0003.png"][:, ::-1]),
        "step-100/again.png": (train["t0003.png"] * 0.8).astype(np.uint8),
        "step-100/cut.png": np.asarray(Image.fromarray(train["t0010.png"]).resize((72, 96), box=(3, 4, 69, 90))),
    }
    sorted_out = {f"step-{20 if i < 27 else 100}/{name}": picture for i, (name, picture) in enumerate(fresh.items())}
    write(root / "copied", sorted_out | copies)
    return root


def test_copies_are_named_ranked_and_shown(folders: Path, tmp_path: Path) -> None:
    result = certify(folders / "train", folders / "copied", folders / "heldout", tmp_path / "out")
    assert result.verdict is Verdict.COPIES and result.exit_code == 10
    report = read_json(tmp_path / "out/certificate.json")
    assert report == json.loads(json.dumps(result.report))
    found = {pair["sample"]: pair["original"] for pair in report["copies"]}
    assert found["step-100/cut.png"] == "t0010.png"
    same = {"t0003.png", "again/r0.png", "again/r1.png"}
    assert {found["step-100/mirrored.png"], found["step-100/again.png"]} <= same
    assert len(found) <= 5  # three copies, and what a rate of 10% adds
    assert report["largest_group"] == 3 and report["heldout_dropped"] == 1
    assert report["train_groups"] == 100
    assert set(report["originals"][0]["duplicates"]) | {report["originals"][0]["original"]} == same
    assert [entry["folder"] for entry in report["checkpoints"]] == ["step-20", "step-100"]
    assert "Stop at step-20" in " ".join(report["remedies"]) and report["remedies"][0].startswith("Deduplicate")
    assert report["folders"]["train"]["other_files"] == 1
    assert [(one["name"], one["reason"]) for one in report["folders"]["train"]["rejected"]] == [
        ("broken.jpg", "damaged")
    ]
    assert report["power"]["planted"] == 180 and report["power"]["low"] < report["power"]["share"] <= 1
    page = (tmp_path / "out/certificate.html").read_text()
    assert "step-100/mirrored.png" in page and page.count("data:image/jpeg;base64,") >= 15
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # nothing is loaded


def test_without_held_out_pictures_fresh_samples_are_clean(folders: Path) -> None:
    result = certify(folders / "train", folders / "fresh")
    assert result.verdict is Verdict.CLEAN and result.exit_code == 0, result.sentence
    assert result.report["p_split"] is None and "--heldout" in result.report["without_heldout"]
    assert result.report["power"]["share"] >= 0.8 and 0.06 < result.report["share_bound"] < 0.09  # of 54 samples
    assert len(result.report["copies"]) <= 1 and result.report["remedies"] == []  # a tenth of the list may be false


def test_too_few_pictures_are_a_verdict(folders: Path, tmp_path: Path) -> None:
    write(tmp_path / "two", pictures(range(2), "t"))
    result = certify(tmp_path / "two", folders / "fresh", out=tmp_path / "out")
    assert result.verdict is Verdict.TOO_FEW and result.exit_code == 11
    assert "TOO-FEW" in (tmp_path / "out/certificate.html").read_text()


def test_folders_that_cannot_be_judged_are_refused(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions/a.txt").write_text("a caption")
    for train, code in ((tmp_path / "none", 2), (tmp_path / "captions", 3)):
        with pytest.raises(UserError) as error:
            certify(train, folders / "fresh")
        assert error.value.code == code
    (tmp_path / "captions/a.png").write_bytes(b"nothing")
    with pytest.raises(DataError):
        certify(tmp_path / "captions", folders / "fresh")
    with pytest.raises(UserError, match="overlap"):
        certify(folders / "train", folders / "train/again")
    (tmp_path / "file").touch()
    before = sorted(folders.rglob("*"))
    for out in (tmp_path / "file", tmp_path / "file/page", folders / "train", folders / "fresh/page"):
        with pytest.raises(UserError, match=str(out)):
            certify(folders / "train", folders / "fresh", out=out)
    assert sorted(folders.rglob("*")) == before


def test_letterboxing_keeps_proportions_and_marks_what_is_outside() -> None:
    wide = letterboxed(48, np.full((20, 80, 3), (200, 100, 0), np.uint8))
    inside = wide[..., 3] == 255
    assert inside.any(axis=1).sum() == 12 and inside.any(axis=0).all()  # 48 x 12, in the middle
    assert inside[18:30].all() and (wide[..., :3] == (200, 100, 0)).all()
    gradient = np.repeat(np.arange(96, dtype=np.uint8)[None, :, None], 96, axis=0).repeat(3, axis=2)
    assert letterboxed(48, gradient)[10, :, 0] == pytest.approx(np.arange(48) * 2 + 0.5, abs=0.5)  # area averages


def test_the_folder_before_the_first_copies_is_named_and_repetition_is_named_first() -> None:
    class Found:
        train = range(500)

    originals = [
        {"original": "a.png", "copies": 9, "duplicates": ["b.png"]},
        *({"original": f"{i}.png", "copies": 1, "duplicates": []} for i in range(9)),
    ]
    folders = [{"folder": f"step-{n}", "samples": 9, "copies": c} for n, c in ((1, 0), (2, 0), (3, 5), (4, 0))]
    advice = remedies(Found(), originals, folders)
    assert [sentence.split(":")[0] for sentence in advice] == ["Deduplicate", "Cap", "Stop at step-2", "Augment"]
    assert "1 of the copied pictures is " in advice[0] and "50% of the copies (a.png)" in advice[1]
    late = remedies(Found(), [{"original": "a.png", "copies": 1, "duplicates": []}], folders[2:])
    assert late[0].startswith("Stop earlier: there are copies already in step-3")
