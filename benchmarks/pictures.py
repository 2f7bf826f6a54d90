"""Picture models at equal CPU time: designs of this project and two peers, on the same data, conditions and judge.

    python -m benchmarks.pictures [--seconds 300] [--seeds 3] [--rows NAME ...] [--work DIR] [--count 224] [--mannequins 1200]

Every row is trained for as many seconds of CPU time by one thread, its codec and its upscaler included. Ours are trained by the
pipeline's own stages; how many examples fit into the time is measured beforehand on a few steps. The peers are stopped when
the time is up: diffusers' `UNet2DModel` with the optimiser, schedule and averaging of its `train_unconditional.py`, and
denoising-diffusion-pytorch's `Unet` with those of its `Trainer`. Both get the pose map as further channels of the input,
and have about as many parameters as ours.

Each then draws pictures for the same held-out conditions, in its own way (ours UniPC 18 steps and guidance as in params.yaml,
the peers DDIM 50 steps). MediaPipe reads the poses: `found`, the share of pictures with a person, and `within`, the share of
their limb joints within 0.2 torso lengths of what was asked for. `edge_kid` is the kernel distance of edges to held-out
pictures at 64 pixels; smaller pictures are enlarged, larger ones reduced.

A row and seed that has a result in DIR is not run again, so a benchmark that is stopped goes on where it was. Beside each
result lies a sheet of its first pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.quality_per_compute import count, difference, interval
from benchmarks.report import finish, table
from tasks.metrics.kid import KID_NEEDS

SIDE = 64  # pixels at which edges are compared
PEER_STEPS, BATCH, PEER_BATCH = 50, 64, 16
PROBED = 4.0  # CPU-seconds of steps by which the speed of a training is measured
NEVER = 10**9

# Changes to params.yaml, and the share of the time for each stage.
PIXELS = {"codec": {"kind": "none"}}
BEFORE = {
    **PIXELS,
    "pictures": {
        "size": 32, "patch": 4, "width": 128, "depth": 6, "heads": 4, "optimiser": "adamw", "learning_rate": 1e-3,
        "cooldown": 0.0, "options": {"edm": {"p_mean": -1.2}}, "copies": 0, "body_weight": 0.0, "cpu": {"precision": "fp32"},
    },
    "sample": {"pictures": {"guidance": 2.0}},
}  # fmt: skip
OURS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "ours": ({}, {"codec": 0.2, "pictures": 0.8}),
    "32 px default of before": (BEFORE, {"pictures": 1.0}),
    "pixels, 64 px": ({**PIXELS, "pictures": {"patch": 8}}, {"pictures": 1.0}),
    "PCA latents": ({"codec": {"kind": "pca"}}, {"codec": 0.0, "pictures": 1.0}),
    "KL latents, factor 4": (
        {"codec": {"factor": 4, "latents": 8, "widths": [32, 64]}, "pictures": {"patch": 2}},
        {"codec": 0.2, "pictures": 0.8},
    ),
    "cascade 32 to 64": (
        {"pictures": {"size": 32}, "upscaler": {"size": 64, "crop": 32}, "codec": {"factor": 4, "widths": [32, 64]}},
        {"codec": 0.15, "pictures": 0.5, "upscaler": 0.35},
    ),
}
PEERS = ("diffusers", "denoising-diffusion-pytorch")
ROWS = (*OURS, *PEERS)

Drawer = Callable[[Tensor], Tensor]  # pose maps [n, 6, 64, 64] -> pictures [n, 3, 64, 64] in -1 ... 1


def run_stages(work: Path, changes: dict[str, dict[str, Any]]) -> None:
    """Draw and extract mannequins and write their shards into `work/data`, once. `changes`: to params.yaml."""
    if (work / "data/shards/index.json").is_file():
        return
    work.mkdir(parents=True, exist_ok=True)
    project = Path(__file__).parents[1]
    with contextlib.suppress(FileExistsError):
        (work / "models").symlink_to((project / "models").resolve())
    (work / "forgotten.json").write_bytes((project / "forgotten.json").read_bytes())
    write_params(work, changes)
    for stage in (["mannequin"], ["list_parts"], ["extract", "mannequin"], ["curate"], ["shard"]):
        subprocess.run([sys.executable, "-m", "tasks", *stage, "--root", str(work)], check=True)


def write_params(root: Path, changes: dict[str, dict[str, Any]]) -> Any:
    """The project's params.yaml with nested changes, in `root`; returns the parameters."""
    from ruamel.yaml import YAML

    from tasks.config.params import load

    yaml = YAML(typ="safe", pure=True)
    document = yaml.load((Path(__file__).parents[1] / "params.yaml").read_text(encoding="utf-8"))

    def merge(node: dict[str, Any], more: dict[str, Any]) -> None:
        for key, value in more.items():
            if isinstance(value, dict) and isinstance(node.get(key), dict):
                merge(node[key], value)
            else:
                node[key] = value

    merge(document, changes)
    with (root / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(document, file)
    return load(root / "params.yaml")


class _Measured(Exception):
    """The speed of a training, instead of the training."""

    def __init__(self, rate: float) -> None:
        super().__init__(f"{rate:.1f} images per CPU-second")
        self.rate = rate


def rate(params: Any, root: Path, model: str) -> float:
    """Images per CPU-second of the training of one model, from the first steps of it."""
    from tasks.train import stage
    from tasks.train.loop import TrainingLoop

    def measure(loop: TrainingLoop) -> None:
        loop.trainer.step()  # the first one allocates memory
        began, images = time.process_time(), loop.trainer.nimg
        while time.process_time() < began + PROBED and not loop.trainer.done:
            loop.trainer.step()
        raise _Measured((loop.trainer.nimg - images) / (time.process_time() - began))

    try:
        with mock.patch.object(TrainingLoop, "run", measure):
            stage.run(params, root, model)
    except _Measured as measured:
        return measured.rate
    raise AssertionError(f"the stage {model} has no training")


def lengths(model: str, images: int, cooldown: float) -> dict[str, int]:
    """The keys of a training that count images, in the proportions of params.yaml."""
    return {
        "images": images, "warmup_images": images // (12 if model == "codec" else 40),
        "cooldown_images": int(cooldown * images), "ema_halflife_images": images // 16, "checkpoint_images": images,
    }  # fmt: skip


def ours(
    name: str, root: Path, seconds: float, seed: int, cpu: int
) -> tuple[Callable[[Any], np.ndarray], dict[str, Any]]:
    """Train the models of a row by the pipeline's stages; returns a function from the persons to pictures uint8."""
    from tasks import paths
    from tasks.models import inputs, model_file, upscaler
    from tasks.models.sampler import Sampler
    from tasks.train import codec as codec_training
    from tasks.train import stage

    changes, shares = OURS[name]
    changes = {key: dict(value) for key, value in changes.items()}
    cooldown = changes.get("pictures", {}).pop("cooldown", 0.5)
    for model in ("codec", "pictures", "upscaler"):
        changes.setdefault(model, {}).update(seed=seed, ranks=1)
    changes["pictures"].setdefault("watch_images", None)
    spent: dict[str, float] = {}
    seen: dict[str, int] = {}
    for model, share in shares.items():
        changes[model] |= lengths(model, NEVER, cooldown)
        params = write_params(root, changes)
        if share:
            batch = getattr(params, model).batch
            seen[model] = max(batch, int(share * seconds * rate(params, root, model)) // batch * batch)
            changes[model] |= lengths(model, seen[model], cooldown)
            params = write_params(root, changes)
        began = time.process_time()
        stage.run(params, root, model)
        spent[model] = time.process_time() - began
    if "codec" not in shares:
        codec_training.train(params, root, torch.device("cpu"), None)  # writes that there is none
    sizes = {
        model: sum(
            p.numel()
            for p in model_file.load(paths.model_folder(root, model), torch.device("cpu")).denoiser.parameters()
        )
        for model in shares
        if model != "codec"
    }

    def draw(persons: Any) -> np.ndarray:
        device = torch.device("cpu")
        model = model_file.load(paths.model_folder(root, "pictures"), device)
        cond = model.conditions([str(meta["category"]) for meta in persons.metas()], persons.poses())
        ids = torch.arange(len(persons))
        drawn = Sampler(model, params.sample.pictures).draw(cond, seed, ids, BATCH)
        pictures = inputs.as_pictures(drawn)
        if "upscaler" in shares:
            larger = model_file.load(paths.model_folder(root, "upscaler"), device)
            pictures = upscaler.upscale(larger, pictures, params.sample.upscaler, seed, ids)
        return pictures

    return draw, {"parameters": sizes, "images": seen, "stage_seconds": spent}


class WithMap(nn.Module):
    """A peer's network with the pose map as further channels of its input. `pose` is set before each call."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.pose = torch.zeros(0)
        # What denoising-diffusion-pytorch asks its own network.
        self.channels = self.out_dim = 3
        self.self_condition = self.random_or_learned_sinusoidal_cond = False

    def forward(self, x: Tensor, t: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        y = self.net(torch.cat([x, self.pose.to(x)], 1), t)
        out: Tensor = y.sample if hasattr(y, "sample") else y
        return out


def diffusers_peer(data: tuple[Tensor, Tensor], seconds: float, seed: int) -> tuple[Drawer, int, int]:
    """train_unconditional.py: batch 16, AdamW 1e-4 (0.95, 0.999), weight decay 1e-6, cosine after 500 steps, EMA, clip 1."""
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    torch.manual_seed(seed)
    net = WithMap(
        UNet2DModel(
            sample_size=SIDE, in_channels=9, out_channels=3, layers_per_block=2, norm_num_groups=8,
            block_out_channels=(32, 32, 64, 64, 128, 128),
            down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    ema = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    noising = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")

    def gradient(clean: Tensor, maps: Tensor) -> None:
        noise, t = torch.randn_like(clean), torch.randint(0, 1000, (len(clean),))
        net.pose = maps
        nn.functional.mse_loss(net(noising.add_noise(clean, noise, t), t), noise).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)

    batches = endless(*data, seed)
    for _ in range(2):  # the cosine needs the number of steps beforehand
        began = time.process_time()
        gradient(*next(batches))
        optimizer.zero_grad()
        once = time.process_time() - began
    schedule = get_cosine_schedule_with_warmup(optimizer, 500, max(501, int(seconds / once)))
    seen, end = 0, time.process_time() + seconds
    while time.process_time() < end:
        gradient(*next(batches))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.step(net.parameters())
        seen += PEER_BATCH
    ema.copy_to(net.parameters())
    net.eval()

    @torch.no_grad()
    def draw(maps: Tensor) -> Tensor:
        scheduler = DDIMScheduler.from_config(noising.config)
        scheduler.set_timesteps(PEER_STEPS)
        torch.manual_seed(seed)
        x, net.pose = torch.randn(len(maps), 3, SIDE, SIDE), maps
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t.expand(len(x))), t, x).prev_sample
        return x

    return draw, count(net), seen


def lucidrains_peer(data: tuple[Tensor, Tensor], seconds: float, seed: int) -> tuple[Drawer, int, int]:
    """The settings of denoising-diffusion-pytorch's `Trainer`: batch 16, Adam 8e-5 (0.9, 0.99), EMA 0.995 every 10, clip 1."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    torch.manual_seed(seed)
    net = WithMap(Unet(dim=24, channels=9, out_dim=3))
    diffusion = GaussianDiffusion(net, image_size=SIDE, timesteps=1000, sampling_timesteps=PEER_STEPS)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=8e-5, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10)
    batches = endless(*data, seed)
    seen, end = 0, time.process_time() + seconds
    while time.process_time() < end:
        clean, net.pose = next(batches)
        diffusion((clean + 1) / 2).backward()
        nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        seen += PEER_BATCH
    model = ema.ema_model.eval()

    @torch.no_grad()
    def draw(maps: Tensor) -> Tensor:
        torch.manual_seed(seed)
        model.model.pose = maps
        pictures: Tensor = model.sample(batch_size=len(maps))
        return pictures.clamp(0, 1) * 2 - 1

    return draw, count(net), seen


def endless(x0: Tensor, maps: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of pictures and their maps in random order, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(x0), generator=generator).split(PEER_BATCH):
            if len(rows) == min(PEER_BATCH, len(x0)):
                yield x0[rows], maps[rows]


def peer(
    name: str, root: Path, seconds: float, seed: int, cpu: int
) -> tuple[Callable[[Any], np.ndarray], dict[str, Any]]:
    """Train a peer on the pictures and mirror images that ours are trained on; returns a function from persons to pictures."""
    from tasks.models import inputs

    params = write_params(root, {"codec": {"kind": "none"}, "pictures": {"patch": 8, "conditions": ["pose_map"]}})
    train = inputs.usable(root, "train", params.pictures)
    examples = inputs.examples(train, params.pictures, [], mirrored=True)
    build = diffusers_peer if name == "diffusers" else lucidrains_peer
    drawer, parameters, seen = build((examples.x0, examples.cond["map:pose"]), seconds, seed)

    def draw(persons: Any) -> np.ndarray:
        from tasks.dataset.pose_map import pose_map

        maps = pose_map(persons.poses(), SIDE, train.about["margin"])
        return inputs.as_pictures(torch.cat([drawer(part) for part in maps.split(BATCH)]))

    return draw, {
        "parameters": {"pictures": parameters},
        "images": {"pictures": seen},
        "stage_seconds": {"pictures": seconds},
    }


def judge(pictures: np.ndarray, persons: Any, held_out: Any, cpu: int) -> dict[str, float]:
    """`found`, `within` and `edge_kid` of pictures uint8 `[n, s, s, 3]` that were drawn for the persons."""
    from PIL import Image

    from tasks.common.images import area_average
    from tasks.evaluate import pose_accuracy
    from tasks.metrics.features import edges
    from tasks.metrics.kid import kid

    def at_side(picture: np.ndarray) -> np.ndarray:
        if len(picture) > SIDE:
            return area_average(picture, SIDE)
        return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC))

    model = Path(__file__).parents[1] / "models/pose_landmarker_full.task"
    read = pose_accuracy.read_poses(pictures, model, 0.5, cpu)
    measured = pose_accuracy.metrics("x", read, persons.poses())
    features = [
        edges(some.astype(np.float32) / 255)
        for some in (np.stack([at_side(picture) for picture in pictures]), held_out.pictures_uint8(SIDE))
    ]
    return {
        "found": measured["x.found"],
        "within": measured.get(f"x.within_{pose_accuracy.NEAR}", 0.0),
        "edge_kid": kid(*features).value,
    }


