"""`python -m benchmarks.people --photos DIR`: the landmarks found in photos beside annotated joints.

DIR, or its folder `people`, holds pictures and COCO-like annotations (`images`, `annotations`, `categories` with the
keypoints' names), in any sub-folders. The extract stage reads the pictures; each detected person is paired with the annotated
one whose box of limb joints overlaps most, from an overlap (intersection over union) of 0.3 on. Of those pairs it prints

    PCK@0.2, PCK@0.5   fraction of annotated limb joints nearer than that part of the torso (Yang & Ramanan 2013)
    swapped            fraction of persons who fit better with left and right exchanged
    stretched          the same with both sides of the picture taken for equally long

and how many of the annotated persons were found, by their height: MediaPipe looks for the few largest. All of it without and
with a second look at pictures with small people (`extract.second_pass`, `--second-pass N` tiles a side) and, with
`--second-opinion FILE`, with that of MoveNet (`extract.second_opinion`); with the pictures a second of two cores, and the
people found in clips that show none (DIR/videos, `car` or `bottle` in the name; a frame a second). `--model FILE` takes
another pose bundle, such as the heavy one. The goals are those of the last look.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from benchmarks.report import finish, table
from tasks import paths
from tasks.common import files
from tasks.common.skeleton import INDEX, LIMBS, MIRROR, torso_length
from tasks.config import params
from tasks.config.params import Params
from tasks.extract import stage as extract
from tasks.extract import video
from tasks.extract.decode import open_picture
from tasks.extract.finder import finder
from tasks.extract.landmarker import kept_offline
from tasks.extract.poses_table import Poses, read_poses

PROJECT = Path(__file__).parents[1]
PART = "people"
OVERLAP = 0.3
JOINTS = 6  # annotated limb joints that a person needs to be counted, the four of the torso among them
TORSO = [INDEX[f"{side}_{joint}"] for joint in ("shoulder", "hip") for side in ("left", "right")]
# Human3.6M in the form that mmpose's tests have calls an ankle a foot, and in people who face the camera the legs that
# it calls left are on the same side as the arms that it calls right: its list of names has the legs exchanged.
HUMAN36M = {
    f"{name}_{joint}": f"{true}_{'ankle' if joint == 'foot' else joint}"
    for name, true in (("left", "right"), ("right", "left"))
    for joint in ("hip", "knee", "foot")
}


@dataclass(frozen=True)
class Annotated:
    """An annotated person: joints in pixels `[33, 2]`, which of them are annotated `[33]`, and whose set that is."""

    source: str
    group: str
    joints: np.ndarray
    known: np.ndarray


def read_annotations(folder: Path) -> list[Annotated]:
    """Persons with a torso and at least JOINTS limb joints. If several files annotate a picture, the first one counts."""
    pictures = {path.name: path for path in sorted(folder.rglob("*")) if path.suffix in (".jpg", ".png")}
    by_path = {str(path.relative_to(folder)): path for path in pictures.values()}
    done: set[str] = set()
    persons = []
    for path in sorted(folder.rglob("*.json")):
        content = files.read_json(path)
        if not (isinstance(content, dict) and "annotations" in content and content.get("categories")):
            continue
        names = [_plain(name) for name in content["categories"][0].get("keypoints", [])]
        if "left_foot" in names:
            names = [HUMAN36M.get(name, name) for name in names]
        images = {image["id"]: str(image["file_name"]) for image in content["images"]}
        here: set[str] = set()
        for row in content["annotations"]:
            picture = pictures.get(Path(images[row["image_id"]]).name)
            near = [p for p in by_path if p.endswith(images[row["image_id"]])]
            source = near[0] if near else str(picture.relative_to(folder)) if picture else None
            if source is None or source in done or "keypoints" not in row:
                continue
            here.add(source)
            joints, known = np.zeros((33, 2)), np.zeros(33, dtype=bool)
            points = np.array(row["keypoints"], dtype=np.float64).reshape(-1, 3)
            for name, (x, y, labelled) in zip(names, points, strict=False):
                if name in INDEX and labelled > 0:
                    joints[INDEX[name]], known[INDEX[name]] = (x, y), True
            if known[TORSO].all() and known[list(LIMBS)].sum() >= JOINTS:
                persons.append(Annotated(source, path.relative_to(folder).parts[-2], joints, known))
        done |= here
    return persons


def _plain(name: str) -> str:
    return name.lower().replace(" ", "_").replace("-", "_")


def pairs(found: Poses, people: list[Annotated]) -> list[tuple[int, int]]:
    """(row of found, index of people): for each picture the pairing with the largest sum of overlaps."""
    matched = []
    by_source: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for i, source in enumerate(found.source):
        by_source[source][0].append(i)
    for j, person in enumerate(people):
        by_source[person.source][1].append(j)
    for rows, others in by_source.values():
        if rows and others:
            overlap = np.array([[_overlap(found.pixels[i], people[j]) for j in others] for i in rows])
            for a, b in zip(*linear_sum_assignment(-overlap), strict=True):
                if overlap[a, b] >= OVERLAP:
                    matched.append((rows[a], others[b]))
    return matched


def _overlap(pixels: np.ndarray, person: Annotated) -> float:
    """Intersection over union of the boxes around the annotated limb joints, where found and where annotated."""
    limbs = [i for i in LIMBS if person.known[i]]
    a, b = pixels[limbs], person.joints[limbs]
    low, high = np.maximum(a.min(0), b.min(0)), np.minimum(a.max(0), b.max(0))
    inner = float(np.prod((high - low).clip(0)))
    return inner / max(float(np.prod(np.ptp(a, axis=0)) + np.prod(np.ptp(b, axis=0))) - inner, 1e-9)


def scores(found: Poses, people: list[Annotated], matched: list[tuple[int, int]]) -> dict[str, float]:
    """The figures of the module's docstring over these pairs."""
    near: dict[str, list[np.ndarray]] = defaultdict(list)
    flags: dict[str, list[bool]] = defaultdict(list)
    for i, j in matched:
        person, pixels, size = people[j], found.pixels[i].astype(np.float64), found.size[i]
        limbs = [k for k in LIMBS if person.known[k]]
        torso = float(torso_length(person.joints))
        distance = np.linalg.norm(pixels - person.joints, axis=1)[limbs]
        exchanged = np.linalg.norm(pixels[list(MIRROR)] - person.joints, axis=1)[limbs]
        stretched = np.linalg.norm(pixels * (size.max() / size) - person.joints, axis=1)[limbs]
        for part in (0.2, 0.5):
            near[f"PCK@{part}"].append(distance < part * torso)
        flags["swapped"].append(bool(exchanged.mean() < distance.mean()))
        flags["stretched"].append(bool(size[0] != size[1] and stretched.mean() < distance.mean()))
    return {name: float(np.concatenate(rows).mean()) for name, rows in near.items()} | {
        name: float(np.mean(rows)) for name, rows in flags.items()
    }


