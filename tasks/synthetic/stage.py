"""Stage `mannequin`: the built-in data, pictures of an articulated figure whose joints are known.

Writes `data/raw/mannequin/<category>/<index>.png`, cycling through the categories, and beside each picture its ground truth,
`<index>.joints.json`:

    category, index, size       of the picture; size in pixels
    yaw, pitch                  degrees by which the figure is turned to its left, and the camera tilted down
    camera                      focal length and centre in pixels (see `render.Camera`)
    names, image, world         MediaPipe's 33 landmarks: pixels (u, v), and metres (x right, y down, z away) from the camera
    visible                     whether the landmark is not hidden by another part of the figure
    body                        the figure's lengths in metres (see `figure.Body`)

Every picture is a pure function of (seed, index, size). `data/listings/mannequin.json` has a digest of all files (see
`tasks.extract.listing`).
"""

from __future__ import annotations

import colorsys
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from tasks import paths
from tasks.common import experiment, files, machine
from tasks.common.errors import DataError
from tasks.common.pool import OrderedMap, WorkerDied
from tasks.common.skeleton import LANDMARKS
from tasks.config.params import Params, load
from tasks.synthetic.body import Outfit, dress, landmarks
from tasks.synthetic.figure import Body, rotation
from tasks.synthetic.postures import CATEGORIES, draw
from tasks.synthetic.render import Camera, Cones, Light, Room, extent, render

_DEPTH_OF_JOINT = 0.15  # metres: a surface at most this far in front of a joint belongs to the joint's own part


def run(params: Params, root: Path) -> None:
    """Draw the pictures of `params.mannequin`. The bytes do not depend on the number of workers.

    Raises DataError if a worker process dies.
    """
    mannequin = params.mannequin
    if _linked(params, root):
        return
    with files.new_folder(root / paths.MANNEQUIN) as folder:
        draw_all(folder, mannequin.seed, mannequin.size, mannequin.count, workers=machine.cores())
        digest = _digest(folder)
    files.write_json(root / paths.LISTINGS / "mannequin.json", {"sha256": digest})


def _linked(params: Params, root: Path) -> bool:
    """Link the pictures of an experiment's workspace if they are the same, drawn by the same code; returns whether they are."""
    home = experiment.workspace(root)
    listing, folder = home / paths.LISTINGS / "mannequin.json", home / paths.MANNEQUIN
    if home == root or not (listing.is_file() and folder.is_dir()):
        return False
    if _code(home) != _code(root) or load(home / paths.PARAMS).mannequin != params.mannequin:
        return False
    if files.read_json(listing) != {"sha256": _digest(folder)}:
        return False
    with files.new_folder(root / paths.MANNEQUIN) as copy:
        shutil.copytree(folder, copy, copy_function=os.link, dirs_exist_ok=True)
    files.write_bytes(root / paths.LISTINGS / "mannequin.json", listing.read_bytes())
    return True


def _code(root: Path) -> dict[str, bytes]:
    """The code that draws, as dvc.yaml names it: file -> content."""
    sources = [path for package in ("common", "synthetic") for path in (root / "tasks" / package).glob("*.py")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sources}


