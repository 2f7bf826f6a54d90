"""The motion model on the built-in animation: beside two references, beside MDM, and with stills when clips are few.

    python -m benchmarks.motion --root DIR [--clips 1400] [--images N] [--seeds 3] [--seconds S]

Everything is trained by the pipeline's own stages on one core, with `motion.model` as in params.yaml unless said otherwise, and
judged by the bias-corrected Frechet distance of trajectories to held-out clips (`tasks/metrics/trajectories.py`).

    references   frames drawn independently of each other; joints independent of each other, with the right mean and
                 covariance over time of each joint; training clips as the floor
    full         the motion model on all training clips
    mdm          a model in the style of MDM (Tevet et al. 2022, arXiv 2209.14916), written from the paper: a transformer
                 encoder whose tokens are frames and one token for noise level and category, prediction of x0, 1,000 levels of
                 the cosine schedule. It has the same data, number of parameters and CPU time of training. Its learning rate is
                 the best of three at a quarter of that time
    few          20 clips alone, and the same clips with 1,000 stills (single frames of other clips) in joint training
    bits         a clip's output with other stills beside it, bit by bit

Each result is stored in DIR/results. With --seconds nothing new is begun after that time; called again, it goes on, also after
SIGTERM. DIR/motion.md has the table, DIR/*.png the motions.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from benchmarks.recipes import PROJECT, Result, Workspace, markdown
from benchmarks.report import finish
from diffusion_core import losses, presets, schedules, targets
from diffusion_core.conditioning import SEGMENT, Cond
from diffusion_core.losses import unit
from diffusion_core.nets.embedding import Embedding
from diffusion_core.recipe import Recipe
from diffusion_core.sampling import timesteps
from diffusion_core.sampling.loop import generate
from diffusion_core.schedules import Level
from diffusion_core.training import compute
from diffusion_core.training.trainer import TrainConfig, Trainer
from tasks import paths
from tasks.common import files, motion
from tasks.config.params import load
from tasks.dataset import clips as clips_stage
from tasks.dataset import dataset_table, shards
from tasks.dataset.dataset_table import Persons
from tasks.dataset.shards import ShardDataset
from tasks.evaluate.motion_quality import independent_frames, independent_joints, plausibility
from tasks.extract import poses_table
from tasks.metrics import trajectories
from tasks.metrics.frechet import frechet_estimate
from tasks.models import inputs, model_file
from tasks.models import motion as motion_examples
from tasks.plots import drawing, motion_plots
from tasks.sample import motion as sample_stage
from tasks.sample.stage import resampled
from tasks.synthetic import animate
from tasks.train import stage as train_stage

FEW, STILLS, BESIDE = 20, 1000, 4  # clips, stills, stills beside each clip
RATES = (3e-4, 1e-3, 2e-3)  # learning rates of the baseline
LAYERS, HEADS, STEPS, BATCH = 8, 4, 50, 64  # of the baseline; the paper's later release samples with 50 steps
KINDS = ("full", "mdm", "few_alone", "few_joint")


def prepare(root: Path, clips: int) -> None:
    """Make the workspace with animated clips, unless it is there."""
    if (root / paths.CLIPS).is_dir():
        return
    root.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(PROJECT / paths.PARAMS, root / paths.PARAMS)
    Workspace(root, 0, 0).set(motion__animation__count=clips)
    params = load(root / paths.PARAMS)
    animate.run(params, root)
    # No pictures, videos or motion captures.
    for part in params.raw.parts:
        folder = root / paths.POSES / part
        folder.mkdir(parents=True)
        with poses_table.Writer(folder):
            pass
    (root / paths.DATASET).mkdir(parents=True)
    nothing: dict[str, list[str]] = {
        name: [] for name in ("key", "source", "source_kind", "category", "group", "split")
    }
    numbers = np.zeros(0, np.int32)
    persons = Persons(
        **nothing, frame=numbers, cluster=numbers, crop=numbers.reshape(0, 3), pose=np.zeros((0, 33, 3), np.float32)
    )  # fmt: skip
    dataset_table.write(root / paths.DATASET, persons, [])
    clips_stage.run(params, root)


def prepare_few(full: Path, root: Path) -> None:
    """A workspace with FEW of the training clips, as many as possible of each category, and stills of the others."""
    if (root / paths.CLIPS).is_dir():
        return
    train, held_out = ShardDataset(full / paths.CLIPS, "train"), ShardDataset(full / paths.CLIPS, "val", "test")
    categories = [str(meta["category"]) for meta in train.metas()]
    turns: Counter[str] = Counter()
    order = []
    for i, name in enumerate(categories):
        order.append((turns[name], name, i))  # the first clip of each category, then the second of each
        turns[name] += 1
    few = [i for _, _, i in sorted(order)[:FEW]]
    others = sorted(set(range(len(train))) - set(few))
    rng = np.random.default_rng(0)
    frames = motion.in_place(train.take(others).clips())
    rows = rng.permutation(np.arange(STILLS) % len(others))
    moments = rng.integers(frames.shape[1], size=STILLS)
    stills = [
        (f"still-{i:05d}", {
            "pose.npy": shards.encode_pose(frames[row, moment]),
            "json": shards.encode_json({"category": categories[others[row]], "group": str(row), "source": str(row)}),
        })
        for i, (row, moment) in enumerate(zip(rows, moments, strict=True))
    ]  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(full / paths.PARAMS, root / paths.PARAMS)
    about = {"categories": sorted(set(categories)), "margin": 0.0}
    shards.write(root / paths.SHARDS, {"train": stills, "val": [], "test": []}, 1000, about)
    copied = {"train": train.take(few), "val": held_out, "test": held_out.take([])}
    members = {
        split: [(key, {name: part.read(i, name) for name in ("clip.npy", "json")}) for i, key in enumerate(part.keys)]
        for split, part in copied.items()
    }
    shards.write(root / paths.CLIPS, members, 1000, train.about)


def judged(clips: np.ndarray, held_out: ShardDataset) -> Result:
    """The distance of clips `[n, frames, 33, 3]` to the held-out ones with its interval, and how plausible they are."""
    real, sources = held_out.clips(), [str(meta["source"]) for meta in held_out.metas()]
    features, held = (trajectories.features(trajectories.fitted(one)) for one in (clips, real))
    names = [str(i) for i in range(len(clips))]
    estimate = frechet_estimate(features, held, np.random.default_rng(0), sources=(names, sources))
    own = plausibility(clips, float(held_out.about["rate"]))
    return {"frechet": estimate.value, "low": estimate.low, "high": estimate.high, **own}


def references(root: Path) -> Result:
    """Distances of the references, and the plausibility of held-out clips."""
    train, held_out = ShardDataset(root / paths.CLIPS, "train"), ShardDataset(root / paths.CLIPS, "val", "test")
    known, rng, count = train.clips(), np.random.default_rng(0), len(held_out)
    sets = {
        "floor": known,
        "frames": independent_frames(known, count, rng),
        "joints": independent_joints(known, count, rng),
    }
    found = {name: judged(clips, held_out) for name, clips in sets.items()}
    return {
        **found,
        "heldout": plausibility(held_out.clips(), float(held_out.about["rate"])),
        "clips": [len(train), count],
    }


def ours(work: Workspace, name: str, seed: int, **changes: Any) -> Result:
    """Train, sample and judge the motion model through the pipeline's stages."""
    held_out = ShardDataset(work.root / paths.CLIPS, "val", "test")
    work.set(
        motion__model__seed=seed, motion__model__ranks=1, motion__sample__seed=seed, motion__sample__examples=0,
        motion__sample__count=len(held_out), **changes,
    )  # fmt: skip
    work.shorten("motion.model", ("warmup_images", "cooldown_images", "checkpoint_images"))
    params = load(work.root / paths.PARAMS)
    began = time.process_time()
    train_stage.run(params, work.root, paths.MOTION)
    seconds = time.process_time() - began
    sample_stage.run(params, work.root)
    kept = work.keep(paths.MOTION, f"{name}-{seed}")
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(paths.model_folder(work.root, paths.MOTION), kept)
    samples = ShardDataset(paths.sample_folder(work.root, paths.MOTION), "samples")
    shutil.copyfile(samples.folder / paths.GRID, work.root / f"{name}-{seed}.png")
    model = model_file.load(kept, torch.device("cpu"))
    parameters = sum(p.numel() for p in model.denoiser.parameters())
    return {"train_seconds": seconds, "parameters": parameters, "images": params.motion.model.images,
            **judged(samples.clips(), held_out)}  # fmt: skip