def _looks(options: argparse.Namespace, photos: Path) -> dict[str, Params]:
    """The ways to look, by name."""
    values = params.load(PROJECT / "params.yaml").model_dump()
    values["raw"] = {"folder": None, "parts": {PART: str(photos.resolve())}}
    model = options.model.resolve() if options.model else PROJECT / values["extract"]["model"]
    common = values["extract"] | {"model": str(model), "max_people": options.max_people}
    looks: dict[str, dict[str, Any]] = {"first look": {}, "second pass": {"second_pass": options.second_pass}}
    if file := options.second_opinion:
        opinion = {
            "source": str(file.resolve()),
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "side": options.side,
            "agreement": options.agreement,
        }
        looks["second opinion"] = {"second_opinion": opinion}
    return {name: Params.model_validate(values | {"extract": common | look}) for name, look in looks.items()}


def _measured(name: str, chosen: Params, people: list[Annotated]) -> dict[str, Any]:
    """The figures of one way to look, with a table printed."""
    with tempfile.TemporaryDirectory() as root:
        extract.run(chosen, Path(root), PART)
        found = read_poses(Path(root) / paths.POSES / PART)
    matched = pairs(found, people)
    rows: list[tuple[str, ...]] = [("set", "annotated", "found", "PCK@0.2", "PCK@0.5", "swapped", "stretched")]
    for group in [*sorted({person.group for person in people}), ""]:
        some = [(i, j) for i, j in matched if people[j].group == group or not group]
        count = sum(person.group == group or not group for person in people)
        part = scores(found, people, some)
        values = [f"{part[title]:.3f}" if part else "-" for title in rows[0][3:]]
        rows.append((group or "all", str(count), str(len(some)), *values))
    print(f"{name}\n{table(rows)}")
    gated = [(i, j) for i, j in matched if found.limb_visibility[i] >= chosen.curate.min_visibility]
    heights = np.array([np.ptp(person.joints[person.known][:, 1]) for person in people])
    hit = np.isin(np.arange(len(people)), [j for _, j in matched])
    annotated = {person.source for person in people}
    return {
        "annotated": len(people),
        "found": len(matched),
        "others found in these pictures": sum(source in annotated for source in found.source) - len(matched),
        "all": scores(found, people, matched),
        "kept by the gate": {"persons": len(gated)} | scores(found, people, gated),
        "found by height": {
            f"{low}-{high} px": [int(hit[at].sum()), int(at.sum())]
            for low, high in ((0, 64), (64, 128), (128, 256), (256, 10_000))
            if (at := (heights >= low) & (heights < high)).any()
        },
    }


