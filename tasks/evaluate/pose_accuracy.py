"""Stage `pose_accuracy`: do generated pictures show the poses that were asked for? Writes reports/pose_accuracy/.

MediaPipe reads the pose in every generated picture, and it is compared with the pose that the picture was generated for. The
landmarker makes errors of its own, more so in small pictures. So real held-out pictures, reduced to the same size, are read in
the same way and give the floor; the error to another sample's pose is the error of chance. Pictures that were generated for
conditions of the training set are read for comparison. The poses read in the samples are kept in read.npz for the copy test:
`key` and `pose` (normalised, NaN where nobody is found).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from tasks import paths
from tasks.common import machine, skeleton
from tasks.common.arrays import Arrays
from tasks.common.blocks import computed
from tasks.common.errors import UserError
from tasks.common.files import new_folder, write_json
from tasks.common.pool import OrderedMap, WorkerDied
from tasks.common.subset import evenly_spaced
from tasks.config.params import Params
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import COMPARISON, SAMPLES, load_splits
from tasks.evaluate import stored_poses
from tasks.plots import drawing

READ_AT = 512  # pixels to which a picture with its border is enlarged before it is read
BORDER = 0.5  # of the picture's side, with its edge repeated: the detector misses people who fill the picture
MOST = 256  # pictures read of each set
BLOCK = 64  # pictures
NEAR, FAR = 0.2, 0.5  # torso lengths within which the shares of joints are counted
SHOWN = 24  # pictures in the figure


@contextmanager
def _reader(model: Path, min_confidence: float) -> Iterator[Callable[[np.ndarray], np.ndarray | None]]:
    """In a worker: a function from a picture to its normalised pose `[33, 3]`, or None if nobody is found."""
    # Imported here, since mediapipe takes a second to import and the parent process does not use it.
    from tasks.extract.landmarker import Landmarker, kept_offline

    with kept_offline(), Landmarker(model, min_confidence) as landmarker:

        def read(picture: np.ndarray) -> np.ndarray | None:
            border = round(BORDER * len(picture))
            framed = Image.fromarray(np.pad(picture, ((border, border), (border, border), (0, 0)), mode="edge"))
            persons = landmarker.detect(np.asarray(framed.resize((READ_AT, READ_AT), Image.Resampling.BICUBIC)))
            if not persons or skeleton.torso_length(persons[0].world) < 1e-3:
                return None
            return skeleton.normalise(persons[0].world)

        yield read


@contextmanager
def pose_reader(model: Path, min_confidence: float, workers: int) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """What reads the poses of pictures, see `read_poses`; its workers start with the first pictures and stay."""
    no_pictures: list[np.ndarray] = []
    results = OrderedMap(partial(_reader, model, min_confidence), no_pictures, workers)

    def read(pictures: np.ndarray) -> np.ndarray:
        poses = np.full((len(pictures), 33, 3), np.nan, np.float32)
        results.extend(list(pictures))
        found = islice(results, len(pictures))
        try:
            for i, pose in enumerate(tqdm(found, total=len(pictures), desc="read poses", mininterval=2)):
                if pose is not None:
                    poses[i] = pose
        except WorkerDied as error:
            raise UserError("A process that reads poses with MediaPipe died.", code=3) from error
        return poses

    with closing(results):
        yield read


def read_poses(pictures: np.ndarray, model: Path, min_confidence: float, workers: int) -> np.ndarray:
    """Poses read from pictures uint8 `[n, s, s, 3]`: float32 `[n, 33, 3]`, NaN where nobody is found.

    Raises UserError if the landmarker's model is missing or a worker dies.
    """
    with pose_reader(model, min_confidence, workers) as read:
        return read(pictures)


def joint_errors(read: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Distances of the 12 limb joints between poses `[n, 33, 3]` in torso lengths: `[n, 12]`."""
    limbs = list(skeleton.LIMBS)
    errors: np.ndarray = np.linalg.norm(read[:, limbs] - asked[:, limbs], axis=-1)
    return errors


