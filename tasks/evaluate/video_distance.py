"""Command `video_distance GENERATED REAL`: how near two sets of videos are. Writes reports/video_distance/.

Two folders in the workspace that hold either

    poses.parquet   what the extract stage leaves of videos and motion captures (`data/poses/<part>`): the distance is between
                    trajectories of poses (tasks/metrics/trajectories.py)
    videos          the distance is that of Unterthiner et al. 2018 (arXiv 1812.01717) in the features of the network of
                    `fidelity.video`, I3D or C3D

Every distance stands beside its floor, that of one half of the real sources to the other half: with half as many clips it needs
twice as many as the distance itself. Only clips of different sources count as independent: ten clips of one video say less
about the law of videos than one clip each of ten (tasks/metrics/sources.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from tasks import paths
from tasks.common.errors import DataError, UserError
from tasks.common.files import new_folder, write_json
from tasks.config.params import Params
from tasks.extract import video
from tasks.extract.decode import Refusal
from tasks.extract.findings import Kind
from tasks.extract.poses_table import POSES, read_poses
from tasks.metrics import trajectories, video_networks
from tasks.metrics.feature_cache import cached
from tasks.metrics.findings import Findings
from tasks.metrics.frechet import frechet_estimate
from tasks.metrics.kid import kid
from tasks.metrics.precision_recall import Manifold

RATE = trajectories.FRAMES / trajectories.SECONDS  # frames a second of the clips that a network sees
SMALLEST = 16  # pixels of a frame's side


class ClipFeatures(NamedTuple):
    """`features` `[c, d]`, and the `source` that each clip is from."""

    features: np.ndarray
    source: list[str]


def from_poses(folder: Path) -> ClipFeatures:
    """Trajectory features of everybody in the videos and motion captures of a part."""
    poses = read_poses(folder)
    rows = [i for i, kind in enumerate(poses.source_kind) if kind != Kind.PICTURE]
    found = trajectories.clips(
        poses.world[rows], [poses.source[i] for i in rows], poses.track[rows].tolist(), poses.timestamp_s[rows]
    )
    return ClipFeatures(trajectories.features(found.poses), found.source)


def _videos(folder: Path) -> list[Path]:
    """The files below a folder that begin like a video."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                if video.container(file.read(16)) is not None:
                    found.append(path)
    return found


def _clips(path: Path) -> Iterator[np.ndarray]:
    """Clips uint8 `[FRAMES, h, w, 3]` of a video, one after another without overlap, at RATE frames a second."""
    frames: list[np.ndarray] = []
    with path.open("rb") as file:
        try:
            for frame in video.sampled(file, RATE, SMALLEST):
                frames.append(frame.picture)
                if len(frames) == video_networks.FRAMES:
                    yield np.stack(frames)
                    frames = []
        except Refusal as refusal:
            raise DataError(f"{path} cannot be read: {refusal}.") from refusal


def from_videos(videos: Sequence[Path], network: video_networks.ClipNetwork, root: Path) -> ClipFeatures:
    """Features of all clips of some videos, kept on disk video by video."""
    features, source = [], []
    for path in tqdm(videos, desc="videos", unit="video", mininterval=2):

        def blocks(path: Path = path) -> Iterator[np.ndarray]:
            return (clip[None] for clip in _clips(path))

        if next(blocks(), None) is not None:  # long enough for a clip
            found = cached(root / paths.FEATURES, blocks, network.about, network, path.name)["features"]
            features.append(found)
            source += [str(path)] * len(found)
    return ClipFeatures(np.concatenate(features) if features else np.zeros((0, 1), np.float32), source)


def _halves(clips: ClipFeatures) -> tuple[ClipFeatures, ClipFeatures]:
    """The clips of a random half of the sources, and those of the others."""
    sources = np.unique(clips.source)
    chosen = set(np.random.default_rng(0).permutation(sources)[: len(sources) // 2].tolist())
    first = np.array([source in chosen for source in clips.source], bool)
    one, other = (
        ClipFeatures(clips.features[half], [clips.source[i] for i in np.flatnonzero(half)]) for half in (first, ~first)
    )
    return one, other


def compare(generated: ClipFeatures, real: ClipFeatures) -> Findings:
    """Frechet and kernel distance, floors, precision and recall of two sets of clips; what is absent has its reason."""
    found = Findings()
    for suffix, ((x, of_x), (y, of_y)) in (("", (generated, real)), ("_floor", _halves(real))):
        names = [f"frechet_video_distance{suffix}", f"kernel_video_distance{suffix}"]
        if not (len(x) and len(y)):
            found.absent |= dict.fromkeys(names, "there are no clips on one of the two sides.")
            continue
        found.add(names[0], partial(frechet_estimate, x, y, np.random.default_rng(0), sources=(of_x, of_y)))
        found.add(names[1], partial(kid, x, y, sources=(of_x, of_y)))
    if len(generated.features) and len(real.features):
        found.add_manifold("clips", generated.features, real.features)
    else:
        found.absent |= {f"clips.{name}": "there are no clips on one of the two sides." for name in Manifold._fields}
    return found


def run(params: Params, root: Path, generated: str, real: str) -> None:
    """Compare two folders; prints what was found and writes video_distance.json.

    Raises UserError if a folder holds neither poses nor videos, if the two differ in that, or if weights are missing.
    """
    folders = [root / generated, root / real]
    kinds = {(folder / POSES).is_file() for folder in folders}
    if kinds == {True}:
        first, second = (from_poses(folder) for folder in folders)
    else:
        videos = [_videos(folder) if folder.is_dir() else [] for folder in folders]
        for name, some in zip((generated, real), videos, strict=True):
            if not some:
                raise UserError(f"{name} holds no videos and no {POSES}, or the other folder holds the other kind.")
        if params.fidelity.video is None:
            raise UserError("fidelity.video is not given: a distance between videos needs the weights of I3D or C3D.")
        network = video_networks.load(params.fidelity.video, root)
        first, second = (from_videos(some, network, root) for some in videos)
    found = compare(first, second)
    sizes = {"generated": len(first.source), "real": len(second.source)}
    report = {"metrics": found.metrics, "absent": found.absent, "clips": sizes, "folders": [generated, real]}
    with new_folder(root / paths.VIDEO_DISTANCE) as folder:
        write_json(folder / "video_distance.json", report)
    for name, value in sorted(found.metrics.items()):
        print(f"{name}: {value:.4g}")
    for name, reason in sorted(found.absent.items()):
        print(f"{name}: absent, {reason}")
