"""Pictures by a published model, through the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from flows import cli
from tasks.common.errors import UserError
from tasks.foreign import folder
from tests.support import tiny_pipelines

pytestmark = (
    pytest.mark.slow
)  # the default suite draws in test_parity.py; importing the libraries again would cost seconds

HOW = ["--prompt", "a red cat", "--prompt", "a dog", "--sampler", "euler", "--steps", "3", "--guidance", "3"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.stored(tmp_path_factory.mktemp("published") / "sd", "sd")


def draw(published: Path, out: Path, *more: str) -> int:
    return cli.main(["draw", "--base", str(published), "--out", str(out), *HOW, *more])


def test_pictures_and_prompts_are_drawn_and_a_stopped_run_goes_on(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    assert draw(published, out, "--count", "3", "--batch", "2") == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == ["000000.png", "000000.txt", "000001.png", "000001.txt", "000002.png", "000002.txt", "draw.json"]
    assert [(out / f"00000{i}.txt").read_text() for i in range(3)] == ["a red cat", "a dog", "a red cat"]
    pictures = [np.asarray(Image.open(out / f"00000{i}.png")).astype(int) for i in range(3)]
    assert all(picture.shape == (64, 64, 3) and picture.std() > 1 for picture in pictures)
    assert np.abs(pictures[0] - pictures[2]).max() > 1  # another seed
    (out / "000002.png").unlink()
    assert draw(published, out, "--count", "4") == 0
    assert np.abs(np.asarray(Image.open(out / "000002.png")).astype(int) - pictures[2]).max() <= 1
    assert (out / "000003.png").is_file()
    assert draw(published, out, "--negative", "grey") == 2  # other pictures


def test_weights_that_wait_draw_the_same_bits(published: Path, tmp_path: Path) -> None:
    for name, more in (("plain", []), ("offloaded", ["--offload"])):
        assert draw(published, tmp_path / name, "--count", "2", *more) == 0
    for i in range(2):
        assert (tmp_path / f"offloaded/00000{i}.png").read_bytes() == (tmp_path / f"plain/00000{i}.png").read_bytes()


def test_a_folder_is_known_by_its_sha256(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(published, copy)
    assert cli.main(["base", str(copy)]) == 0
    digest = folder.digest(published)
    assert "epsilon" in (printed := capsys.readouterr().out) and digest in printed
    folder.checked(copy, digest)
    config = copy / "scheduler/scheduler_config.json"
    config.write_text(config.read_text().replace("epsilon", "sample"))
    with pytest.raises(UserError):
        folder.checked(copy, digest)


def test_what_a_published_model_cannot_do_is_said(published: Path, tmp_path: Path) -> None:
    assert draw(published, tmp_path / "a", "--size", "60") == 2
    assert draw(published, tmp_path / "b", "--sampler", "cold") == 2
    assert draw(published, tmp_path / "c", "--sampler", "nonsense") == 2
    assert cli.main(["draw", "--base", str(published), "--out", str(tmp_path / "d")]) == 2  # no prompt


def test_the_certificate_reads_the_pictures(published: Path, tmp_path: Path) -> None:
    assert draw(published, tmp_path / "drawn", "--count", "4") == 0
    assert draw(published, tmp_path / "train", "--count", "4", "--seed", "1") == 0
    assert cli.main(["certify", "--train", str(tmp_path / "train"), "--samples", str(tmp_path / "drawn")]) in (3, 11)
