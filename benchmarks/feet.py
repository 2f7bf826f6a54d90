"""Feet that slide: where sliding comes from, and what the choices of `motion.model` against it do.

    python -m benchmarks.feet --root DIR [--images 9600] [--clips 1400] [--seeds 1] [--seconds S]

cause     From true held-out clips with a little noise, a model estimates the clips. Foot skating of the estimates, of the
          estimates with the true path of the hips, and of the true poses with the estimated path.
choices   The motion model of params.yaml without and with `sharpening` and `world_feet`, each trained for as long, sampled for
          the categories of the held-out clips and judged beside them.
repair    Held-out clips to which a drift was added, before and after `tasks.common.foot_lock`.

Everything is trained by the pipeline's own stages on one core. Each result is stored in DIR/results. With --seconds nothing new
is begun after that time; called again, it goes on. DIR/feet.md has the table.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.motion import arguments, ours, prepare
from benchmarks.recipes import Result, Workspace, markdown
from benchmarks.report import finish
from diffusion_core import rng
from diffusion_core.schedules import sigma_level
from tasks import paths
from tasks.common import files, foot_lock, motion
from tasks.dataset.shards import ShardDataset
from tasks.evaluate.motion_quality import plausibility
from tasks.models import model_file
from tasks.models.motion import CATEGORY

NOISE = 0.03  # sigma, in the network's units
DRIFT = 0.25  # torso lengths per second
KEYS = ("foot_skating", "jitter", "bone_change")
PLAIN = "plain"
CHOICES: dict[str, dict[str, float | bool]] = {
    PLAIN: {},
    "sharpening 2": {"sharpening": 2.0},
    "sharpening 4": {"sharpening": 4.0},
    "sharpening 8": {"sharpening": 8.0},
    "sharpening 2, world_feet": {"sharpening": 2.0, "world_feet": True},
}
NEUTRAL = {"sharpening": 0.0, "world_feet": False}


def cause(root: Path, folder: Path) -> Result:
    """Foot skating of what the model in `folder` makes of held-out clips with noise of sigma NOISE."""
    held_out, model = ShardDataset(root / paths.CLIPS, "val", "test"), model_file.load(folder, torch.device("cpu"))
    rate, examples = float(held_out.about["rate"]), model.examples(held_out)
    z = model.codec.encode(examples.x0)
    noise = rng.normal(z.shape[1:], 0, torch.arange(len(z))).to(z)
    level = sigma_level(torch.full((len(z),), NOISE, dtype=torch.float64))
    with torch.no_grad():
        estimate = model.denoiser(level.corrupt(z, noise), level, {CATEGORY: examples.cond[CATEGORY]})
    true, estimated = examples.x0.float().numpy(), model.codec.decode(estimate).float().numpy()
    true_path, true_poses = estimated.copy(), true.copy()
    true_path[:, :, motion.PATH], true_poses[:, :, motion.PATH] = true[:, :, motion.PATH], estimated[:, :, motion.PATH]
    clips = {"true": true, "estimate": estimated, "with the true path": true_path, "with the true poses": true_poses}
    return {name: plausibility(motion.from_features(one), rate)["foot_skating"] for name, one in clips.items()}


def repair(root: Path) -> Result:
    """Held-out clips, the same with a drift along the floor, and those with their feet locked."""
    held_out = ShardDataset(root / paths.CLIPS, "val", "test")
    clips, rate = held_out.clips(), float(held_out.about["rate"])
    angles = 2 * np.pi * rng.uniform((), 1, torch.arange(len(clips))).numpy()
    direction = np.stack([np.cos(angles), np.zeros(len(clips)), np.sin(angles)], axis=-1)
    path = DRIFT / rate * np.arange(clips.shape[1])[None, :, None] * direction[:, None]
    drifting = (clips + path[:, :, None]).astype(np.float32)
    sets = {"held-out clips": clips, "with drift": drifting, "with drift, locked": foot_lock.locked(drifting, rate)}
    return {name: plausibility(one, rate) for name, one in sets.items()}


def _listed(results: list[Result], key: str) -> str:
    """A figure of each training."""
    return ", ".join(f"{one[key]:.3g}" for one in results)


def main() -> int:
    """Do what is not done yet, and write the table of what is."""
    options = arguments(__doc__, images=9600, seeds=1)
    torch.set_num_threads(1)
    work = Workspace(options.root, options.images, options.seconds)
    prepare(work.root, options.clips)
    found: dict[str, list[Result]] = {name: [] for name in CHOICES}
    for seed in range(options.seeds):
        for name, choice in CHOICES.items():
            changes = {f"motion__model__{key}": value for key, value in {**NEUTRAL, **choice}.items()}
            result = work.result(f"{name}-{seed}", partial(ours, work, name, seed, **changes))
            if result is not None:
                found[name].append(result)
    default = work.keep(paths.MOTION, f"{PLAIN}-0")
    causes = work.result("cause", lambda: cause(work.root, default), bool(found[PLAIN]))
    repaired = work.result("repair", lambda: repair(work.root)) or {}
    rows = [["", "foot skating", "jitter", "bone change", "Frechet distance"]]
    for name, own in found.items():
        distances = [f"{one['frechet']:.2f} ({one['low']:.2f} to {one['high']:.2f})" for one in own]
        if own:
            rows.append([name, *(_listed(own, key) for key in KEYS), ", ".join(distances)])
    rows += [[name, *(_listed([one], key) for key in KEYS), ""] for name, one in repaired.items()]
    table = markdown(rows)
    print(table)
    files.write_bytes(work.root / "feet.md", table.encode())
    most = 1.5 * repaired["held-out clips"]["foot_skating"] if repaired else 0.0
    goals = {
        "foot skating within 1.5 of held-out clips": any(
            one["foot_skating"] <= most for own in found.values() for one in own
        )
    }
    return finish("feet", {"cause": causes, "choices": found, "repair": repaired}, goals)


if __name__ == "__main__":
    sys.exit(main())
