"""Clips of people in motion by the built-in film: how far they follow the poses, and how much they flicker.

    python -m benchmarks.video --workspace DIR --root DIR [--images 160] [--film 60] [--count 8] [--seeds 1]

`--workspace` is a workspace with a trained picture model, such as `make train-poses` leaves. It is copied, not changed. For
each value of `video.model.shared_noise` (PYoCo, arXiv 2305.10474) the video model is trained for so many clips, sampled for the
poses of held-out clips and judged, by the pipeline's own stages on one core. Flicker and the distance of joints stand beside
those of held-out clips. Each result is stored in ROOT/results; called again, it goes on. ROOT/video.md has the table, and
ROOT/*.png the frames.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.recipes import PROJECT, Result, Workspace, markdown
from benchmarks.report import finish
from tasks import paths
from tasks.common import files
from tasks.config.params import load
from tasks.dataset import video_clips
from tasks.evaluate import video_quality
from tasks.sample import video as sample_stage
from tasks.synthetic import film
from tasks.train import stage as train_stage

SHARES = (0.0, 0.5, 0.9)
KEYS = ("found", "joint_error", "flicker", "change")
COPIED = (paths.PARAMS, paths.SHARDS, paths.DATASET, paths.POSES, paths.model_folder(Path(), "pictures"))


def prepare(workspace: Path, root: Path, clips: int) -> None:
    """Copy what the stages of clips need of a workspace, and make the clips, unless they are there."""
    if (root / paths.VIDEO_CLIPS).is_dir():
        return
    for name in COPIED:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if (workspace / name).is_dir():
            shutil.copytree(workspace / name, root / name, dirs_exist_ok=True)
        else:
            shutil.copyfile(workspace / name, root / name)
    if not (root / "models").exists():
        (root / "models").symlink_to((PROJECT / "models").resolve())
    Workspace(root, 0, 0).set(video__film__count=clips, video__sample__motions=0, video__sample__apart=0)
    params = load(root / paths.PARAMS)
    film.run(params, root)
    video_clips.run(params, root)


def measured(work: Workspace, share: float, seed: int, count: int) -> Result:
    """Train the video model with this share of common noise; the figures of its clips and of held-out clips."""
    work.shorten("video.model", ("warmup_images", "cooldown_images", "checkpoint_images", "ema_halflife_images"))
    work.set(
        video__model__shared_noise=share, video__model__seed=seed, video__model__ranks=1,
        video__sample__count=count, video__sample__seed=seed,
    )  # fmt: skip
    params = load(work.root / paths.PARAMS)
    began = time.process_time()
    train_stage.run(params, work.root, paths.VIDEO)
    trained = time.process_time()
    sample_stage.run(params, work.root)
    sampled = time.process_time()
    video_quality.run(params, work.root)
    grid = paths.sample_folder(work.root, paths.VIDEO) / paths.GRID
    shutil.copyfile(grid, work.root / f"shared-{share:g}-{seed}.png")
    metrics = files.read_json(work.root / paths.VIDEO_QUALITY / "video_quality.json")["metrics"]
    return {
        "train_seconds": trained - began, "seconds_per_clip": (sampled - trained) / count,
        **{f"{name}.{key}": metrics[f"{name}.{key}"] for name in ("samples", "heldout") for key in KEYS},
    }  # fmt: skip


def main() -> int:
    """Do what is not done yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="with a trained picture model")
    parser.add_argument("--root", type=Path, required=True, help="folder for everything; results in it are kept")
    parser.add_argument("--images", type=int, default=160, help="length of each training in clips")
    parser.add_argument("--film", type=int, default=60, help="clips that are filmed, of which 30 %% are held out")
    parser.add_argument("--count", type=int, default=8, help="clips that are sampled")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = Workspace(options.root, options.images, float("inf"))
    prepare(options.workspace, work.root, options.film)
    results: dict[float, list[Result]] = {share: [] for share in SHARES}
    for seed in range(options.seeds):
        for share in SHARES:
            made = work.result(f"shared-{share:g}-{seed}", partial(measured, work, share, seed, options.count))
            assert made is not None  # there is no time limit
            results[share].append(made)
    rows = [["`shared_noise`", "seed", "people found", "distance of joints", "flicker", "CPU seconds of a clip"]]
    for share, own in results.items():
        for seed, one in enumerate(own):
            found, error, flicker = (one[f"samples.{key}"] for key in ("found", "joint_error", "flicker"))
            rows.append([f"{share:g}", str(seed), f"{found:.2f}", f"{error:.2f}", f"{flicker:.3f}",
                         f"{one['seconds_per_clip']:.1f}"])  # fmt: skip
    real = results[SHARES[0]][0]
    held_out = [f"{real['heldout.found']:.2f}", f"{real['heldout.joint_error']:.2f}", f"{real['heldout.flicker']:.3f}"]
    rows.append(["held-out clips", "", *held_out, ""])
    table = markdown(rows)
    print(table)
    files.write_bytes(work.root / "video.md", table.encode())
    mean = {share: float(np.mean([one["samples.flicker"] for one in own])) for share, own in results.items()}
    goals = {"noise in common lowers flicker": mean[SHARES[-1]] < mean[0.0]}
    return finish("video", {f"{share:g}": own for share, own in results.items()}, goals)


if __name__ == "__main__":
    sys.exit(main())
