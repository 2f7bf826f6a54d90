"""Command `export_motion [SPLIT] [COUNT]`: samples of the motion model as files for other programs, in `exports/motion/`.

KEY.bvh    skeleton and joint angles (`motion_skeleton`), centimetres
KEY.csv    joint angles for robots, degrees, and the place of the hips, metres
KEY.webp   a looping picture
KEY.mp4    a video
motion.json  for each sample its category, seed, frame rate, and how far the skeleton is from the landmarks
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from tasks import paths
from tasks.common import files
from tasks.common.errors import UserError
from tasks.config.params import Params
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import SAMPLES
from tasks.plots import motion_plots
from tasks.sample import motion_skeleton

FOLDER = paths.MOTION
SIZE = 256  # pixels of the pictures


def run(params: Params, root: Path, split: str = SAMPLES, count: str = "15") -> None:
    """Export the first `count` samples of a split. Raises UserError if that is no number, DataError without such a split."""
    if not count.isdecimal():
        raise UserError(f"COUNT must be a number, got {count!r}.")
    samples = ShardDataset(paths.sample_folder(root, paths.MOTION), split)
    rate = float(samples.about["rate"])
    about = {}
    with files.new_folder(root / paths.EXPORTS / FOLDER) as folder:
        chosen = samples.take(range(min(int(count), len(samples))))
        for key, clip, meta in zip(chosen.keys, chosen.clips(), chosen.metas(), strict=True):
            about[key] = {**meta, "rate": rate, "skeleton_error_m": export(folder / key, clip, rate)}
        files.write_json(folder / "motion.json", about)
    print(f"{len(about)} motions are in {paths.EXPORTS / FOLDER}.")


def export(stem: Path, clip: np.ndarray, rate: float) -> float:
    """Write the four files of a clip `[frames, 33, 3]`; returns the skeleton's mean distance from the landmarks in metres."""
    fitted = motion_skeleton.fit(motion_skeleton.grounded(clip))
    files.write_bytes(stem.with_suffix(".bvh"), motion_skeleton.bvh(fitted, rate).encode())
    files.write_bytes(stem.with_suffix(".csv"), motion_skeleton.table(fitted, rate).encode())
    files.write_bytes(stem.with_suffix(".webp"), motion_plots.looping(clip[None], rate, 1, size=SIZE))
    pictures = [motion_plots.frame(clip, number, SIZE) for number in range(len(clip))]
    with files.new_file(stem.with_suffix(".mp4")) as path:
        mp4(path, pictures, rate)
    return round(fitted.error, 6)


def mp4(path: Path, pictures: list[np.ndarray], rate: float) -> None:
    """Write RGB pictures of one even size as an H.264 video."""
    import av  # FFmpeg, which takes time to load

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