class MotionEncoder(nn.Module):
    """MDM's network: `(x [B, frames, joints, channels], c_noise [B], cond) -> x0` of the same shape, given `vec:category`.

    Each frame is one token. A token before them holds noise level and category. Positions are sinusoidal, layers are those of
    Vaswani et al. 2017 (normalisation after the residual) with GELU and feed-forward layers of twice the width.
    """

    positions: Tensor

    def __init__(self, frames: int, joints: int, channels: int, categories: int, width: int) -> None:
        super().__init__()
        self.shape = (joints, channels)
        self.first = nn.Linear(joints * channels, width)
        self.embedding = Embedding(width, {"category": categories})
        layer = nn.TransformerEncoderLayer(width, HEADS, 2 * width, 0.1, "gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.last = nn.Linear(width, joints * channels)
        angles = torch.arange(frames + 1)[:, None] * 1e4 ** (-torch.arange(0, width, 2) / width)
        self.register_buffer("positions", torch.stack([angles.sin(), angles.cos()], -1).flatten(1), False)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        token = self.embedding(c_noise, cond)[:, None]
        h = self.layers(torch.cat([token, self.first(x.flatten(2))], 1) + self.positions)
        y: Tensor = self.last(h[:, 1:]).unflatten(-1, self.shape)
        return y


def mdm_recipe() -> Recipe:
    """Prediction of x0 with equal weights on 1,000 levels of the cosine schedule, ancestral sampling."""
    schedule = schedules.betas(schedules.cosine_betas(1000))
    return presets.ddpm(inputs.DATA_SD).replace(
        target=targets.X0,
        weight=unit(targets.X0),
        density=losses.discrete(schedule, 1000),
        timesteps=lambda n: timesteps.leading(schedule, n, 1000),
    )


def mdm_width(parameters: int, frames: int, categories: int) -> int:
    """The width at which the baseline's number of parameters is nearest to this one."""

    def count(width: int) -> int:
        return sum(p.numel() for p in MotionEncoder(frames, 33, 3, categories, width).parameters())

    return min(range(16, 257, 8), key=lambda width: abs(count(width) - parameters))


def mdm(root: Path, like: Result, seed: int, rate: float, share: float = 1.0) -> Result:
    """Train the baseline for a share of the CPU time that `like` took, sample and judge it."""
    train, held_out = ShardDataset(root / paths.CLIPS, "train"), ShardDataset(root / paths.CLIPS, "val", "test")
    config = load(root / paths.PARAMS).motion.model
    categories = train.categories()
    x0, _, names = motion_examples.clip_examples(train, mirrored=True)
    codec = inputs.fit_codec(x0.flatten(0, 1), per_coordinate=True)
    z, category = codec.encode(x0), motion_examples.one_hot(categories, names)
    width, recipe = mdm_width(like["parameters"], z.shape[1], len(categories)), mdm_recipe()

    def trainer(images: int) -> Trainer:
        torch.manual_seed(seed)
        net = MotionEncoder(z.shape[1], 33, 3, len(categories), width)
        settings = TrainConfig(
            images, BATCH, rate, warmup_images=images // 20, cooldown_images=images // 2,
            ema_halflife_images=max(images // 20, 1), condition_dropout=config.condition_dropout, seed=seed,
        )  # fmt: skip
        precision = compute.best_precision(torch.device("cpu"))
        return Trainer(
            recipe.denoiser(net), recipe, settings, lambda i: (z[i], {motion_examples.CATEGORY: category[i]}), len(z),
            compute=compute.Compute(precision),
        )  # fmt: skip

    trial = trainer(40 * BATCH)
    for _ in range(10):
        trial.step()
    began = time.process_time()
    while not trial.done:
        trial.step()
    per_image = (time.process_time() - began) / (30 * BATCH)
    images = max(int(share * like["train_seconds"] / per_image) // BATCH * BATCH, BATCH)
    trained = trainer(images)
    began = time.process_time()
    while not trained.done:
        trained.step()
    seconds = time.process_time() - began
    net = trained.averaged().eval()
    rows = resampled(len(held_out), len(held_out), seed)
    wanted = motion_examples.one_hot(categories, [str(held_out.meta(i)["category"]) for i in rows])
    with torch.no_grad():
        drawn = generate(
            net, recipe.timesteps(STEPS), recipe.step, z.shape[1:], seed, torch.arange(len(rows)),
            {motion_examples.CATEGORY: wanted}, batch=128,
        )  # fmt: skip
    clips = motion.from_features(codec.decode(drawn).float().numpy())
    if share == 1:
        asked = [categories[k] for k in wanted.argmax(1).tolist()]
        first = [asked.index(name) for name in sorted(set(asked))]
        sheet = motion_plots.strips(clips[first], [asked[i] for i in first])
        drawing.save_png(root / f"mdm-{seed}.png", sheet)
    parameters = sum(p.numel() for p in net.parameters())
    return {"train_seconds": seconds, "parameters": parameters, "images": images, "rate": rate, "width": width,
            **judged(clips, held_out)}  # fmt: skip


def bits(root: Path, folder: Path) -> Result:
    """Whether a clip's output has the same bits with 20 other choices of stills beside it, in both precisions."""
    model = model_file.load(folder, torch.device("cpu"))
    examples = model.examples(ShardDataset(root / paths.CLIPS, "val").take(range(4)))
    x0 = model.codec.encode(examples.x0)
    frames = x0.shape[1]
    cond = {key: value for key, value in examples.cond.items() if not key.startswith("weight")}
    segment = torch.cat([torch.zeros(frames, dtype=torch.int64), torch.arange(1, BESIDE + 1)]).expand(len(x0), -1)
    level = Level(torch.ones(len(x0), dtype=torch.float64), torch.full((len(x0),), 0.7, dtype=torch.float64))
    same: dict[str, bool] = {}
    for precision in ("fp32", "bf16"):
        outputs = []
        for k in range(21):
            generator = torch.Generator().manual_seed(k)
            beside = torch.randn(len(x0), BESIDE, 33, 3, generator=generator) * 0.5
            given: Cond = {SEGMENT: segment}
            for key, value in cond.items():
                if key == motion_examples.CATEGORY:
                    names = torch.eye(value.shape[-1])[
                        torch.randint(value.shape[-1], (len(x0), BESIDE), generator=generator)
                    ]
                    given[key] = torch.cat([value[:, None].expand(-1, frames, -1), names], 1)
                elif value.ndim == 4:
                    given[key] = torch.cat([value, value.new_zeros(len(x0), BESIDE, *value.shape[2:])], 1)
            with torch.no_grad(), compute.autocast(compute.Compute(precision), torch.device("cpu")):
                outputs.append(model.denoiser(torch.cat([x0, beside], 1), level, given)[:, :frames])
        same[precision] = all(torch.equal(outputs[0], other) for other in outputs[1:])
    return same


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of the mean over seeds (Student's t)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("-inf"), float("inf")
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def arguments(description: str | None, images: int, seeds: int) -> argparse.Namespace:
    """The options of a benchmark of the motion model, with these defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder for everything; results in it are kept")
    parser.add_argument("--clips", type=int, default=1400, help="animated clips, of which 30 %% are held out")
    parser.add_argument("--images", type=int, default=images, help="length of each training; 0: that of params.yaml")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing new after this time")
    return parser.parse_args()


def main() -> int:
    """Do what is not done yet, and write the table of what is."""
    options = arguments(__doc__, images=0, seeds=3)
    torch.set_num_threads(1)
    full, few = (Workspace(options.root / name, options.images, options.seconds) for name in ("full", "few"))
    prepare(full.root, options.clips)
    prepare_few(full.root, few.root)
    base = full.result("references", lambda: references(full.root))
    results: dict[str, dict[int, Result]] = {kind: {} for kind in KINDS}

    def keep(kind: str, seed: int, work: Workspace, make: Callable[[], Result]) -> None:
        result = work.result(f"{kind}-{seed}", make)
        if result is not None:
            results[kind][seed] = result

    rates: dict[float, Result] = {}
    for seed in range(options.seeds):
        keep("full", seed, full, partial(ours, full, "full", seed))
        if seed not in results["full"]:
            break
        like = results["full"][seed]
        for rate in RATES:
            tried = full.result(f"mdm-rate-{rate:g}", partial(mdm, full.root, like, 0, rate, 0.25))
            if tried is not None:
                rates[rate] = tried
        if len(rates) == len(RATES):
            best = min(rates, key=lambda rate: float(rates[rate]["frechet"]))
            keep("mdm", seed, full, partial(mdm, full.root, like, seed, best))
        for kind, beside in (("few_alone", 0), ("few_joint", BESIDE)):
            keep(kind, seed, few, partial(ours, few, kind, seed, motion__model__stills=beside))
    trained = full.keep(paths.MOTION, "full-0")
    same = full.result("bits", partial(bits, full.root, trained)) if results["full"] else None
    return report(options.root, base or {}, results, rates, same or {})


def report(
    root: Path, base: Result, results: dict[str, dict[int, Result]], rates: dict[float, Result], same: Result
) -> int:
    """Write the table, print the last line, and return the exit code."""
    head = ["", "Frechet distance", "foot skating", "jitter", "bone change", "parameters", "CPU seconds"]
    rows = [head]
    for name in ("floor", "frames", "joints"):
        one = base[name]
        rows.append(
            [
                name,
                f"{one['frechet']:.3f}",
                *(f"{one[key]:.3g}" for key in ("foot_skating", "jitter", "bone_change")),
                "",
                "",
            ]
        )
    rows.append(
        [
            "held-out clips",
            "",
            *(f"{base['heldout'][key]:.3g}" for key in ("foot_skating", "jitter", "bone_change")),
            "",
            "",
        ]
    )
    means: dict[str, tuple[float, float, float]] = {}
    for kind, own in results.items():
        if not own:
            continue
        means[kind] = mean_interval([float(one["frechet"]) for one in own.values()])
        mean, low, high = means[kind]
        average = {key: float(np.mean([one[key] for one in own.values()])) for key in (
            "foot_skating", "jitter", "bone_change", "parameters", "train_seconds")}  # fmt: skip
        spread = "" if len(own) < 2 else f" ({low:.3f} to {high:.3f}, {len(own)} seeds)"
        rows.append([kind, f"{mean:.3f}{spread}", *(f"{average[key]:.3g}" for key in ("foot_skating", "jitter", "bone_change")),
                     f"{average['parameters']:.0f}", f"{average['train_seconds']:.0f}"])  # fmt: skip
    text = markdown(rows)
    print(text)
    files.write_bytes(root / "motion.md", text.encode())
    goals: dict[str, bool] = {}
    if "full" in means:
        for name in ("frames", "joints"):
            goals[f"distance below a tenth of {name} drawn independently"] = (
                means["full"][0] < base[name]["frechet"] / 10
            )
        for key in ("foot_skating", "jitter"):
            average_ours = float(np.mean([one[key] for one in results["full"].values()]))
            goals[f"{key} within 1.5 of held-out clips"] = average_ours <= 1.5 * base["heldout"][key]
    goals["a clip's output has the same bits whatever stills are beside it"] = bool(same) and all(same.values())
    for name, one_kind, other, factor in (
        ("joint training beats clips alone beyond the interval", "few_joint", "few_alone", 1.0),
        ("distance at least 20 % lower than the baseline's", "full", "mdm", 0.8),
    ):
        seeds = sorted(set(results[one_kind]) & set(results[other]))
        differences = [
            float(results[one_kind][seed]["frechet"]) - factor * float(results[other][seed]["frechet"])
            for seed in seeds
        ]
        goals[name] = len(seeds) > 1 and mean_interval(differences)[2] < 0
    figures = {"references": base, "means": means, "results": results, "rates": rates, "bits": same}
    return finish("motion", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