def one(name: str, seed: int, options: argparse.Namespace) -> None:
    """Train and judge one row with one seed; writes its result and a sheet of pictures."""
    from tasks.common import files, log
    from tasks.common.subset import evenly_spaced
    from tasks.dataset.splits import load_splits
    from tasks.plots import drawing

    torch.set_num_threads(1)
    log.to_stdout()
    os.environ.setdefault("WDS_SECURE", "1")
    root = options.work / "rows" / f"{slug(name)}-{seed}"
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (root / "data").symlink_to((options.work / "data").resolve())
    train = ours if name in OURS else peer
    draw, about = train(name, root, options.seconds, seed, options.processes)
    held_out = load_splits(root)[1].pictured()
    persons = held_out.take(evenly_spaced(len(held_out), options.count))
    pictures = draw(persons)
    tiles = [drawing.smooth(picture, 128) for picture in pictures[:: max(1, len(pictures) // 24)][:24]]
    drawing.save_png(result(options.work, name, seed).with_suffix(".png"), drawing.sheet(tiles, 8))
    found = judge(pictures, persons, held_out, options.processes)
    files.write_json(
        result(options.work, name, seed),
        {
            "row": name,
            "seed": seed,
            "seconds": options.seconds,
            "count": len(persons),
            "side": pictures.shape[1],
            **about,
            **found,
        },
    )


def slug(name: str) -> str:
    """A row's name as part of a file's name."""
    return "".join(c if c.isalnum() else "-" for c in name)


def result(work: Path, name: str, seed: int) -> Path:
    """The file with the result of a row and seed."""
    return work / "results" / f"{slug(name)}-{seed}.json"


def main() -> int:
    """Run what has no result yet, then compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=300, help="CPU-seconds of training of each row and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "contrapposto-pictures")
    parser.add_argument("--count", type=int, default=224, help="pictures drawn by each")
    parser.add_argument("--mannequins", type=int, default=1200)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="that read poses")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count < KID_NEEDS:
        parser.error(f"--count must be at least {KID_NEEDS}, as many as a kernel distance needs")
    if options.one:
        one(options.one[0], int(options.one[1]), options)
        return 0
    run_stages(options.work, {"mannequin": {"count": options.mannequins}})
    for seed in range(options.seeds):
        for name in options.rows:
            path = result(options.work, name, seed)
            if path.is_file() and json.loads(path.read_text())["seconds"] == options.seconds:
                continue
            command = [sys.executable, "-m", "benchmarks.pictures", "--one", name, str(seed)]
            for key in ("seconds", "work", "count", "processes"):
                command += [f"--{key}", str(getattr(options, key))]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            print(f"{name}, seed {seed}", flush=True)
            subprocess.run(command, env=environment, check=True)
    rows = {
        name: [json.loads(result(options.work, name, seed).read_text()) for seed in range(options.seeds)]
        for name in options.rows
    }
    return finish("pictures", *compared(rows))


def compared(rows: dict[str, list[dict[str, Any]]]) -> tuple[dict[str, Any], dict[str, bool]]:
    """Print the table; the figures and the goals. With one seed there are no intervals, and no goal can be reached."""
    cells: list[tuple[str, ...]] = [("row", "parameters", "examples seen", "found", "within", "edge KID x 1000")]
    several = all(len(results) > 1 for results in rows.values())
    for name, results in rows.items():
        parameters = sum(results[0]["parameters"].values())
        shown = []
        for key, scale in (("found", 1), ("within", 1), ("edge_kid", 1000)):
            values = [scale * entry[key] for entry in results]
            shown.append("{:.3g} ({:.3g} to {:.3g})".format(*interval(values)) if several else f"{values[0]:.3g}")
        images = ", ".join(f"{model} {seen:,}" for model, seen in results[0]["images"].items())
        cells.append((name, f"{parameters:,}", images, *shown))
    print(table(cells))
    figures: dict[str, Any] = {"rows": [entry for results in rows.values() for entry in results]}
    goals: dict[str, bool] = {}
    if "ours" in rows:
        for name in rows:
            if name == "ours":
                continue
            for key in ("found", "within"):
                mine, theirs = ([entry[key] for entry in rows[who]] for who in ("ours", name))
                if several and np.ptp(mine) + np.ptp(theirs) > 0:
                    figures[f"{key}: ours minus {name}"] = difference(mine, theirs, 1.0)
                elif several:
                    figures[f"{key}: ours minus {name}"] = (mine[0] - theirs[0],) * 3
                if name in PEERS:
                    above = several and figures[f"{key}: ours minus {name}"][1] > 0
                    goals[f"{key}: ours is above {name} beyond the 95 % interval"] = above
        means = {name: float(np.mean([entry["within"] for entry in results])) for name, results in rows.items()}
        goals["within: ours is the highest of the table"] = several and means["ours"] == max(means.values())
    return figures, goals


if __name__ == "__main__":
    sys.exit(main())
