"""Quality reached in a given time on given cores: our default training beside two peers, on the same pictures.

    python -m benchmarks.quality_per_compute [--seconds 240] [--seeds 3] [--threads 1] [--at-once 2] [--pictures FILE.npz]

The peers are the recipe of diffusers' `train_unconditional.py` (its U-Net, AdamW, cosine schedule, EMA, 1000 linear steps of
noise prediction) and denoising-diffusion-pytorch's `Trainer` (its U-Net, Adam, EMA, the v objective). All three networks have
nearly as many parameters, see the same mannequins (32 px, mirrored at random) and train for the same wall time on as many
cores, one process each. Then each samples in its own way, on a GPU if there is one (that is not timed), and the same code
judges all: the kernel distance (KID) of pixels to held-out pictures, and the Frechet distance of 8 x 8 grey thumbnails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor, nn

from benchmarks.report import finish, table
from tasks.metrics.features import pixels
from tasks.metrics.frechet import frechet_estimate
from tasks.metrics.kid import kid

SIZE, TRAIN, HELD_OUT = 32, 1200, 400
GOAL = 0.8  # of the better peer's distance
Sampler = Callable[[int], Tensor]  # count -> pictures [count, 3, SIZE, SIZE] in -1 ... 1


def draw_pictures(path: Path) -> None:
    """Draw the mannequins, training and held-out ones in a row, and store them."""
    from tasks.synthetic.stage import picture

    def small(index: int) -> np.ndarray:
        image = picture(0, index, 2 * SIZE).image.astype(np.float32)
        half: np.ndarray = image.reshape(SIZE, 2, SIZE, 2, 3).mean(axis=(1, 3))
        return half.round().astype(np.uint8)

    np.savez_compressed(path, pictures=np.stack([small(i) for i in range(TRAIN + HELD_OUT)]))


def count(net: nn.Module) -> int:
    """Parameters of a network."""
    return sum(p.numel() for p in net.parameters())


def as_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 `[n, size, size, 3]` to float32 `[n, 3, size, size]` in -1 ... 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1


def passing(x0: Tensor, seed: int, batch: int) -> list[Tensor]:
    """The batches of one pass over the pictures in random order, each picture mirrored or not at random."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(x0), generator=generator)
    mirrored = torch.rand(len(x0), generator=generator) < 0.5
    some = torch.where(mirrored[:, None, None, None], x0[rows].flip(-1), x0[rows])
    return [some[i : i + batch] for i in range(0, len(some) - batch + 1, batch)]


def ours(x0: Tensor, seconds: float, seed: int, device: torch.device) -> tuple[Sampler, int, int]:
    """Our default: a patch transformer trained with the EDM recipe and the settings of params.yaml, sampled in 18
    Heun steps."""
    from diffusion_core import presets
    from diffusion_core.nets.patch_transformer import PatchTransformer
    from diffusion_core.sampling.loop import generate
    from diffusion_core.training.trainer import TrainConfig, Trainer

    both = torch.cat([x0, x0.flip(-1)])
    mean, scale = both.mean(), both.std() / 0.5
    both = (both - mean) / scale
    torch.manual_seed(seed)
    recipe = presets.edm(0.5)
    net = PatchTransformer(SIZE, 4, width=128, depth=6, heads=4)
    config = TrainConfig(
        images=10**9, batch=64, learning_rate=1e-3, warmup_images=3000, ema_halflife_images=4000, seed=seed
    )
    trainer = Trainer(recipe.denoiser(net), recipe, config, lambda i: (both[i], {}), len(both))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        trainer.step()
    denoiser = trainer.averaged().to(device)

    def sample(n: int) -> Tensor:
        ids = torch.arange(n, device=device)
        z = generate(denoiser, recipe.timesteps(18), recipe.step, (3, SIZE, SIZE), seed, ids, {}, batch=100)
        return (z.cpu() * scale + mean).clamp(-1, 1)

    return sample, count(net), trainer.nimg


