"""Every recipe and every sampler on the mannequins, trained, sampled and judged by the pipeline's own stages.

    python -m benchmarks.recipes --root DIR [--shards DIR] [--images 40000] [--seconds 400] [--pictures]

Every recipe is trained on the same poses for the same number of images, with everything else as in params.yaml, and sampled
with its default sampler. Some are also sampled in other ways, such as without limits of the estimate of x0. Then every sampler
draws from the model of the default recipe at 5, 10, 20 and 50 evaluations of the network, and UniPC and the sampler that was
best at 10 also at 200. All sets of samples are judged by their bias-corrected Frechet pose distance to held-out poses with its
95 % interval, as in the stage `fidelity`.

Each result is stored in DIR/results. With --seconds nothing new is begun after that time; called again, it goes on, also after
SIGTERM. DIR/recipes.md has the tables and DIR/recipes.png the poses, one row for each recipe. `--pictures` trains six recipes
on pictures of 64 pixels, too, on the latents of a principal-component codec. MediaPipe judges in how many of their pictures a
person is found, and in which pose; the kernel distance of pixels judges the rest. DIR/pictures.png has a row for each recipe.
`benchmarks.mixed` compares the mixed models.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from benchmarks.report import finish
from diffusion_core import choices
from diffusion_core.choices import SAMPLERS, Sampling
from diffusion_core.nets.pose_transformer import PoseTransformer
from diffusion_core.sampling.loop import generate
from diffusion_core.training_choices import RECIPES, Training, default_sampler
from tasks import paths
from tasks.common import files
from tasks.common.subset import evenly_spaced
from tasks.config.params import load, set_values
from tasks.config.sampling import SamplingChoices
from tasks.dataset import splits
from tasks.dataset.shards import ShardDataset
from tasks.evaluate import pose_accuracy
from tasks.evaluate.fidelity import independent_joints
from tasks.metrics.features import joints, pixels
from tasks.metrics.frechet import frechet_estimate
from tasks.metrics.kid import kid
from tasks.models import modality, model_file
from tasks.models.sampler import Sampler
from tasks.plots import drawing
from tasks.sample import stage as sample_stage
from tasks.train import stage as train_stage

PROJECT = Path(__file__).resolve().parents[1]
DEFAULT = "edm"
STEPS = 18
SAME = {"euler": "ddim"}  # without churn
BATCH = 250  # of the 1000 poses that are drawn
EVALUATIONS = (5, 10, 20, 50)
FEW, MANY = 10, 200
COMPARED = 20  # evaluations at which the table also shows KID and seconds
SHOWN = 8  # poses in the picture
# Beside the recipes as they are: the log noise levels that were measured of the data.
MEASURED = {"edm_auto": ("edm", {"edm": {"p_mean": "auto", "p_std": "auto"}})}
PICTURE_RECIPES = ("edm", "edm2", "ddpm", "rectified_flow", "simple_diffusion", "trigflow")
PICTURE_SIDE, PICTURES = 64, 96  # pixels, and how many pictures are drawn
# Recipes that need more steps than the others, or another sampler than their own: (sampler, steps).
LONGER = {"ncsn": ("dpmpp_2m_sde", 60), "vdm": ("dpmpp_2m_sde", 60), "score_subvp": (None, 50)}
# Other ways to draw from models of the first table: (recipe, name, sampler, steps, parameters of `sample.poses`).
UNLIMITED = {"guidance": {"threshold": "none"}}
VARIANTS: tuple[tuple[str, str, str | None, int, dict[str, Any]], ...] = (
    *(
        (recipe, "no limits", None, STEPS, UNLIMITED)
        for recipe in ("ddpm", "score_vp", "score_subvp", "score_ve", "vdm")
    ),
    *((recipe, f"{STEPS} steps", None, STEPS, {}) for recipe in LONGER),
)
RESTORED = "cold_mask", "from masked training poses"
Result = dict[str, Any]


class Workspace:
    """The folder in which everything happens, and the results so far."""

    def __init__(self, root: Path, images: int, seconds: float, net: Sequence[int] | None = None) -> None:
        self.root, self.images, self.ends = root, images, time.monotonic() + seconds
        self.net = dict(zip(("poses__width", "poses__depth", "poses__batch"), net or (), strict=False))

    def result(self, name: str, make: Callable[[], Result], wanted: bool = True) -> Result | None:
        """The stored result of a piece of work, made if it is wanted and there is time; None if there is not."""
        path = self.root / "results" / f"{name}.json"
        if not path.is_file():
            if not wanted or time.monotonic() > self.ends:
                return None
            began = time.monotonic()
            files.write_json(path, make())
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        stored: Result = files.read_json(path)
        return stored

    def has(self, name: str) -> bool:
        """Whether a piece of work is done."""
        return (self.root / "results" / f"{name}.json").is_file()

    def set(self, **values: Any) -> None:
        """Write parameters; `__` stands for the dot."""
        set_values(self.root / paths.PARAMS, {key.replace("__", "."): value for key, value in values.items()})

    def shorten(self, section: str, keys: Sequence[str]) -> None:
        """Scale these lengths of the training in a section, such as `motion.model`, so that it sees `images`; 0: leave them."""
        settings: Any = load(self.root / paths.PARAMS)
        for name in section.split("."):
            settings = getattr(settings, name)
        ratio = self.images / settings.images if self.images else 1
        lengths = {key: int(getattr(settings, key) * ratio) for key in ("images", *keys)}
        self.set(**{f"{section}.{key}": value for key, value in lengths.items()})

    def restore(self, source: Path) -> None:
        """Make a kept model the trained model of poses."""
        shutil.rmtree(paths.model_folder(self.root, "poses"), ignore_errors=True)
        shutil.copytree(source, paths.model_folder(self.root, "poses"))

    def keep(self, model: str, name: str) -> Path:
        """Where the trained model of a recipe is kept."""
        return self.root / "kept" / model / name


def prepare(root: Path, shards: Path | None) -> None:
    """Make the workspace with the shards of the mannequins, or copies of other shards, unless it is there."""
    if not (root / paths.PARAMS).is_file():
        root.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / paths.PARAMS, root / paths.PARAMS)
        (root / "models").symlink_to((PROJECT / "models").resolve())
    if (root / paths.SHARDS).is_dir():
        return
    if shards is not None:
        shutil.copytree(shards, root / paths.SHARDS)
        return
    for name in ("dvc.yaml", "forgotten.json"):
        shutil.copyfile(PROJECT / name, root / name)
    for command in (["mannequin"], ["list_parts"], ["extract", "mannequin"], ["curate"], ["shard"]):
        subprocess.run([sys.executable, "-m", "tasks", *command], cwd=root, check=True)


@contextmanager
def counted() -> Iterator[list[int]]:
    """How often the network of the poses is evaluated inside this context: a list with one number."""
    count = [0]

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        count[0] += isinstance(module, PoseTransformer)

    handle = register_module_forward_hook(hook)
    try:
        yield count
    finally:
        handle.remove()


def judge(root: Path) -> Result:
    """The distances of samples/poses to the held-out poses, with their intervals."""
    return judged(root, ShardDataset(paths.sample_folder(root, "poses"), splits.SAMPLES).poses())


def judged(root: Path, poses: np.ndarray) -> Result:
    """The Frechet distance and the kernel distance of poses `[n, 33, 3]` to the held-out poses, with their intervals."""
    _, heldout = splits.load_splits(root)
    estimate = frechet_estimate(joints(poses), joints(heldout.poses()), np.random.default_rng(0))
    kernel = kid(joints(poses), joints(heldout.poses()))
    return {
        "frechet": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "kid": kernel.value,
        "kid_low": kernel.low,
        "kid_high": kernel.high,
        "finite": bool(np.isfinite(poses).all()),
    }


def reference(root: Path) -> Result:
    """The same distance of the training poses, and of noise with the mean and covariance of each joint."""
    train, heldout = (one.poses() for one in splits.load_splits(root))
    noise = independent_joints(train, 1000, np.random.default_rng(0))
    found: Result = {}
    for name, poses in (("floor", train), ("noise", noise)):
        estimate = frechet_estimate(joints(poses), joints(heldout), np.random.default_rng(0))
        found |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return found


def draw(work: Workspace, sampler: str, steps: int) -> Result:
    """Draw poses from artifacts/poses through the sampling stage, and judge them."""
    work.set(sample__poses__sampler=sampler, sample__poses__steps=steps, sample__poses__batch=BATCH)
    began = time.process_time()
    with counted() as evaluations:
        params = load(work.root / paths.PARAMS)
        sample_stage.run(params, work.root, "poses")
    seconds = time.process_time() - began
    return {"sampler": sampler, "steps": steps, "evaluations": evaluations[0] * BATCH // params.sample.poses.count,
            "seconds": seconds, **judge(work.root)}  # fmt: skip


def train_poses(work: Workspace, name: str) -> Result:
    """Train a recipe on the poses, and keep the model."""
    recipe, options = MEASURED.get(name, (name, {}))
    work.set(
        sample__poses__sampler=default_sampler(recipe), sample__poses__steps=STEPS, poses__recipe=recipe,
        poses__options=options, poses__images=work.images, poses__cooldown_images=work.images // 2,
        poses__checkpoint_images=10_000, poses__watch_images=work.images, poses__keep="last", poses__ranks=1, **work.net,
    )  # fmt: skip
    began = time.process_time()
    train_stage.run(load(work.root / paths.PARAMS), work.root, "poses")
    seconds = time.process_time() - began
    kept = work.keep("poses", name)
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(paths.model_folder(work.root, "poses"), kept)
    return {"recipe": name, "train_seconds": seconds}


def draw_recipe(work: Workspace, name: str) -> Result:
    """Draw poses from the kept model of a recipe, judge them, and keep some of them as a picture."""
    sampler, steps = LONGER.get(name, (None, STEPS))
    drawn = draw_variant(work, name, sampler, steps, {})
    poses = ShardDataset(paths.sample_folder(work.root, "poses"), splits.SAMPLES).poses()[:SHOWN]
    row = np.concatenate([drawing.draw_pose(pose) for pose in poses], axis=1)
    drawing.save_png(work.keep("poses", name) / "poses.png", row)
    return drawn


def draw_variant(work: Workspace, name: str, sampler: str | None, steps: int, changes: Result) -> Result:
    """Draw from the kept model of a recipe in one way, and judge it."""
    work.restore(work.keep("poses", name))
    recipe, options = MEASURED.get(name, (name, {}))
    sampler = sampler or default_sampler(recipe)
    changed = {f"sample__poses__{key}": value for key, value in changes.items()}
    work.set(poses__recipe=recipe, poses__options=options, sample__poses__sampler=sampler, **changed)
    drawn = draw(work, sampler, steps)
    work.set(sample__poses__guidance=1.0)
    return drawn


def restore_training_poses(work: Workspace) -> Result:
    """Let the kept model of cold diffusion restore training poses that are masked wholly, and judge the result.

    No start of its sampling can be better, so this is a bound of its distance.
    """
    model = model_file.load(work.keep("poses", RESTORED[0]), modality.device())
    degrade = model.recipe.degrade
    assert degrade is not None
    train, _ = splits.load_splits(work.root)
    params = load(work.root / paths.PARAMS)
    rows = sample_stage.resampled(len(train), params.sample.poses.count, 0)
    x0 = model.codec.encode(torch.from_numpy(train.poses()[rows]).double())
    masked = degrade(x0, torch.ones((), dtype=torch.float64))
    cond = model.conditions([train.meta(row)["category"] for row in rows])
    made = model.sampler(choices.Sampling("cold", STEPS))
    poses = []
    for start, some in zip(masked.split(BATCH), torch.arange(len(rows)).split(BATCH), strict=True):
        given = {key: value[some] for key, value in cond.items()}
        z = generate(model.denoiser, made.visited, made.step, model.shape, 0, some, given, initial=lambda _, x=start: x)  # type: ignore[misc]
        poses.append(model.codec.decode(z, given).float().numpy())
    return {"evaluations": STEPS, **judged(work.root, np.concatenate(poses))}


def train_pictures(work: Workspace, recipe: str, images: int) -> Result:
    """Train a recipe on pictures, draw pictures of the held-out poses, and judge them."""
    if not paths.sample_folder(work.root, "poses").is_dir():
        draw_variant(work, DEFAULT, None, STEPS, {})
    work.set(
        codec__kind="pca", pictures__size=PICTURE_SIDE, pictures__batch=32, pictures__width=96, pictures__depth=4,
        pictures__recipe=recipe, pictures__images=images, pictures__cooldown_images=images // 2,
        pictures__checkpoint_images=2_000, pictures__watch_images=images, pictures__warmup_images=images // 16,
        pictures__ema_halflife_images=images // 16, pictures__keep="last", pictures__ranks=1,
        sample__train_conditions=1, sample__pictures__sampler=default_sampler(recipe), sample__pictures__steps=FEW,
        sample__pictures__count=PICTURES,
    )  # fmt: skip
    params = load(work.root / paths.PARAMS)
    if not (paths.model_folder(work.root, "codec") / paths.MODEL_FILE).is_file():
        train_stage.run(params, work.root, "codec")
    train_stage.run(params, work.root, "pictures")
    sample_stage.run(params, work.root, "pictures")
    pose_accuracy.run(params, work.root)
    kept = work.keep("pictures", recipe)
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(paths.sample_folder(work.root, "pictures"), kept)
    metrics = files.read_json(work.root / paths.POSE_ACCURACY / "pose_accuracy.json")["metrics"]
    drawn, (_, heldout) = ShardDataset(kept, splits.SAMPLES), splits.load_splits(work.root)
    sides = [pixels(one.pictures_uint8(32).astype(np.float32) / 255) for one in (drawn, heldout.pictured())]
    distance = kid(*sides)
    return {"recipe": recipe, "kid": distance.value, "low": distance.low, "high": distance.high,
            "metrics": metrics}  # fmt: skip


def sampler_sheet(root: Path, source: Path, measured: Collection[tuple[str, int]]) -> np.ndarray:
    """A row of poses for each sampler, all from the same noise: at FEW evaluations, or as many as the sampler needs."""
    model = model_file.load(source, modality.device())
    _, heldout = splits.load_splits(root)
    cond = model.conditions([heldout.meta(row)["category"] for row in evenly_spaced(len(heldout), SHOWN)])
    rows, names = [], []
    for name in dict.fromkeys(name for name, _ in measured):
        fewest = min(count for other, count in measured if other == name and count >= FEW)
        how = SamplingChoices(sampler=name, steps=steps_for(name, fewest))
        poses = Sampler(model, how).draw(cond, 0, torch.arange(SHOWN)).numpy()
        rows.append(np.concatenate([drawing.draw_pose(pose) for pose in poses], axis=1))
        names.append(f"{name}, {fewest} evaluations")
    return drawing.sheet(rows, 1, names, 14)


def picture_sheet(work: Workspace, recipes: Sequence[str]) -> np.ndarray:
    """The poses that are asked for, and below them a row of pictures for each recipe, all of the same poses."""
    sets = [ShardDataset(work.keep("pictures", recipe), splits.SAMPLES) for recipe in recipes]
    columns = evenly_spaced(len(sets[0]), SHOWN)
    side = 2 * PICTURE_SIDE
    rows = [[drawing.draw_pose(pose, side) for pose in sets[0].poses()[columns]]]
    rows += [[drawing.smooth(picture, side) for picture in one.pictures_uint8(PICTURE_SIDE)[columns]] for one in sets]
    return drawing.sheet([np.concatenate(row, axis=1) for row in rows], 1, ["asked for", *recipes], 14)


def evaluations_of(sampler: str, steps: int) -> int:
    """How often a sampler of the default recipe evaluates the network. Heun's methods do so twice except in the last step."""
    training = Training(DEFAULT)
    visited = Sampling(sampler, steps).make(training, training.make(0.5)).visited
    twice = sampler in ("heun", "restart")
    return sum(0 if to.noisier(level) else 1 + (twice and bool(to.s > 0)) for level, to in pairwise(visited))


