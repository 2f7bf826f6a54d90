"""Guidance of the picture model: poses against colours, for some scales and intervals of noise levels.

    python -m benchmarks.guidance --workspace DIR --out DIR [--count 224] [--seeds 0 1]

`--workspace` is a workspace with a trained picture model, such as `make train-poses` leaves; it is not changed. For each way
to guide, pictures of held-out people's poses are drawn with the same noise. MediaPipe judges in how many of them a person is
found, and which share of the joints is within 0.2 torso lengths of where it should be. The kernel distance of pixels judges the
colours. Everything runs on one core. Each result is stored in OUT; called again, it goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.recipes import Result, Workspace, markdown
from benchmarks.report import finish
from tasks import paths
from tasks.config.params import load
from tasks.config.sampling import Guidance
from tasks.dataset.shards import resized
from tasks.dataset.splits import SAMPLES, load_splits
from tasks.evaluate import pose_accuracy
from tasks.metrics.features import pixels
from tasks.metrics.kid import kid
from tasks.registry import model_registry
from tasks.sample import stage

SIDE = 16  # pixels of the pictures whose colours are compared
RESCALE = 0.7
WAYS: tuple[tuple[float, list[float] | None], ...] = (  # scale, and interval of sigma
    (6.0, None), (8.0, None), (6.0, [0.1, 10.0]), (6.0, [0.05, 3.0]), (8.0, [0.1, 5.0]),
)  # fmt: skip


def measured(root: Path, scale: float, interval: list[float] | None, seed: int, count: int) -> Result:
    """The figures of `count` pictures drawn with this guidance; `seed` decides their poses and the noise."""
    params = load(root / paths.PARAMS)
    guidance = Guidance(scale=scale, rescale=RESCALE, interval=interval)
    choice = params.sample.pictures.model_copy(update={"guidance": guidance, "seed": seed, "count": count})
    held_out = load_splits(root)[1].pictured()
    asked = stage.Conditions.of(held_out, stage.resampled(len(held_out), count, seed))
    model = model_registry.sampler(params, root, paths.model_folder(root, choice.model), choice)
    began = time.process_time()
    drawn = stage.draw_pictures(model, choice, {SAMPLES: asked})[SAMPLES]
    seconds = time.process_time() - began
    read = pose_accuracy.read_poses(drawn, root / params.extract.model, params.extract.min_confidence, 1)
    metrics = pose_accuracy.metrics(SAMPLES, read, asked.pose)
    colours = kid(_features(drawn), _features(held_out.pictures_uint8(drawn.shape[1]))).value
    return {
        "found": metrics[f"{SAMPLES}.found"], "within": metrics[f"{SAMPLES}.within_{pose_accuracy.NEAR}"],
        "colours": colours, "seconds": seconds,
    }  # fmt: skip


def _features(pictures: np.ndarray) -> np.ndarray:
    return pixels(np.stack([resized(SIDE, picture) for picture in pictures]).astype(np.float32) / 255)


def main() -> int:
    """Do what is not done yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="with a trained picture model")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--count", type=int, default=224, help="pictures of each way and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = Workspace(options.out, 0, float("inf"))
    rows = [["scale", "interval of sigma", "found", "within", "colour distance", "CPU seconds"]]
    figures: dict[str, list[Result]] = {}
    for scale, interval in WAYS:
        span = "all" if interval is None else f"{interval[0]:g} to {interval[1]:g}"
        own = []
        for seed in options.seeds:
            make = partial(measured, options.workspace, scale, interval, seed, options.count)
            one = work.result(f"{scale:g}, {span}, seed {seed}", make)
            assert one is not None  # there is no time limit
            own.append(one)
        figures[f"{scale:g}, {span}"] = own
        rows.append(
            [f"{scale:g}", span]
            + [", ".join(f"{one[key]:.3f}" for one in own) for key in ("found", "within", "colours")]
            + [", ".join(f"{one['seconds']:.0f}" for one in own)]
        )
    print(markdown(rows))
    return finish("guidance", figures, {})


if __name__ == "__main__":
    sys.exit(main())
