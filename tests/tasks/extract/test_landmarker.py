"""The landmarker: finds the drawn figure, prints nothing, refuses files that are not models."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tasks.common.errors import UserError
from tasks.common.skeleton import LIMBS, MIRROR, torso_length
from tasks.extract import pose_bundle
from tasks.extract.landmarker import Landmarker, Person, kept_offline
from tasks.synthetic import stage as mannequin
from tests.support.project import PROJECT

MODEL = PROJECT / pose_bundle.BUNDLE
FIGURES = (0, 5, 12)  # standing, squatting, standing: seen from the front


@pytest.fixture(scope="module")
def landmarker() -> Iterator[Landmarker]:
    pose_bundle.ensure(MODEL)
    with Landmarker(MODEL) as opened:
        yield opened


def only(persons: list[Person]) -> Person:
    (person,) = persons
    return person


@pytest.mark.parametrize("index", FIGURES)
def test_limbs_are_found_on_the_joints_of_the_figure(landmarker: Landmarker, index: int) -> None:
    drawn = mannequin.picture(seed=0, index=index, size=224)
    person = only(landmarker.detect(drawn.image))
    assert person.landmarks.shape == (33, 5) and person.world.shape == (33, 3)
    assert person.landmarks.dtype == person.world.dtype == np.float32
    true = np.array(drawn.truth["image"])
    distance = np.linalg.norm(person.landmarks[:, :2] * 224 - true, axis=-1)[list(LIMBS)]
    assert np.median(distance) < 0.1 * torso_length(true)
    assert 0.35 < torso_length(person.world) < 0.7  # metres


@pytest.mark.parametrize("index", FIGURES)
def test_the_mirror_image_has_the_mirrored_landmarks(landmarker: Landmarker, index: int) -> None:
    image = mannequin.picture(seed=0, index=index, size=224).image
    seen, mirrored = (only(landmarker.detect(picture)) for picture in (image, image[:, ::-1]))
    expected = seen.landmarks[MIRROR, :2].copy()
    expected[:, 0] = 1 - expected[:, 0]
    limbs = list(LIMBS)
    distance = np.linalg.norm(mirrored.landmarks[limbs, :2] - expected[limbs], axis=-1)
    assert np.median(distance) < 0.02


def test_a_result_depends_on_its_picture_alone(landmarker: Landmarker) -> None:
    images = [mannequin.picture(seed=0, index=index, size=224).image for index in FIGURES]
    first = [only(landmarker.detect(image)) for image in images]
    again = [only(landmarker.detect(image)) for image in images[::-1]][::-1]
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.landmarks, b.landmarks) and np.array_equal(a.world, b.world)


@pytest.mark.parametrize("height, width", [(64, 64), (40, 300), (1, 1)])
def test_nobody_is_found_in_a_grey_wall(landmarker: Landmarker, height: int, width: int) -> None:
    assert landmarker.detect(np.full((height, width, 3), 128, np.uint8)) == []


def test_native_log_lines_are_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with Landmarker(MODEL) as landmarker:
        landmarker.detect(mannequin.picture(seed=0, index=0, size=224).image)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("offline", [False, True])
def test_mediapipe_reports_home_unless_kept_offline(offline: bool) -> None:
    """Without `kept_offline` mediapipe tries to connect. If that half fails, it has stopped, and `kept_offline` can go."""
    code = (
        "from contextlib import nullcontext; from pathlib import Path; import numpy as np\n"
        "from tasks.extract.landmarker import *\n"
        f"with kept_offline() if {offline} else nullcontext(), Landmarker(Path({str(MODEL)!r})) as task:\n"
        "    task.detect(np.zeros((64, 64, 3), np.uint8))\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        environment = {**os.environ, "https_proxy": proxy, "HTTPS_PROXY": proxy, "no_proxy": "", "NO_PROXY": ""}
        process = subprocess.Popen([sys.executable, "-c", code], cwd=MODEL.parents[1], env=environment)
        listener.settimeout(0.1)
        asked = b""
        while not asked:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                if process.poll() is not None:
                    break
            else:
                with connection:
                    asked = connection.recv(100)
        assert process.wait() == 0
    assert (b"googleapis.com" in asked) is not offline


def test_kept_offline_restores_the_proxy_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    before = dict(os.environ)
    with pytest.raises(UserError), kept_offline():
        assert os.environ["https_proxy"].endswith(":9") and "NO_PROXY" not in os.environ
        raise UserError("inside")
    assert dict(os.environ) == before


def test_a_file_that_is_not_a_model_raises_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; `make setup`"):
        Landmarker(tmp_path / "none.task")
    (tmp_path / "text.task").write_text("<html>not found</html>")
    with pytest.raises(UserError, match="a \\.task bundle is a zip file"):
        Landmarker(tmp_path / "text.task")
    with zipfile.ZipFile(tmp_path / "hand.task", "w") as bundle:
        bundle.writestr("hand_detector.tflite", b"")
    with pytest.raises(UserError, match=r"pose_detector\.tflite, pose_landmarks_detector\.tflite is missing"):
        Landmarker(tmp_path / "hand.task")
    with zipfile.ZipFile(tmp_path / "empty.task", "w") as bundle:
        for network in pose_bundle.NETWORKS:
            bundle.writestr(network.name, b"not a network")
    with pytest.raises(UserError, match="cannot be used as a pose model: "):
        Landmarker(tmp_path / "empty.task")


def test_an_unscaled_model_is_refused(tmp_path: Path) -> None:
    """The wheel's networks without the metadata that this project adds."""
    import flatbuffers
    from mediapipe.tasks.metadata import schema_py_generated as schema

    with zipfile.ZipFile(MODEL) as bundle, zipfile.ZipFile(tmp_path / "bare.task", "w") as bare:
        for network in pose_bundle.NETWORKS:
            model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bundle.read(network.name)))
            model.metadata = [entry for entry in model.metadata if entry.name != b"TFLITE_METADATA"]
            builder = flatbuffers.Builder(0)
            builder.Finish(model.Pack(builder), b"TFL3")
            bare.writestr(network.name, bytes(builder.Output()))
    with pytest.raises(UserError, match="cannot be used as a pose model"):
        Landmarker(tmp_path / "bare.task")


def test_a_damaged_bundle_is_refused_without_its_detector_too(tmp_path: Path) -> None:
    pose_bundle.ensure(MODEL)
    content = bytearray(MODEL.read_bytes())
    with zipfile.ZipFile(MODEL) as bundle:
        network = bundle.read(pose_bundle.NETWORKS[1].name)
    content[content.index(network) + len(network) // 2] ^= 255
    (tmp_path / "damaged.task").write_bytes(content)
    with pytest.raises(UserError):
        Landmarker(tmp_path / "damaged.task", centred=True)
