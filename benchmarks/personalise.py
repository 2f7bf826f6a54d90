"""A new category from few pictures: five ways to teach it to our picture model, at the same CPU time.

    python -m benchmarks.personalise [--seconds 10] [--few 10 20 50] [--seeds 3] [--methods NAME ...] [--category stretch]
                                     [--mannequins 1320] [--count 48] [--work DIR]

A small picture model (64 pixels, latents of factor 8, width 128, 6 layers) is trained on mannequins of all categories but one.
Each method then learns the last category from few pictures of it, for `--seconds` seconds of CPU time of one thread, without
the time that it takes to read pictures:

    lora         a LoRA of the trained model
    dreambooth   the same; half of the examples are pictures of the other categories that the trained model drew
    inversion    nothing but the embedding of the new category, a vector of 128 numbers
    fine-tuning  all weights of the trained model
    scratch      a new model with the trained model's autoencoder

The first four are the methods of `adapt.pictures_adapted`. The embedding of the new category begins at the mean of the
others.

The row `base` is the trained model itself, which has not seen the category. With 20 pictures, each method is trained `--seeds`
times, on other pictures each time; the figures are means, and the intervals are Student's over these trainings. Rows of one
training have the jackknife interval of the kernel distance. Judged are pictures for poses of held-out people:

    kernel distance   of edges to held-out pictures of the new category (smaller is better)
    adherence         share of limb joints within 0.2 torso lengths of what was asked for, read by MediaPipe
    kept              adherence for held-out people of the other categories, over that of the trained model
    loss of others    denoising loss of their held-out pictures, over that of the trained model
    verdict           of the certificate, for the first training: are pictures for the poses of the training copies of it?

Goals, for LoRA or Dreambooth with 20 pictures: the kernel distance is at least 30 % below that of `scratch` beyond the
interval, and neither `kept` nor `loss of others` has become worse by more than 10 %.

A row that has a result in DIR is not run again, so a benchmark that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import pictures
from benchmarks.quality_per_compute import difference, interval
from benchmarks.report import finish, table
from tasks.metrics.kid import KID_NEEDS

# Method -> that of `adapt.pictures_adapted`.
OURS: dict[str, Any] = {
    "lora": "lora", "dreambooth": "dreambooth", "inversion": "textual_inversion", "fine-tuning": "fine_tuning",
}  # fmt: skip
METHODS = (*OURS, "scratch")
REPEATED = 20  # pictures for which there are several trainings
BETTER, FORGOTTEN = 0.3, 0.1  # the goals: by how much the distance is smaller, and how much may be forgotten
PRIOR = 64  # pictures that the trained model draws for Dreambooth
CHECKED = 50  # pictures of the certificate, the fewest that it can tell anything of
STEPS = 10  # in which pictures are drawn
RANK, BATCH = 8, 32
TRAINED = "base/artifacts/pictures"  # the trained model
RATES = {"lora": 1e-3, "dreambooth": 1e-3, "inversion": 1e-2, "fine-tuning": 3e-4, "scratch": 1e-3}
HALFLIFE = 500  # images, of the average that is judged
# The model, and how long it is trained on the other categories.
SMALL: dict[str, Any] = {
    "codec": {"images": 6400, "warmup_images": 600, "cooldown_images": 3200, "checkpoint_images": 6400, "ranks": 1},
    "pictures": {
        "width": 128, "images": 14_400, "warmup_images": 600, "cooldown_images": 7200, "ema_halflife_images": 1000,
        "checkpoint_images": 14_400, "watch_images": None, "ranks": 1,
    },
    "curate": {"val": 0.25, "test": 0.2},
    "sample": {"pictures": {"steps": STEPS}},
}  # fmt: skip


def prepare(work: Path, options: argparse.Namespace) -> Any:
    """Draw and extract the mannequins, and train codec and pictures on all categories but one into `work/base`, once.

    Returns the parameters.
    """
    from tasks.train import stage

    base = work / "base"
    base.mkdir(parents=True, exist_ok=True)
    params = pictures.write_params(base, SMALL)
    pictures.run_stages(work, {**SMALL, "mannequin": {"count": options.mannequins}})
    if not (base / "data/shards/index.json").is_file():
        others = lambda metas: [i for i, meta in enumerate(metas) if meta["category"] != options.category]  # noqa: E731
        write_shards(work / "data/shards", base / "data/shards", {split: others for split in ("train", "val", "test")})
    for model in ("codec", "pictures"):
        if not (base / "artifacts" / model / "model.safetensors").is_file():
            stage.run(params, base, model)
    return params


def write_shards(
    source: Path, out: Path, choose: dict[str, Callable[[Sequence[dict[str, Any]]], Sequence[int]]]
) -> None:
    """Write the chosen samples of each split of shards as shards."""
    from tasks.dataset import shards
    from tasks.dataset.shards import ShardDataset

    splits: dict[str, Iterator[tuple[str, dict[str, bytes]]]] = {}
    for split, chosen in choose.items():
        dataset = ShardDataset(source, split).pictured()
        splits[split] = members(dataset, chosen(dataset.metas()))
    shards.write(out, splits, 1000, ShardDataset(source).about)


def members(dataset: Any, rows: Sequence[int]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The files of samples."""
    for i in rows:
        yield dataset.keys[i], {name: dataset.read(i, name) for name in ("png", "pose.npy", "json")}