def metrics(prefix: str, read: np.ndarray, asked: np.ndarray, frames: int = 1) -> dict[str, float]:
    """Share of pictures in which a person is found, and of those the mean joint error (torso lengths) and the shares of
    joints within NEAR and FAR; `_chance` is the mean error to the next picture's pose, or, of clips of `frames` pictures, to
    the pose in the next clip."""
    found = np.isfinite(read).all(axis=(1, 2))
    numbers = {f"{prefix}.found": float(found.mean())}
    if found.any():
        errors = joint_errors(read[found], asked[found])
        numbers |= {
            f"{prefix}.joint_error": float(errors.mean()),
            f"{prefix}.within_{NEAR}": float((errors < NEAR).mean()),
            f"{prefix}.within_{FAR}": float((errors < FAR).mean()),
            f"{prefix}.joint_error_chance": float(
                joint_errors(read[found], np.roll(asked, frames, axis=0)[found]).mean()
            ),
        }
    return numbers


def _figure(pictures: np.ndarray, asked: np.ndarray, read: np.ndarray, path: Path) -> None:
    """Asked pose | picture | pose read from it."""
    tiles, captions = [], []
    nobody = np.full((96, 96, 3), 255, np.uint8)
    for picture, asked_pose, read_pose in zip(pictures, asked, read, strict=True):
        found = bool(np.isfinite(read_pose).all())
        right = drawing.draw_pose(read_pose) if found else nobody
        tiles.append(np.concatenate([drawing.draw_pose(asked_pose), drawing.enlarge(picture, 96), right], axis=1))
        error = joint_errors(read_pose[None], asked_pose[None]).mean()
        captions.append(f"asked | picture | read: {error:.2f} torso off" if found else "asked | picture | nobody found")
    drawing.save_png(path, drawing.sheet(tiles, 3, captions))


def _read_in_blocks(params: Params, root: Path, sets: Mapping[str, ShardDataset], size: int) -> dict[str, np.ndarray]:
    """The poses read in the pictures of each set, at `size` pixels; BLOCK pictures are a block (`tasks.common.blocks`)."""
    places = [(name, start) for name, dataset in sets.items() for start in range(0, len(dataset), BLOCK)]
    poses: dict[str, list[np.ndarray]] = {name: [] for name in sets}
    workers, confidence = params.extract.workers or machine.cores(), params.extract.min_confidence
    with pose_reader(root / params.extract.model, confidence, workers) as read:

        def block(name: str, start: int) -> Arrays:
            rows = range(start, min(start + BLOCK, len(sets[name])))
            return {"pose": read(sets[name].take(rows).pictures_uint8(size))}

        work = [partial(block, *place) for place in places]
        for (name, _), arrays in zip(places, computed(work, "read poses"), strict=True):
            poses[name].append(arrays["pose"])
    return {name: np.concatenate(parts) for name, parts in poses.items()}


def run(params: Params, root: Path) -> None:
    """Read the poses in the generated pictures; write pose_accuracy.json (flat metrics) and a figure.

    Raises DataError if samples or shards are missing, UserError if the landmarker's model is.
    """
    samples, comparison = (ShardDataset(paths.sample_folder(root, "pictures"), name) for name in (SAMPLES, COMPARISON))
    numbers: dict[str, float] = {}
    stored: tuple[list[str], np.ndarray] = [], np.zeros((0, 33, 3), np.float32)
    with new_folder(root / paths.POSE_ACCURACY) as folder:
        if len(samples):
            size = samples.picture(0).shape[0]
            sets = {
                "pictures": samples,
                "train_conditions": comparison,
                "floor": load_splits(root)[1].pictured(),
            }
            some = {
                name: dataset.take(evenly_spaced(len(dataset), MOST)) for name, dataset in sets.items() if len(dataset)
            }
            poses = _read_in_blocks(params, root, some, size)
            for name, dataset in some.items():
                numbers |= metrics(name, poses[name], dataset.poses())
            read = some["pictures"]
            shown = read.take(range(min(SHOWN, len(read))))
            _figure(shown.pictures_uint8(size), shown.poses(), poses["pictures"][:SHOWN], folder / "pose_accuracy.png")
            stored = list(read.keys), poses["pictures"]
        stored_poses.write(folder, *stored)
        write_json(folder / "pose_accuracy.json", {"metrics": numbers})
