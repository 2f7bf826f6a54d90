"""Command `video_distance GENERATED REAL`: the distance between two sets of videos. Writes reports/video_distance/.

GENERATED and REAL are folders in the workspace. Both hold one of

    poses.parquet   the output of the extract stage for videos and motion captures (`data/poses/<part>`); the distance is
                    between trajectories of poses (tasks/metrics/trajectories.py)
    videos          the distance of Unterthiner et al. 2018 (arXiv 1812.01717) in the features of the network given as
                    `fidelity.video`, I3D or C3D

Each distance is reported with its floor, the distance between two halves of the real sources. A half has half the clips, so
the floor needs twice as many real clips as the distance itself. Only clips of different sources count as independent: ten clips
of one video say less about the law of videos than one clip each of ten videos (tasks/metrics/sources.py).
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
from tasks.common.files import check_folder, new_folder, write_json
from tasks.config.params import Params
from tasks.extract import video
from tasks.extract.findings import Kind
from tasks.extract.poses_table import POSES, read_poses
from tasks.extract.source_files import Refusal
from tasks.metrics import trajectories, video_networks
from tasks.metrics.feature_cache import cached
from tasks.metrics.findings import Findings
from tasks.metrics.frechet import frechet_estimate
from tasks.metrics.kid import kid
from tasks.metrics.precision_recall import Manifold

RATE = trajectories.FRAMES / trajectories.SECONDS  # frames per second of the clips for a network
SMALLEST = 16  # pixels; videos with a shorter side are refused


class ClipFeatures(NamedTuple):
    """`features` `[c, d]`, and the `source` of each clip."""

    features: np.ndarray
    source: list[str]


def from_poses(folder: Path) -> ClipFeatures:
    """Trajectory features of all people in the videos and motion captures of a part."""
    poses = read_poses(folder)
    rows = [i for i, kind in enumerate(poses.source_kind) if kind != Kind.PICTURE]
    clips = trajectories.clips(
        poses.world[rows], [poses.source[i] for i in rows], poses.track[rows].tolist(), poses.timestamp_s[rows]
    )
    return ClipFeatures(trajectories.features(clips.poses), clips.source)


def _videos(folder: Path) -> list[Path]:
    """The files below a folder whose first bytes are those of a video."""
    videos = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                if video.container(file.read(video.HEAD)) is not None:
                    videos.append(path)
    return videos


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
    """Features of all clips of some videos; each video is cached on disk by itself."""
    features, source = [], []
    for path in tqdm(videos, desc="videos", unit="video", mininterval=2):

        def blocks(path: Path = path) -> Iterator[np.ndarray]:
            return (clip[None] for clip in _clips(path))

        if next(blocks(), None) is not None:  # long enough for a clip
            clip_features = cached(root / paths.FEATURES, blocks, network.about, network, path.name)["features"]
            features.append(clip_features)
            source += [str(path)] * len(clip_features)
    return ClipFeatures(np.concatenate(features) if features else np.zeros((0, 1), np.float32), source)


def _halves(clips: ClipFeatures) -> tuple[ClipFeatures, ClipFeatures]:
    """The clips of a random half of the sources, and those of the others."""
    sources = np.unique(clips.source)
    chosen = set(np.random.default_rng(0).permutation(sources)[: len(sources) // 2].tolist())
    in_first = np.array([source in chosen for source in clips.source], bool)
    first, second = (
        ClipFeatures(clips.features[half], [clips.source[i] for i in np.flatnonzero(half)])
        for half in (in_first, ~in_first)
    )
    return first, second


def compare(generated: ClipFeatures, real: ClipFeatures) -> Findings:
    """Frechet and kernel distance with their floors, and precision and recall, of two sets of clips."""
    findings = Findings()
    for suffix, ((x, of_x), (y, of_y)) in (("", (generated, real)), ("_floor", _halves(real))):
        names = [f"frechet_video_distance{suffix}", f"kernel_video_distance{suffix}"]
        if not (len(x) and len(y)):
            findings.absent |= dict.fromkeys(names, "there are no clips on one of the two sides.")
            continue
        findings.add(names[0], partial(frechet_estimate, x, y, np.random.default_rng(0), sources=(of_x, of_y)))
        findings.add(names[1], partial(kid, x, y, sources=(of_x, of_y)))
    if len(generated.features) and len(real.features):
        findings.add_manifold("clips", generated.features, real.features)
    else:
        findings.absent |= {f"clips.{name}": "there are no clips on one of the two sides." for name in Manifold._fields}
    return findings


def run(params: Params, root: Path, generated: str, real: str) -> None:
    """Compare two folders; print the results and write video_distance.json.

    Raises UserError if a folder does not exist or holds neither poses nor videos, if the folders hold different kinds, or if
    weights are missing.
    """
    folders = [root / generated, root / real]
    for folder in folders:
        check_folder(folder)
    kinds = {(folder / POSES).is_file() for folder in folders}
    if kinds == {True}:
        first, second = (from_poses(folder) for folder in folders)
    else:
        videos = [_videos(folder) for folder in folders]
        for name, files in zip((generated, real), videos, strict=True):
            if not files:
                raise UserError(f"{name} holds no videos and no {POSES}, or the other folder holds the other kind.")
        if params.fidelity.video is None:
            raise UserError("fidelity.video is not given: a distance between videos needs the weights of I3D or C3D.")
        network = video_networks.load(params.fidelity.video, root)
        first, second = (from_videos(files, network, root) for files in videos)
    findings = compare(first, second)
    sizes = {"generated": len(first.source), "real": len(second.source)}
    report = {"metrics": findings.metrics, "absent": findings.absent, "clips": sizes, "folders": [generated, real]}
    with new_folder(root / paths.VIDEO_DISTANCE) as folder:
        write_json(folder / "video_distance.json", report)
    for name, value in sorted(findings.metrics.items()):
        print(f"{name}: {value:.4g}")
    for name, reason in sorted(findings.absent.items()):
        print(f"{name}: absent, {reason}")