def diffusers_recipe(
    x0: Tensor, seconds: float, seed: int, device: torch.device, peer_steps: int
) -> tuple[Sampler, int, int]:
    """train_unconditional.py: batch 16, AdamW 1e-4 (0.95, 0.999), weight decay 1e-6, cosine after 500 steps, EMA, clip 1."""
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    torch.manual_seed(seed)
    net = UNet2DModel(
        sample_size=SIZE, in_channels=3, out_channels=3, layers_per_block=2, norm_num_groups=8,
        block_out_channels=(16, 16, 32, 40, 64, 64), down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    ema = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    noising = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")

    def step(clean: Tensor) -> None:
        noise = torch.randn_like(clean)
        t = torch.randint(0, 1000, (len(clean),))
        guess = net(noising.add_noise(clean, noise, t), t).sample
        nn.functional.mse_loss(guess, noise).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)

    for _ in range(3):  # the number of steps, which the cosine needs, is measured before the clock starts
        began = time.perf_counter()
        step(x0[:16])
        optimizer.zero_grad()
        once = time.perf_counter() - began
    schedule = get_cosine_schedule_with_warmup(optimizer, 500, max(501, int(seconds / once)))
    seen, passes, end = 0, 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        for clean in passing(x0, seed * 1000 + passes, 16):
            step(clean)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            ema.step(net.parameters())
            seen += len(clean)
            if time.perf_counter() >= end:
                break
        passes += 1
    ema.copy_to(net.parameters())
    net.to(device).eval()

    @torch.no_grad()
    def sample(n: int) -> Tensor:
        scheduler = DDIMScheduler.from_config(noising.config)
        scheduler.set_timesteps(peer_steps)
        parts = []
        for size in [100] * (n // 100):
            x = torch.randn(size, 3, SIZE, SIZE, device=device)
            for t in scheduler.timesteps:
                x = scheduler.step(net(x, t).sample, t, x).prev_sample
            parts.append(x.cpu())
        return torch.cat(parts).clamp(-1, 1)

    return sample, count(net), seen


def lucidrains_trainer(
    pictures: np.ndarray, seconds: float, seed: int, device: torch.device, peer_steps: int
) -> tuple[Sampler, int, int]:
    """denoising-diffusion-pytorch's `Trainer` with its defaults, stopped when the time is up."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet
    from denoising_diffusion_pytorch import denoising_diffusion_pytorch as package
    from PIL import Image

    package.cpu_count = lambda: 0  # its loader would start a process for every core of the machine
    torch.manual_seed(seed)
    net = Unet(dim=14)
    diffusion = GaussianDiffusion(net, image_size=SIZE, timesteps=1000, sampling_timesteps=peer_steps)
    with tempfile.TemporaryDirectory() as folder:
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(Path(folder) / f"{i:05d}.png")
        trainer = Trainer(
            diffusion, folder, train_num_steps=10**9, calculate_fid=False, save_and_sample_every=10**9,
            results_folder=f"{folder}/results",
        )  # fmt: skip
        end = time.perf_counter() + seconds
        update = trainer.ema.update

        def until_the_time_is_up() -> None:
            update()
            if time.perf_counter() >= end:
                trainer.train_num_steps = 0

        trainer.ema.update = until_the_time_is_up
        trainer.train()
    model = trainer.ema.ema_model.to(device).eval()

    @torch.no_grad()
    def sample(n: int) -> Tensor:
        parts = [model.sample(batch_size=100).cpu() for _ in range(n // 100)]
        return torch.cat(parts).clamp(0, 1) * 2 - 1

    return sample, count(net), trainer.step * trainer.batch_size


def judge(generated: Tensor, held_out: np.ndarray) -> dict[str, float]:
    """Kernel distance of pixels and bias-corrected Frechet distance of thumbnails, to the held-out pictures."""
    sets = [(generated.permute(0, 2, 3, 1).numpy() + 1) / 2, held_out.astype(np.float32) / 255]
    thumbnails = [
        s.reshape(len(s), 8, SIZE // 8, 8, SIZE // 8, 3).mean(axis=(2, 4, 5)).reshape(len(s), -1) for s in sets
    ]
    return {
        "kid": kid(pixels(sets[0]), pixels(sets[1])).value,
        "frechet": frechet_estimate(thumbnails[0], thumbnails[1], np.random.default_rng(0)).value,
    }


def one(who: str, seed: int, options: argparse.Namespace) -> None:
    """Train and judge one contender; prints one JSON line and leaves a sheet of samples."""
    torch.set_num_threads(options.threads)
    pictures = np.load(options.pictures)["pictures"]
    train, held_out = pictures[:TRAIN], pictures[TRAIN:]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if who == "ours":
        sampler, parameters, seen = ours(as_tensor(train), options.seconds, seed, device)
    elif who == "diffusers":
        sampler, parameters, seen = diffusers_recipe(
            as_tensor(train), options.seconds, seed, device, options.peer_steps
        )
    else:
        sampler, parameters, seen = lucidrains_trainer(train, options.seconds, seed, device, options.peer_steps)
    samples = sampler(len(held_out))
    np.savez_compressed(
        f"{options.samples}-{who}-{seed}.npz", samples=((samples[:32] + 1) * 127.5).round().byte().numpy()
    )
    found = judge(samples, held_out)
    print(json.dumps({"who": who, "seed": seed, "parameters": parameters, "images": seen, **found}), flush=True)


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval by Student's t."""
    mean = float(np.mean(values))
    reach = float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / sqrt(len(values)))
    return mean, mean - reach, mean + reach


