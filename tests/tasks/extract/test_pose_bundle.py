"""The pose bundle: pinned, reproducible, and built only once."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from tasks.common.errors import UserError
from tasks.extract import pose_bundle
from tasks.extract.pose_bundle import (
    BUNDLE,
    BUNDLE_SHA256,
    HEAVY_NETWORK,
    NETWORKS,
    build,
    build_heavy,
    check,
    ensure,
    packed_files,
    with_normalisation,
)
from tests.support.project import PROJECT

ROOT = PROJECT


@pytest.fixture(scope="module")
def bundle() -> Path:
    import tasks.extract.landmarker  # noqa: F401  imports mediapipe without cv2, which would change the environment

    ensure(ROOT / BUNDLE)
    return ROOT / BUNDLE


def normalisation(model: bytes) -> tuple[float, float]:
    """Mean and std as the task reads them from a TFLite flatbuffer."""
    from mediapipe.tasks.metadata import metadata_schema_py_generated as metadata_schema
    from mediapipe.tasks.metadata import schema_py_generated as schema

    network = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model))
    (entry,) = [e for e in network.metadata if e.name == b"TFLITE_METADATA"]
    buffer = bytes(network.buffers[entry.buffer].data)
    metadata = metadata_schema.ModelMetadataT.InitFromObj(metadata_schema.ModelMetadata.GetRootAs(buffer))
    (unit,) = metadata.subgraphMetadata[0].inputTensorMetadata[0].processUnits
    return float(unit.options.mean[0]), float(unit.options.std[0])


def test_each_network_has_its_own_normalisation(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        read = [normalisation(archive.read(network.name)) for network in NETWORKS]
    assert read == [(127.5, 127.5), (0.0, 255.0)]


def test_contents_are_stored_at_aligned_offsets(bundle: Path) -> None:
    content = bundle.read_bytes()
    with zipfile.ZipFile(bundle) as archive:
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            start = content.index(archive.read(entry))
            assert start % 16 == 0


def test_metadata_changes_nothing_else_in_a_network(bundle: Path) -> None:
    from mediapipe.tasks.metadata import schema_py_generated as schema

    with zipfile.ZipFile(bundle) as archive:
        model = archive.read(NETWORKS[1].name)
    before = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model))
    after = schema.ModelT.InitFromObj(schema.Model.GetRootAs(with_normalisation(model, 1.0, 2.0)))
    assert [bytes(b.data) if b.data is not None else None for b in before.buffers] == [
        bytes(b.data) if b.data is not None else None for b in after.buffers[:-1]
    ]
    assert [len(g.operators) for g in before.subgraphs] == [len(g.operators) for g in after.subgraphs]


def test_an_existing_bundle_is_kept_without_importing_mediapipe(bundle: Path) -> None:
    before = bundle.stat().st_mtime_ns
    code = "import sys, tasks.extract.pose_bundle as b; b.main(); print('mediapipe' in sys.modules)"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "already there" in result.stdout and result.stdout.endswith("False\n")
    assert bundle.stat().st_mtime_ns == before


def test_another_network_in_the_wheel_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "planted.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for network in NETWORKS:
            archive.writestr(network.member, b"another network")
    with pytest.raises(UserError, match=r"pose_detection\.tflite: sha256 mismatch"):
        build(wheel)


def test_a_wheel_with_another_digest_is_refused_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "mediapipe.whl"
    wheel.write_bytes(b"not the wheel")
    monkeypatch.setattr(pose_bundle, "_fetch", lambda folder: wheel)
    with pytest.raises(UserError, match=r"wheel of mediapipe==0\.10\.21: sha256 mismatch"):
        ensure(tmp_path / "models/bundle.task")
    assert not (tmp_path / "models").exists()


def test_without_a_package_index_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match=r"could not be downloaded by pip .*extract\.model"):
        ensure(tmp_path / "bundle.task")


def test_the_heavy_bundle_has_the_detector_of_the_default_one(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(bundle) as archive:
        detector, landmarks = (archive.read(network.name) for network in NETWORKS)
    tarball = tmp_path / "package.tgz"
    with tarfile.open(tarball, "w:gz") as package:
        entry = tarfile.TarInfo(HEAVY_NETWORK.member)
        entry.size = len(landmarks)
        package.addfile(entry, io.BytesIO(landmarks))
    with pytest.raises(UserError, match="sha256 mismatch"):
        build_heavy(tarball, bundle)
    digest = hashlib.sha256(landmarks).hexdigest()
    monkeypatch.setattr(pose_bundle, "HEAVY_NETWORK", replace(HEAVY_NETWORK, sha256=digest))
    heavy = build_heavy(tarball, bundle)
    with zipfile.ZipFile(io.BytesIO(heavy)) as archive:
        assert archive.read(NETWORKS[0].name) == detector
        assert normalisation(archive.read(NETWORKS[1].name)) == (0.0, 255.0)


def test_a_model_may_be_pinned(bundle: Path) -> None:
    check(bundle, BUNDLE_SHA256)
    with pytest.raises(UserError, match="sha256 mismatch"):
        check(bundle, "0" * 64)


@pytest.mark.parametrize("content", [b"no archive", b"PK\5\6" + bytes(4) + b"\1\0\1\0\2\0\0\0\3\0\0\0\0\0", None])
def test_what_is_no_bundle_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "other.task"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError):
        check(path)


def package(path: Path, *entries: tarfile.TarInfo, mode: Literal["w:gz", "w:xz"] = "w:gz") -> Path:
    """A package whose files are the beginning of many random bytes."""
    content = np.random.default_rng(0).bytes(1 << 16)
    with tarfile.open(path, mode) as archive:
        for entry in entries:
            archive.addfile(entry, io.BytesIO(content) if entry.isfile() else None)
    return path


def entry(size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo("package/network")
    found.size, found.type, found.linkname = size, kind, link
    return found


@pytest.mark.parametrize(
    "packed",
    [
        entry(kind=tarfile.SYMTYPE, link="network"),  # to itself
        entry(kind=tarfile.SYMTYPE, link="../../../../etc/passwd"),
        entry(kind=tarfile.LNKTYPE, link="package/network"),
        entry(kind=tarfile.DIRTYPE),
        entry(kind=tarfile.FIFOTYPE),
    ],
)
def test_only_regular_files_of_a_package_are_read(tmp_path: Path, packed: tarfile.TarInfo) -> None:
    with pytest.raises(UserError):
        packed_files(package(tmp_path / "package.tgz", packed), {"package/network": "0" * 64})


def test_a_file_of_a_package_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tarball, size = package(tmp_path / "package.tgz", entry(1000)), 1000
    digest = {"package/network": hashlib.sha256(np.random.default_rng(0).bytes(1 << 16)[:size]).hexdigest()}
    assert len(packed_files(tarball, digest)[0]) == size
    monkeypatch.setattr(pose_bundle, "LARGEST", size - 1)
    with pytest.raises(UserError):
        packed_files(tarball, digest)


def test_a_package_in_another_compression_is_refused(tmp_path: Path) -> None:
    tarball = package(tmp_path / "package.txz", entry(1 << 16), mode="w:xz")
    content = bytearray(tarball.read_bytes())
    content[len(content) // 2] ^= 255
    tarball.write_bytes(content)
    with pytest.raises(UserError):
        packed_files(tarball, {"package/network": "0" * 64})
