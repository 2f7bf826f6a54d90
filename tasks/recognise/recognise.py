"""Command `recognise PICTURES`: the category of every person in a picture or a folder of pictures.

For each person it prints what the landmarks say and what the pixels say: a category with its calibrated probability, `unsure`
with the most likely category, or `unknown` for a person unlike everybody in the training data. The same is written to
reports/recognised.json. The stage `train_recogniser` must have run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tasks import paths
from tasks.common import files, skeleton
from tasks.common.errors import DataError, UserError
from tasks.common.text import one_line
from tasks.config.params import Params
from tasks.dataset.crop import crop, square
from tasks.extract.decode import open_picture
from tasks.extract.pose_bundle import check
from tasks.extract.scan import EntryKind, is_ignored, walk
from tasks.extract.source_files import Refusal
from tasks.extract.stage import settings
from tasks.recognise import features, recogniser
from tasks.recognise.recogniser import Recogniser, State


@dataclass(frozen=True)
class Named:
    """What one view says of a person."""

    state: State
    category: str  # the most likely one, also if it is not named
    confidence: float

    def __str__(self) -> str:
        if self.state is State.UNKNOWN:
            return "unknown"
        unsure = f"{State.UNSURE}: " if self.state is State.UNSURE else ""
        return f"{unsure}{self.category} {self.confidence:.0%}"


@dataclass(frozen=True)
class Recognised:
    """A person in a picture, numbered from 0 in the order in which they were found."""

    picture: str
    person: int
    box: list[float]  # left, top, right, bottom, in pixels
    views: dict[str, Named]


def load(root: Path) -> Recogniser:
    """The workspace's recogniser. Raises UserError if there is none."""
    path = root / paths.RECOGNISER / paths.MODEL_FILE
    if not path.is_file():
        raise UserError(
            f"There is no recogniser ({path}): set recognition.train to true and run the stage train_recogniser; it needs "
            "two categories."
        )
    return recogniser.load(path)


def named(trained: Recogniser, view: str, seen: np.ndarray) -> list[Named]:
    """What a view says of features `[n, 2, d]`."""
    answers = trained.answers(view, seen)
    return [
        Named(state, trained.categories[category], float(confidence))
        for state, category, confidence in zip(answers.states, answers.category, answers.confidence, strict=True)
    ]


def people(
    trained: Recogniser, picture: np.ndarray, landmarks: np.ndarray, world: np.ndarray
) -> list[dict[str, Named]]:
    """What each view says of the persons in a picture uint8 `[h, w, 3]`.

    `landmarks` `[n, 33, >= 2]`: x and y as fractions of the picture; `world` `[n, 33, 3]`, metres.
    """
    seen = {}
    if "landmarks" in trained.views:
        seen["landmarks"] = features.of_poses(skeleton.normalise(world))
    if "pixels" in trained.views:
        height, width = picture.shape[:2]
        squares = [square(points[:, :2] * [width, height], trained.margin) for points in landmarks]
        seen["pixels"] = features.of_pictures(np.stack([crop(picture, *place, features.SIDE) for place in squares]))
    by_view = {view: named(trained, view, rows) for view, rows in seen.items()}
    return [{view: rows[i] for view, rows in by_view.items()} for i in range(len(landmarks))]


def _files(pictures: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of the picture, or of every file below the folder in order.

    Raises UserError if there is neither, DataError if the folder holds no file.
    """
    if pictures.is_file():
        yield pictures.name, pictures
        return
    if not pictures.is_dir():
        raise UserError(f"{pictures} does not exist.")
    names = sorted(entry.path for entry in walk(pictures) if entry.kind is EntryKind.FILE)
    names = [name for name in names if not is_ignored(Path(name).name)]
    if not names:
        raise DataError(f"The folder {pictures} holds no picture.")
    yield from ((name, pictures / name) for name in names)


def recognise(params: Params, root: Path, pictures: Path) -> Iterator[Recognised | str]:
    """Everybody in the pictures; of a file without anybody, or that is no picture, a sentence."""
    from tasks.extract.finder import finder  # takes a second to import
    from tasks.extract.landmarker import kept_offline

    trained, model = load(root), root / params.extract.model
    check(model, params.extract.model_sha256)
    with kept_offline(), finder(model, settings(params.extract, root)) as find:
        for name, path in _files(pictures):
            try:
                picture = open_picture(path, params.extract.min_side)
            except Refusal as refusal:
                yield f"{name}: {refusal.reason.replace('_', ' ')}: {refusal.detail}"
                continue
            found = [p for p in find(picture) if skeleton.torso_length(p.world) > 1e-3]
            if not found:
                yield f"{name}: no person"
                continue
            landmarks, world = (np.stack([getattr(p, what) for p in found]) for what in ("landmarks", "world"))
            pixels = landmarks[..., :2] * [picture.shape[1], picture.shape[0]]
            boxes = np.concatenate([pixels.min(axis=1), pixels.max(axis=1)], axis=1).round(1).tolist()
            for person, views in enumerate(people(trained, picture, landmarks, world)):
                yield Recognised(name, person, boxes[person], views)


def run(params: Params, root: Path, pictures: str) -> None:
    """Print the persons' categories and write reports/recognised.json.

    Raises UserError if there is no recogniser or no such picture, DataError if nobody is found.
    """
    rows = []
    for found in recognise(params, root, Path(pictures)):
        if isinstance(found, str):
            print(one_line(found))
            continue
        rows.append(found)
        said = "  ".join(f"{view}: {words}" for view, words in found.views.items())
        print(f"{one_line(found.picture)}  person {found.person}  {said}")
    if not rows:
        raise DataError(f"{pictures}: nobody was found.")
    files.write_json(root / paths.RECOGNISED, [asdict(row) for row in rows])