def _frames(folder: Path) -> list[np.ndarray]:
    """A frame a second of the clips that show nobody."""
    frames = []
    for path in sorted(folder.rglob("*.mp4")):
        if "car" in path.name or "bottle" in path.name:
            with path.open("rb") as file:
                frames += [frame.picture for frame in video.sampled(file, 1.0, 64)]
    return frames


def _looked(pictures: list[np.ndarray], chosen: Params) -> tuple[int, float]:
    """How many people are found in all, and the pictures a second of two cores."""
    settings = extract.settings(chosen.extract, PROJECT)
    with kept_offline(), finder(Path(chosen.extract.model), settings) as find:
        start = time.process_time()
        count = sum(len(find(picture)) for picture in pictures)
        return count, 2 * len(pictures) / (time.process_time() - start)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.people", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--second-pass", type=int, default=2, help="tiles along each side")
    parser.add_argument("--model", type=Path, help="a pose bundle; without it, that of params.yaml")
    parser.add_argument("--second-opinion", type=Path, help="the model file of MoveNet")
    parser.add_argument("--side", type=int, default=384, help="pixels of a picture as MoveNet sees it")
    parser.add_argument("--agreement", type=float, default=0.35, help="of both networks, in torso lengths")
    parser.add_argument("--max-people", type=int, default=6, help="most persons in a picture")
    options = parser.parse_args()
    folder = options.photos / "people" if (options.photos / "people").is_dir() else options.photos
    people = read_annotations(folder)
    pictures = [open_picture(folder / source) for source in sorted({person.source for person in people})]
    frames = _frames(options.photos / "videos")
    figures: dict[str, Any] = {}
    for name, chosen in _looks(options, folder).items():
        figures[name] = _measured(name, chosen, people)
        figures[name]["pictures a second of two cores"] = _looked(pictures, chosen)[1]
        if frames:
            figures[name]["false people"] = _looked(frames, chosen)[0]
            figures[name]["frames without people"] = len(frames)
    first, last = figures["first look"], figures[name]
    goals = {
        "at least 80 people found": last["found"] >= 80,
        "PCK@0.2 at least 0.80": last["all"]["PCK@0.2"] >= 0.8,
        "left and right exchanged in at most 2 % of the persons": last["all"]["swapped"] <= 0.02,
        "a mistaken aspect ratio would fit at most 10 % better": last["all"]["stretched"] <= 0.1,
        "at least 15 pictures a second": last["pictures a second of two cores"] >= 15,
    }
    if frames:
        goals["no more false people than with the first look"] = last["false people"] <= first["false people"]
    return finish("people", figures, goals)


if __name__ == "__main__":
    raise SystemExit(main())