def difference(a: list[float], b: list[float], share: float) -> tuple[float, float, float]:
    """mean a - share * mean b and its 95 % interval, for independent runs (Welch 1947)."""
    parts = np.array([np.var(a, ddof=1) / len(a), share**2 * np.var(b, ddof=1) / len(b)])
    freedom = parts.sum() ** 2 / (parts**2 / [len(a) - 1, len(b) - 1]).sum()
    mean = float(np.mean(a) - share * np.mean(b))
    reach = float(student.ppf(0.975, freedom) * np.sqrt(parts.sum()))
    return mean, mean - reach, mean + reach


def main() -> int:
    """Run all contenders and compare."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=240, help="of training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of each training")
    parser.add_argument(
        "--at-once", type=int, default=max(1, len(os.sched_getaffinity(0))), help="trainings side by side"
    )
    parser.add_argument("--peer-steps", type=int, default=250 if cuda else 50, help="DDIM steps of the peers")
    parser.add_argument("--pictures", help="an npz of them, as drawn here before")
    parser.add_argument("--samples", default=str(Path(tempfile.gettempdir()) / "quality_per_compute"))
    parser.add_argument("--one", nargs=2, metavar=("WHO", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pictures is None:
        options.pictures = f"{options.samples}-pictures.npz"
        draw_pictures(Path(options.pictures))
    if options.one:
        one(options.one[0], int(options.one[1]), options)
        return 0

    def run(job: tuple[str, int]) -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.quality_per_compute", "--one", job[0], str(job[1])]
        for name in ("seconds", "threads", "peer_steps", "pictures", "samples"):
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{job}: {done.stderr[-2000:]}")
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return row

    names = ("ours", "diffusers", "lucidrains")
    jobs = [(who, seed) for seed in range(options.seeds) for who in names]
    with ThreadPoolExecutor(options.at_once) as pool:
        rows = list(pool.map(run, jobs))
    pictures = np.load(options.pictures)["pictures"]
    floor = judge(as_tensor(pictures[:HELD_OUT]), pictures[TRAIN:])
    cells: list[tuple[str, ...]] = [("contender", "parameters", "images seen", "pixel KID", "thumbnail Frechet")]
    found: dict[str, dict[str, list[float]]] = {}
    for who in names:
        mine = [row for row in rows if row["who"] == who]
        found[who] = {what: [row[what] for row in mine] for what in ("kid", "frechet")}
        shown = ["{:.4g} ({:.4g} to {:.4g})".format(*interval(found[who][what])) for what in ("kid", "frechet")]
        cells.append((who, f"{mine[0]['parameters']:,}", f"{np.mean([row['images'] for row in mine]):,.0f}", *shown))
    cells.append(("training pictures", "", "", f"{floor['kid']:.4g}", f"{floor['frechet']:.4g}"))
    print(table(cells))
    figures, goals = {"rows": rows, "floor": floor, "seconds": options.seconds, "threads": options.threads}, {}
    for what in ("kid", "frechet"):
        peer = min(names[1:], key=lambda who: float(np.mean(found[who][what])))
        figures[f"{what}_ratio_to_{peer}"] = float(np.mean(found["ours"][what]) / np.mean(found[peer][what]))
        less = difference(found["ours"][what], found[peer][what], GOAL)
        figures[f"{what}_minus_{GOAL}_of_{peer}"] = less
        goals[f"{what}: ours is below {GOAL} of {peer}'s, the better peer's, with its whole 95 % interval"] = (
            less[2] < 0
        )
    return finish("quality_per_compute", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