def steps_for(sampler: str, evaluations: int) -> int:
    """The most steps with at most this number of evaluations; 0 if two steps need more, or the sampler chooses itself."""
    if SAMPLERS[sampler].evaluations == 0:
        return 0
    possible = (steps for steps in range(evaluations, 1, -1) if evaluations_of(sampler, steps) <= evaluations)
    return next(possible, 0)


def fits(sampler: str) -> bool:
    """Whether a sampler goes with the default recipe."""
    try:
        Sampling(sampler).check_recipe(Training(DEFAULT))
    except ValueError:
        return False
    return True


def best_at_few(drawn: dict[tuple[str, int], Result | None]) -> str | None:
    """The sampler with the smallest distance at FEW evaluations; None until all were measured."""
    few = {sampler: one for (sampler, count), one in drawn.items() if count == FEW}
    known = {sampler: float(one["frechet"]) for sampler, one in few.items() if one is not None}
    return min(known, key=lambda sampler: known[sampler]) if known and len(known) == len(few) else None


def interval(result: Result) -> str:
    """The distance and its interval."""
    return f"{result['frechet']:.3f} ({result['low']:.3f} to {result['high']:.3f})"


def thousandths(result: Result) -> str:
    """1000 times the kernel distance and its interval."""
    value, low, high = (f"{1000 * result[key]:.0f}" for key in ("kid", "kid_low", "kid_high"))
    return f"{value} ({low} to {high})"