def _digest(folder: Path) -> str:
    """A digest of the names and bytes of all files below a folder."""
    sha = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sha.update(f"{path.relative_to(folder).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return sha.hexdigest()


def draw_all(folder: Path, seed: int, size: int, count: int, workers: int) -> None:
    """Draw pictures 0 ... count - 1 of a data set with their ground truth into category folders below `folder`.

    Raises DataError if a worker process dies.
    """
    for category in list(CATEGORIES)[:count]:
        (folder / category).mkdir()
    drawn = OrderedMap(partial(_artist, folder, seed, size), range(count), workers)
    with closing(drawn):
        try:
            for _ in tqdm(drawn, total=count, desc="mannequin", unit="picture", mininterval=1):
                pass
        except WorkerDied as error:
            raise DataError(
                f"A worker process died (exit code {error.exit_code}) while drawing picture {error.item}; "
                "give the machine more memory and run again."
            ) from error


@contextmanager
def _artist(folder: Path, seed: int, size: int) -> Iterator[Callable[[int], None]]:
    """In a worker: the function that draws and writes one picture."""

    def write(index: int) -> None:
        drawn = picture(seed, index, size)
        path = folder / str(drawn.truth["category"]) / f"{index:05d}.png"
        Image.fromarray(drawn.image).save(path, compress_level=6)
        path.with_suffix(".joints.json").write_text(json.dumps(drawn.truth) + "\n", encoding="utf-8")

    yield write


@dataclass(frozen=True)
class Scene:
    """A figure in front of its camera, in camera coordinates (metres). `joints` [33, 3]: its landmarks. Angles in degrees."""

    category: str
    yaw: float
    pitch: float
    body: Body
    cones: Cones
    joints: np.ndarray
    camera: Camera
    light: Light
    room: Room


@dataclass(frozen=True)
class Picture:
    """A picture, uint8 [size, size, 3], and its ground truth (JSON values only)."""

    image: np.ndarray
    truth: dict[str, object]


def picture(seed: int, index: int, size: int) -> Picture:
    """Picture `index` of the data set `seed`, `size` pixels square."""
    shown = scene(seed, index, size)
    image, depth = render(shown.cones, shown.camera, shown.light, shown.room)
    camera, pixels = shown.camera, shown.camera.project(shown.joints)
    truth: dict[str, object] = {
        "category": shown.category,
        "index": index,
        "size": size,
        "yaw": round(shown.yaw, 3),
        "pitch": round(shown.pitch, 3),
        "camera": {"focal": round(camera.focal, 4), "centre": [round(c, 4) for c in camera.centre]},
        "names": list(LANDMARKS),
        "image": np.round(pixels, 4).tolist(),
        "world": np.round(shown.joints, 6).tolist(),
        "visible": visible(pixels, shown.joints, depth).tolist(),
        "body": {name: round(value, 6) for name, value in asdict(shown.body).items()},
    }
    return Picture(image, truth)


def visible(pixels: np.ndarray, joints: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Whether each joint is visible, bool [33]: the nearest surface at its pixel is its own part of the body.

    `pixels` [33, 2] and `joints` [33, 3] are the same landmarks; `depth` is the picture's depth buffer in metres.
    """
    columns, rows = np.clip(pixels.astype(int), 0, len(depth) - 1).T
    unhidden: np.ndarray = depth[rows, columns] > joints[:, 2] - _DEPTH_OF_JOINT
    return unhidden


def scene(seed: int, index: int, size: int) -> Scene:
    """The scene of picture `index` of the data set `seed`."""
    rng = np.random.default_rng([seed, index])
    category = list(CATEGORIES)[index % len(CATEGORIES)]
    body, outfit, yaw = random_body(rng), random_outfit(rng), random_yaw(rng)
    _, parts = draw(category, body, rng)
    distance, height, pitch = rng.uniform(3, 5.5), rng.uniform(0.7, 1.6), rng.uniform(-4, 8)
    # From the figure's world to camera coordinates: rotate, move away and down, tilt the camera downward.
    tilt = rotation(0, pitch)
    turn, feet, up = tilt @ rotation(1, -yaw), tilt @ np.array([0, height, distance]), tilt @ np.array([0.0, -1, 0])
    cones = dress(body, parts, outfit).moved(turn, feet)
    return Scene(
        category=category,
        yaw=yaw,
        pitch=pitch,
        body=body,
        cones=cones,
        joints=landmarks(body, parts) @ turn.T + feet,
        camera=frame(cones, size, rng),
        light=random_light(rng, up),
        room=random_room(rng, up, feet, distance),
    )


def random_body(rng: np.random.Generator) -> Body:
    """A body with the mean proportions of Drillis & Contini (1966); every length and the girth vary."""
    height = rng.uniform(1.5, 1.95)

    def length(share: float, spread: float = 0.05) -> float:
        return height * share * float(np.exp(spread * np.clip(rng.standard_normal(), -2, 2)))

    return Body(
        thigh=length(0.245),
        shin=length(0.243),
        ankle=length(0.041),
        foot=length(0.15),
        hip=length(0.057, 0.08),
        pelvis=length(0.058),
        waist=length(0.085),
        chest=length(0.15),
        clavicle=length(0.089, 0.08),
        upper_arm=length(0.172),
        forearm=length(0.15),
        hand=length(0.05),
        neck=length(0.055),
        head=length(0.061),
        girth=height / 1.75 * rng.uniform(0.86, 1.18),
    )


def _colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value)))


_SKINS = np.array([[0.45, 0.29, 0.21], [0.6, 0.41, 0.29], [0.78, 0.57, 0.42], [0.93, 0.74, 0.6], [0.96, 0.79, 0.68]])
_HAIRS = np.array([[0.07, 0.05, 0.04], [0.2, 0.12, 0.07], [0.4, 0.24, 0.12], [0.72, 0.55, 0.3], [0.6, 0.6, 0.6]])


def random_outfit(rng: np.random.Generator) -> Outfit:
    """Clothes, skin and hair."""
    tone = rng.uniform(0, len(_SKINS) - 1.001)
    skin = _SKINS[int(tone)] + (tone % 1) * (_SKINS[int(tone) + 1] - _SKINS[int(tone)])
    hair = _HAIRS[rng.integers(len(_HAIRS))] * rng.uniform(0.8, 1.2)
    if abs(hair.mean() - skin.mean()) < 0.3:  # the face must contrast with the hair
        hair = 0.3 * hair
    shirt = skin
    while np.abs(shirt - skin).max() < 0.25:  # and the chest with the arms
        shirt = _colour(rng, (0.1, 0.8), (0.35, 0.95))
    skirt = bool(rng.random() < 0.15)
    return Outfit(
        skin=skin,
        shirt=shirt,
        trousers=_colour(rng, (0.1, 0.6), (0.15, 0.6)),
        shoes=_colour(rng, (0, 0.6), (0.15, 0.9)),
        hair=hair,
        sleeve=float(rng.choice([0.3, 0.5, 0.9, 1.95], p=[0.15, 0.45, 0.1, 0.3])),
        leg=rng.uniform(0.5, 0.8) if skirt else float(rng.choice([0.5, 0.85, 1.97], p=[0.2, 0.15, 0.65])),
        skirt=skirt,
        hair_length=float(rng.choice([0, rng.uniform(0.4, 1.2)])),
        bun=bool(rng.random() < 0.15),
    )


def random_yaw(rng: np.random.Generator) -> float:
    """The figure's rotation away from the camera in degrees: mostly frontal and three-quarter views, at most 80."""
    return float(80 * (2 * rng.beta(2, 2) - 1))


def frame(cones: Cones, size: int, rng: np.random.Generator) -> Camera:
    """A camera for which the figure fills 75 to 92 percent of the picture, near its centre."""
    boxes = extent(cones)
    low, high = boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)
    fill = rng.uniform(0.75, 0.92)
    focal = float(fill * size / (high - low).max())
    spare = (size - focal * (high - low)) / 2
    offset = rng.uniform(-0.5, 0.5, 2) * np.minimum(spare, 0.1 * size)
    centre = size / 2 - focal * (low + high) / 2 + offset
    return Camera(focal, (float(centre[0]), float(centre[1])), size)


def random_light(rng: np.random.Generator, up: np.ndarray) -> Light:
    """A light above and in front of the figure, from the left or from the right."""
    direction = np.array([rng.uniform(-0.7, 0.7), 0.0, -rng.uniform(0.8, 1.4)]) + rng.uniform(0.5, 1.0) * up
    return Light(direction / np.linalg.norm(direction), sun=rng.uniform(0.38, 0.55), sky=rng.uniform(0.54, 0.68))


def random_room(rng: np.random.Generator, up: np.ndarray, point: np.ndarray, distance: float) -> Room:
    """A floor through `point` and a wall behind the figure, which is `distance` metres from the camera."""
    waves = np.column_stack([rng.uniform(-1.5, 1.5, (4, 2)), rng.uniform(0, 6.3, 4), rng.uniform(0, 0.025, 4)])
    return Room(
        point=point,
        up=up,
        wall_distance=distance + rng.uniform(1, 4),
        floor=_colour(rng, (0.02, 0.3), (0.4, 0.8)),
        wall=_colour(rng, (0.02, 0.3), (0.55, 0.95)),
        waves=waves,
    )