def drawn(model: Any, persons: Any, seed: int, params: Any) -> np.ndarray:
    """Pictures uint8 `[n, s, s, 3]` of a model for the conditions of persons."""
    from tasks.models.inputs import as_pictures
    from tasks.models.sampler import Sampler

    cond = model.conditions([str(meta["category"]) for meta in persons.metas()], persons.poses())
    sampler = Sampler(model, params.sample.pictures)
    return as_pictures(sampler.draw(cond, seed, torch.arange(len(persons)), pictures.BATCH))


def untrained(method: str, base: Any, category: str, seed: int) -> Any:
    """The model with the weights that a method trains; all others are frozen."""
    from tasks.adapt import own
    from tasks.config.adapt import OwnChange
    from tasks.models import modality

    if method == "scratch":
        torch.manual_seed(seed)
        return modality.build("pictures", base.config, [category], base.codec, base.margin, base.padded)
    section = OwnChange.model_validate({"method": OURS[method], "categories": [category], "rank": RANK, "seed": seed})
    return own.untrained(base, section, [category])[1]


def trained(method: str, base: Any, few: Any, params: Any, options: argparse.Namespace, seed: int) -> tuple[Any, int]:
    """Train by a method for so many CPU-seconds; returns the model with averaged weights, and how many examples it saw."""
    from diffusion_core.training.ema import halflife
    from diffusion_core.training.trainer import TrainConfig, Trainer
    from tasks import paths
    from tasks.adapt import prior
    from tasks.common.subset import evenly_spaced
    from tasks.dataset.shards import ShardDataset
    from tasks.models.sampler import Sampler
    from tasks.train import preparation

    work: Path = options.work
    model = untrained(method, base, options.category, seed)
    if method == "dreambooth":
        known = ShardDataset(work / "base/data/shards", "train").pictured()
        asked = known.take(evenly_spaced(len(known), PRIOR))
        sampler = Sampler(base, params.sample.pictures)
        drawn_before = prior.drawn(work, sampler, asked, 1, paths.sha256(work / TRAINED))
        few = prior.beside(work, method, few, drawn_before, True)
    source = preparation.load_data(
        work, "pictures", base.config, torch.device("cpu"), base.codec, model.categories, (few, few)
    ).source
    config = TrainConfig(
        images=pictures.NEVER, batch=BATCH, learning_rate=RATES[method], grad_clip=1.0, seed=seed,
        condition_dropout=base.config.condition_dropout,
    )  # fmt: skip
    trainer = Trainer(model.denoiser, model.recipe, config, source.data, source.count, {"ema": halflife(HALFLIFE)})
    end = time.process_time() + options.seconds
    while time.process_time() < end:
        trainer.step()
    finished = trainer.averaged()
    finished.eval().requires_grad_(False)
    return replace(model, denoiser=finished), trainer.nimg