def pose_cells(metrics: Result, name: str) -> list[str]:
    """In which share of the pictures a person is found, and which share of their joints is where it was asked to be."""
    within = metrics.get(f"{name}.within_{pose_accuracy.NEAR}")
    return [f"{metrics[f'{name}.found']:.2f}", "" if within is None else f"{within:.2f}"]


def markdown(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def filled(page: str, tables: dict[str, str]) -> str:
    """The page with each table between `<!-- name -->` and `<!-- end -->` replaced."""
    for name, table in tables.items():
        page = re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m: m[1] + table + m[2], page, flags=re.S)  # noqa: B023
    return page


def main() -> int:
    """Do what is not done yet, and write the tables of what is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder for everything; results in it are kept")
    parser.add_argument(
        "--shards", type=Path, help="data/shards of another workspace, instead of drawing the mannequins"
    )
    parser.add_argument(
        "--model",
        type=Path,
        help="artifacts/poses of a finished run, from which the samplers draw, instead of the one here",
    )
    others = (name for name, one in RECIPES.items() if not one.pictures_only and not one.mixed)
    names = list(dict.fromkeys([DEFAULT, *MEASURED, *others]))
    parser.add_argument("--recipes", nargs="*", default=names, help="train only these")
    parser.add_argument("--samplers", nargs="*", default=list(SAMPLERS), help="draw only with these")
    parser.add_argument("--images", type=int, default=40_000, help="length of each training")
    parser.add_argument(
        "--net", nargs=3, type=int, metavar=("WIDTH", "DEPTH", "BATCH"), help="another size of network and batch"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing new after this time")
    parser.add_argument("--page", type=Path, help="Markdown page whose tables are replaced, such as docs/choosing.md")
    parser.add_argument("--pictures", action="store_true", help="also six recipes on pictures")
    parser.add_argument("--picture-images", type=int, default=6_000, help="length of each training on pictures")
    options = parser.parse_args()
    prepare(options.root, options.shards)
    work = Workspace(options.root, options.images, options.seconds, options.net)
    torch.set_num_threads(1)

    base = work.result("reference", lambda: reference(work.root))
    trained = {}
    for name in names:
        wanted = name in options.recipes
        training = work.result(f"trained-{name}", lambda name=name: train_poses(work, name), wanted)  # type: ignore[misc]
        drawing_it = wanted and training is not None
        result = work.result(f"recipe-{name}", lambda name=name: draw_recipe(work, name), drawing_it)  # type: ignore[misc]
        trained[name] = training | result if training is not None and result is not None else None
    variants = {}
    for recipe, way, sampler, steps, changes in VARIANTS:
        wanted = recipe in options.recipes and trained[recipe] is not None

        def make(
            recipe: str = recipe, sampler: str | None = sampler, steps: int = steps, changes: Result = changes
        ) -> Result:
            return draw_variant(work, recipe, sampler, steps, changes)

        variants[recipe, way] = work.result(f"variant-{recipe}-{way.replace(' ', '-')}", make, wanted)
    wanted = RESTORED[0] in options.recipes and trained[RESTORED[0]] is not None
    variants[RESTORED] = work.result(f"variant-{RESTORED[0]}-restored", lambda: restore_training_poses(work), wanted)
    drawn: dict[tuple[str, int], Result | None] = {}

    def measure(sampler: str, count: int) -> None:
        name, wanted = f"sampler-{sampler}-{count}", sampler in options.samplers
        steps = 0 if work.has(name) or not wanted else steps_for(sampler, count)
        if not steps and not work.has(name):
            return
        result = work.result(name, lambda: draw(work, sampler, steps), wanted)
        if wanted or result is not None:
            drawn[sampler, count] = result

    source: Path = options.model or work.keep("poses", DEFAULT)
    if source.is_dir():
        work.restore(source)
        work.set(poses__recipe=DEFAULT, poses__options={}, sample__poses__sampler=default_sampler(DEFAULT))
        for count in EVALUATIONS:
            for sampler in filter(fits, SAMPLERS):
                if sampler not in SAME:
                    measure(sampler, count)
            if count == FEW and (best := best_at_few(drawn)) is not None:
                for sampler in dict.fromkeys([default_sampler(DEFAULT), best]):
                    measure(sampler, MANY)
        if drawn and options.samplers:
            drawing.save_png(work.root / "samplers.png", sampler_sheet(work.root, source, drawn))
    pictures = {}
    if options.pictures:
        pictures = {
            name: work.result(f"pictures-{name}", lambda name=name: train_pictures(work, name, options.picture_images))  # type: ignore[misc]
            for name in PICTURE_RECIPES
        }
    return report(work, base or {}, trained, variants, drawn, pictures, options.page)


def report(
    work: Workspace,
    base: Result,
    trained: dict[str, Result | None],
    variants: dict[tuple[str, str], Result | None],
    drawn: dict[tuple[str, int], Result | None],
    pictures: dict[str, Result | None],
    page: Path | None = None,
) -> int:
    """Write the tables and the picture, print the last line, and return the exit code."""
    done = {name: result for name, result in trained.items() if result is not None}
    kernel = ["KID x 1000"] if all("kid" in one for one in done.values()) else []
    rows = [
        ["recipe", "Frechet pose distance", *kernel, "sampler", "evaluations", "CPU seconds: training", "1000 samples"]
    ]
    for name, result in sorted(done.items(), key=lambda item: float(item[1]["frechet"])):
        rows.append([f"`{name}`", interval(result), *(thousandths(result) for _ in kernel), f"`{result['sampler']}`",
                     str(result["evaluations"]), f"{result['train_seconds']:.0f}", f"{result['seconds']:.1f}"])  # fmt: skip
    tables = {"recipes": markdown(rows)}
    rows = [["recipe", "drawn", "Frechet pose distance", "evaluations"]]
    for (recipe, way), variant in variants.items():
        if variant is not None:
            rows.append([f"`{recipe}`", way, interval(variant), str(variant["evaluations"])])
    tables["variants"] = markdown(rows)
    samplers = list(dict.fromkeys(sampler for sampler, _ in drawn))
    details = [f"KID x 1000, {COMPARED}", f"CPU seconds, {COMPARED}"]
    head = ["sampler", *(f"{count} evaluations" for count in (*EVALUATIONS, MANY)), *details]
    cells = {
        sampler: [
            *(interval(one) if (one := drawn.get((sampler, count))) else "" for count in (*EVALUATIONS, MANY)),
            *([thousandths(one), f"{one['seconds']:.1f}"] if (one := drawn.get((sampler, COMPARED))) else ["", ""]),
        ]
        for sampler in samplers
    }
    tables["samplers"] = markdown([head, *([f"`{sampler}`", *cells[sampler]] for sampler in samplers)])
    seen = {name: one for name, one in pictures.items() if one is not None}
    if seen:
        rows = [
            [
                "recipe",
                "person found",
                "joints within 0.2 torso",
                "kernel distance of pixels",
            ]
        ]
        for name, one in sorted(seen.items(), key=lambda item: -float(item[1]["metrics"]["pictures.found"])):
            distance = f"{one['kid']:.4f} ({one['low']:.4f} to {one['high']:.4f})"
            rows.append([f"`{name}`", *pose_cells(one["metrics"], "pictures"), distance])
        rows.append(["held-out pictures", *pose_cells(next(iter(seen.values()))["metrics"], "floor"), ""])
        tables["pictures"] = markdown(rows)
        drawing.save_png(work.root / "pictures.png", picture_sheet(work, list(seen)))
    text = "\n".join(tables.values())
    print(text)
    files.write_bytes(work.root / "recipes.md", text.encode())
    if page is not None:
        files.write_bytes(page, filled(page.read_text(encoding="utf-8"), tables).encode())
    if done:
        from PIL import Image

        tiles = [np.asarray(Image.open(work.keep("poses", name) / "poses.png").convert("RGB")) for name in done]
        names = [f"{name}: {one['frechet']:.2f}" for name, one in done.items()]
        drawing.save_png(work.root / "recipes.png", drawing.sheet(tiles, 1, names, 14))
    above = [name for name, one in done.items() if one["frechet"] >= base["noise"] / 10]
    missing = f" (not: {', '.join(above)})" if above else ""
    goals = {
        "every recipe and sampler was measured": all(one is not None for one in (*trained.values(), *drawn.values())),
        "every sample is finite": all(one["finite"] for one in (*done.values(), *filter(None, drawn.values()))),
        f"every recipe's distance is below a tenth of the noise reference{missing}": not above,
    }
    best = best_at_few(drawn)
    if best is not None and (many := drawn.get((best, MANY))) is not None and (few := drawn[best, FEW]) is not None:
        goals[f"the distance of the best sampler at {FEW} evaluations is within 10 % of its own at {MANY}"] = (
            few["frechet"] <= 1.1 * many["frechet"]
        )
    if DEFAULT in done:
        better = [name for name, one in done.items() if one["high"] < done[DEFAULT]["low"]]
        goals["no recipe is better than the default beyond the intervals"] = not better
    return finish(
        "recipes", {"reference": base, "recipes": done, "samplers": [one for one in drawn.values() if one]}, goals
    )


if __name__ == "__main__":
    sys.exit(main())
