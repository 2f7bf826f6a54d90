"""Recall and precision of near-duplicate detection for each kind of planted copy.

    python -m benchmarks.duplicates [--mannequins 300] [--photos DIR] [--workers 2]

Originals are mannequins (figures of a dozen kinds in one sort of room: the hard negatives) and, where a folder is given,
the pictures below it. Each is planted six times: the same bytes; as JPEG of quality 40 to 90; reduced to 40 to 80 %; cut
by 5 % in each direction; mirrored; 30 % darker or brighter. Everything goes through extraction and the pair search of
curation (`tasks.dataset.dedup`). A pair is correct if both come from the same original:

    recall      of the copies in which (as in its original) somebody was found, the share that is paired with its original
    precision   of the pairs of an original and a copy of this kind, the share that is correct

Pairs of two copies of one original are not counted. `ImageHash` is its 64-bit pHash at 3 bits or less, for
the picture or its mirror image, on the same files. Pairs among the originals are listed: look at them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image, ImageEnhance

from benchmarks.report import finish, table
from tasks import paths
from tasks.common.skeleton import normalise
from tasks.config.params import Extract, Params, Raw, load
from tasks.dataset.dedup import same_picture, same_scene
from tasks.extract import stage as extract
from tasks.extract.findings import Reason
from tasks.extract.poses_table import read_poses, read_rejects
from tasks.synthetic import stage as mannequin

GOAL = 0.99
LONGEST = 640  # pixels to which photos are reduced before anything is planted
PEER_BITS = 3
SIDE = 224  # pixels of a mannequin's picture


def _reencoded(picture: Image.Image, rng: np.random.Generator, path: Path) -> None:
    picture.save(path.with_suffix(".jpg"), quality=int(rng.integers(40, 91)))


def _resized(picture: Image.Image, rng: np.random.Generator, path: Path) -> None:
    scale = rng.uniform(0.4, 0.8)
    size = round(picture.width * scale), round(picture.height * scale)
    picture.resize(size, Image.Resampling.LANCZOS).save(path.with_suffix(".png"))


def _cropped(picture: Image.Image, rng: np.random.Generator, path: Path) -> None:
    width, height = picture.size
    left, top = rng.uniform(0, 0.05, 2)
    box = [round(width * left), round(height * top), round(width * (left + 0.95)), round(height * (top + 0.95))]
    picture.crop((box[0], box[1], box[2], box[3])).save(path.with_suffix(".png"))


def _mirrored(picture: Image.Image, rng: np.random.Generator, path: Path) -> None:
    picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path.with_suffix(".png"))


def _brightness(picture: Image.Image, rng: np.random.Generator, path: Path) -> None:
    ImageEnhance.Brightness(picture).enhance(float(rng.choice([0.7, 1.3]))).save(path.with_suffix(".png"))


KINDS: dict[str, Callable[[Image.Image, np.random.Generator, Path], None]] = {
    "reencoded": _reencoded,
    "resized": _resized,
    "mirrored": _mirrored,
    "brightness": _brightness,
    "cropped": _cropped,
}
REQUIRED = ("same_bytes", "reencoded", "resized", "mirrored")


def plant(folder: Path, count: int, photos: Path | None) -> int:
    """Fill `folder` with <kind>/<number>.<suffix>, kinds `original`, `same_bytes` and KINDS; the number of originals."""
    for kind in ("original", "same_bytes", *KINDS):
        (folder / kind).mkdir(parents=True)
    found = sorted(photos.rglob("*.jpg")) if photos else []
    for number in range(count + len(found)):
        if number < count:
            picture = Image.fromarray(mannequin.picture(1, number, SIDE).image)
        else:
            with Image.open(found[number - count]) as image:
                picture = image.convert("RGB")
            picture.thumbnail((LONGEST, LONGEST))
        path = folder / "original" / f"{number:05d}.png"
        picture.save(path)
        # after `original` in the alphabet: extraction keeps the first of several files with the same bytes
        (folder / "same_bytes" / path.name).write_bytes(path.read_bytes())
        for n, (kind, make) in enumerate(KINDS.items()):
            make(picture, np.random.default_rng([number, n]), folder / kind / path.name)
    return count + len(found)


def pairs_found(root: Path, part: str) -> tuple[set[str], set[tuple[str, str]]]:
    """The files with somebody in them, and the pairs of files that extraction and the pair search found."""
    found = read_poses(root / paths.POSES / part)
    pairs = set()
    poses = normalise(found.world)
    for blocks in (same_picture(found.fingerprint), same_scene(found.fingerprint, poses)):
        for rows, others in blocks:
            pairs |= {(found.source[i], found.source[j]) for i, j in zip(rows.tolist(), others.tolist(), strict=True)}
    there = set(found.source)
    for reject in read_rejects(root / paths.POSES / part):
        if reject.reason is Reason.DUPLICATE:  # "the same bytes as <source>"
            there.add(reject.source)
            pairs.add((reject.source, reject.detail.rpartition(" ")[2]))
    return there, {(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}


def peer_pairs(folder: Path, there: set[str]) -> set[tuple[str, str]]:
    """The pairs of files that ImageHash's pHash finds."""
    names = sorted(there)
    hashes = np.zeros((2, len(names)), np.uint64)
    for i, name in enumerate(names):
        with Image.open(folder / name) as image:
            for row, seen in enumerate((image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
                hashes[row, i] = int(str(imagehash.phash(seen)), 16)
    pairs = set()
    for i, name in enumerate(names):
        near = (np.bitwise_count(hashes[0, i] ^ hashes) <= PEER_BITS).any(axis=0)
        pairs |= {(name, names[j]) for j in np.flatnonzero(near) if j > i}
    return pairs


def score(kind: str, there: set[str], pairs: set[tuple[str, str]]) -> tuple[int, float, float]:
    """Copies of this kind that could be found, recall and precision."""
    name = {path.split(".")[0]: path for path in there}
    copies = [path for path in there if path.startswith(f"{kind}/")]
    pairable = [path for path in copies if "original/" + _number(path) in name]
    crossing = [pair for pair in pairs if {p.split("/")[0] for p in pair} == {kind, "original"}]
    right = {
        max(pair, key=lambda p: p.startswith(f"{kind}/")) for pair in crossing if _number(pair[0]) == _number(pair[1])
    }
    return len(pairable), len(right.intersection(pairable)) / len(pairable), len(right) / max(len(crossing), 1)


def _number(path: str) -> str:
    return path.split("/")[1].split(".")[0]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.duplicates", description=__doc__.split("\n")[0])
    parser.add_argument("--mannequins", type=int, default=300)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    project = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folder = root / paths.RAW / "planted"
        originals = plant(folder, options.mannequins, options.photos)
        params = load(project / "params.yaml")
        model = str(project / params.extract.model)
        extraction = Extract(**{**params.extract.model_dump(), "model": model, "workers": options.workers})
        extract.run(
            Params(**{**dict(params), "raw": Raw(folder=None, parts={"planted": str(folder)}), "extract": extraction}),
            root,
            "planted",
        )
        there, pairs = pairs_found(root, "planted")
        peers = peer_pairs(folder, there)
    among = sorted(pair for pair in pairs if all(path.startswith("original/") for path in pair))
    rows: list[tuple[str, ...]] = [("kind", "copies", "recall", "precision", "ImageHash recall", "precision")]
    figures: dict[str, float] = {"originals": originals, "pairs_among_originals": len(among)}
    goals = {}
    for kind in ("same_bytes", *KINDS):
        copies, recall, precision = score(kind, there, pairs)
        _, peer_recall, peer_precision = score(kind, there, peers)
        rows.append(
            (kind, str(copies), f"{recall:.4f}", f"{precision:.4f}", f"{peer_recall:.4f}", f"{peer_precision:.4f}")
        )
        figures |= {f"{kind}.copies": copies, f"{kind}.recall": recall, f"{kind}.precision": precision}
        figures |= {f"{kind}.imagehash_recall": peer_recall, f"{kind}.imagehash_precision": peer_precision}
        if kind in REQUIRED:
            goals[f"{kind}: recall >= {GOAL} at precision >= {GOAL}"] = min(recall, precision) >= GOAL
    print(table(rows))
    for pair in among:
        print("pair among the originals:", *pair)
    return finish("duplicates", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