def judge(made: Sequence[np.ndarray], persons: Sequence[Any], held_out: Any, processes: int) -> list[dict[str, Any]]:
    """Adherence of sets of pictures that were drawn for persons; of the first also the kernel distance with its interval."""
    from tasks.evaluate import pose_accuracy
    from tasks.metrics.features import edges
    from tasks.metrics.kid import kid

    landmarker = Path(__file__).parents[1] / "models/pose_landmarker_full.task"
    read = pose_accuracy.read_poses(np.concatenate(made), landmarker, 0.5, processes)
    parts = np.split(read, np.cumsum([len(some) for some in made])[:-1])
    figures: list[dict[str, Any]] = [
        {"adherence": pose_accuracy.metrics("x", part, asked.poses()).get(f"x.within_{pose_accuracy.NEAR}", 0.0)}
        for part, asked in zip(parts, persons, strict=True)
    ]
    both = [edges(some.astype(np.float32) / 255) for some in (made[0], held_out.pictures_uint8(made[0].shape[1]))]
    distance = kid(*both)
    figures[0] |= {"kid": distance.value, "low": distance.low, "high": distance.high}
    return figures


def loss(model: Any, persons: Any) -> float:
    """Mean denoising loss of held-out pictures over noise levels, each level weighted by its variance."""
    from tasks.metrics import membership_inference
    from tasks.train.evaluation import SIGMAS

    examples = model.examples(persons)
    losses = membership_inference.losses(
        model.denoiser, model.codec.encode(examples.x0), examples.cond, SIGMAS, 0, draws=1
    )
    return float((losses.mean(1) * membership_inference.noise_variances(SIGMAS, None)).mean())


def one(method: str, few: int, seed: int, options: argparse.Namespace, params: Any) -> None:
    """Train and judge one row; writes its result and a sheet of pictures."""
    from tasks.adapt import certificate
    from tasks.adapt.own import _captioned
    from tasks.common import files
    from tasks.common.subset import evenly_spaced
    from tasks.dataset.shards import ShardDataset
    from tasks.models import model_file
    from tasks.plots import drawing

    work: Path = options.work
    began = time.process_time()
    base = model_file.load(work / TRAINED, torch.device("cpu"))
    every = ShardDataset(work / "data/shards", "train").pictured()
    rows = [i for i, meta in enumerate(every.metas()) if meta["category"] == options.category]
    order = np.random.default_rng([seed, 5]).permutation(rows).tolist()
    if len(order) < few:
        raise SystemExit(
            f"There are {len(order)} training pictures of {options.category}: --mannequins must be larger."
        )
    seen = every.take(order[:few])
    model, images = base, 0
    if method != "base":
        model, images = trained(method, base, seen, params, options, seed)
    held_out = ShardDataset(work / "data/shards", "val", "test").pictured()
    is_new = np.array([meta["category"] == options.category for meta in held_out.metas()])
    new, others = (held_out.take(np.flatnonzero(is_new == wanted).tolist()) for wanted in (True, False))
    asked, kept = (side.take(evenly_spaced(len(side), options.count)) for side in (new, others))
    made = drawn(model, asked, seed, params)
    both = [made, drawn(model, kept, seed, params)]
    figures, remembered = judge(both, [asked, kept], new, options.processes)
    verdict: dict[str, Any] = {}
    if method != "base" and seed == 0:
        shown = seen.take([i % few for i in range(CHECKED)])
        root = work / "rows" / f"{method}-{few}"
        root.mkdir(parents=True, exist_ok=True)

        def draw_into(place: Path) -> None:
            if not place.is_dir():
                with files.new_folder(place) as temporary:
                    for i, picture in enumerate(drawn(model, shown, seed, params)):
                        (temporary / f"{i:06d}.png").write_bytes(certificate.png(picture))

        sides = [_captioned(seen, made.shape[1]), _captioned(new, made.shape[1])]
        outcome = certificate.certify(root, method, sides, [method, few, seed, images], draw_into, root)
        verdict = {"verdict": outcome.verdict, "sentence": outcome.sentence}
    tiles = [drawing.smooth(picture, 128) for picture in made[:16]]
    drawing.save_png(result(work, method, few, seed).with_suffix(".png"), drawing.sheet(tiles, 8))
    files.write_json(
        result(work, method, few, seed),
        {
            "method": method, "pictures": few, "seed": seed, "seconds": options.seconds, "images": images, **figures,
            "others_adherence": remembered["adherence"], "others_loss": loss(model, others),
            **verdict, "all_seconds": time.process_time() - began,
        },
    )  # fmt: skip


def result(work: Path, method: str, few: int, seed: int) -> Path:
    """The file with the result of a row."""
    return work / "results" / f"{method}-{few}-{seed}.json"


def main() -> int:
    """Run what has no result yet, then compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10, help="CPU-seconds of each training")
    parser.add_argument("--few", type=int, nargs="+", default=[10, 20, 50], help="pictures of the new category")
    parser.add_argument("--seeds", type=int, default=3, help=f"trainings with {REPEATED} pictures")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--category", default="stretch", help="that is learned last")
    parser.add_argument("--mannequins", type=int, default=1320)
    parser.add_argument("--count", type=int, default=48, help="pictures that are judged, of each kind")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "contrapposto-personalise")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="that read poses")
    options = parser.parse_args()
    if options.count < KID_NEEDS:
        parser.error(f"--count must be at least {KID_NEEDS}, as many as a kernel distance needs")
    torch.set_num_threads(1)
    os.environ.setdefault("WDS_SECURE", "1")
    params = prepare(options.work, options)
    rows = [("base", 0, 0)]
    # What the goals are about comes first.
    for few in sorted(options.few, key=lambda few: (few != REPEATED, few)):
        rows += [(m, few, seed) for seed in range(options.seeds if few == REPEATED else 1) for m in options.methods]
    for row in rows:
        if not result(options.work, *row).is_file():
            print(f"{row[0]}, {row[1]} pictures, seed {row[2]}", flush=True)
            one(*row, options, params)
    results = [json.loads(result(options.work, *row).read_text()) for row in rows]
    return finish("personalise", *compared(results))


def compared(results: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, bool]]:
    """Print the table; the figures and the goals."""
    before = results[0]
    for row in results:
        row["kept"] = (
            row["others_adherence"] / before["others_adherence"] if before["others_adherence"] else float("nan")
        )
        row["others"] = row["others_loss"] / before["others_loss"]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in results:
        groups.setdefault((row["method"], row["pictures"]), []).append(row)
    cells: list[tuple[str, ...]] = [
        ("method", "pictures", "examples", "kernel distance x 1000", "adherence", "kept", "loss of others", "verdict")
    ]
    for (method, few), rows in sorted(groups.items(), key=lambda item: item[0][1]):
        distances = [1000 * row["kid"] for row in rows]
        low, high = (1000 * rows[0][end] for end in ("low", "high"))
        if len(rows) > 1:
            _, low, high = interval(distances)
        mean = {key: np.mean([row[key] for row in rows]) for key in ("images", "adherence", "kept", "others")}
        cells.append((
            method, str(few), f"{mean['images']:,.0f}", f"{np.mean(distances):.3g} ({low:.3g} to {high:.3g})",
            f"{mean['adherence']:.2f}", f"{mean['kept']:.2f}", f"{mean['others']:.2f}", rows[0].get("verdict", ""),
        ))  # fmt: skip
    print(table(cells))
    figures: dict[str, Any] = {"rows": list(results)}
    scratch = groups.get(("scratch", REPEATED), [])
    reached: dict[str, tuple[bool, bool]] = {}
    for method in ("lora", "dreambooth"):
        rows = groups.get((method, REPEATED), [])
        if len(rows) < 2 or len(scratch) < 2:
            continue
        distances, theirs = ([row["kid"] for row in some] for some in (rows, scratch))
        figures[f"{method}: saved"] = 1 - float(np.mean(distances) / np.mean(theirs))
        over = difference(distances, theirs, 1 - BETTER)
        figures[f"{method}: distance minus {1 - BETTER:g} of that of scratch"] = over
        kept, others = (float(np.mean([row[key] for row in rows])) for key in ("kept", "others"))
        reached[method] = over[2] < 0, kept >= 1 - FORGOTTEN and others <= 1 + FORGOTTEN
    goals = {
        f"{REPEATED} pictures: LoRA or Dreambooth is {BETTER:.0%} better than scratch beyond the interval": any(
            better for better, _ in reached.values()
        ),
        f"and forgets at most {FORGOTTEN:.0%}": any(better and kept for better, kept in reached.values()),
    }
    return figures, goals


if __name__ == "__main__":
    sys.exit(main())
