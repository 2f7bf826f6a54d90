"""`python -m benchmarks.certify`: time and memory of `contrapposto certify`, and cases that it has to catch.

speed        10,000 training pictures and 2,000 samples of 256 px, in a process of its own; beside it a plain comparison of
             DCT hashes (imagehash, all pairs): decoding included on both sides
backgrounds  samples that are training pictures before another background, as a LoRA makes them
trained      a model of 30 people that is trained until it copies
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import imagehash
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from benchmarks.report import finish, table
from benchmarks.synthetic_pictures import figure
from diffusion_core import MLP, TrainConfig, Trainer, generate, presets
from tasks.certify import certify
from tasks.common import machine
from tasks.common.pool import OrderedMap
from tasks.synthetic import stage as mannequin

SIZE = 256
SMALL = 32  # pixels of the pictures that a model is trained on; they are saved twice as large
COMPONENTS = 96
COPIES = 20  # among the samples of the speed section


def picture(seed: int) -> Image.Image:
    """A figure before coloured noise with detail at all scales."""
    rng = np.random.default_rng([seed, 5])
    layers = np.zeros((SIZE, SIZE, 3), np.float32)
    for cells in (4, 16, 64):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3)).astype(np.uint8))
        layers += np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32) / 3
    body = figure(seed).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return Image.blend(Image.fromarray(layers.astype(np.uint8)), body, 0.4)


@contextmanager
def _drawer() -> Iterator[Callable[[tuple[Path, int]], None]]:
    yield lambda job: picture(job[1]).save(job[0], quality=90)


@contextmanager
def _hasher() -> Iterator[Callable[[Path], np.ndarray]]:
    def hashed(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return np.packbits(imagehash.phash(image).hash)

    yield hashed


def _draw(folder: Path, seeds: list[int]) -> None:
    folder.mkdir(parents=True)
    jobs = [(folder / f"{at:05d}.jpg", seed) for at, seed in enumerate(seeds)]
    with closing(OrderedMap(_drawer, jobs, machine.cores())) as drawn:
        for _ in tqdm(drawn, total=len(jobs), desc=f"draw {folder.name}", mininterval=5):
            pass


def _hash_comparison(root: Path) -> float:
    """Wall seconds of DCT hashes of all pictures, and the smallest Hamming distance of each sample to a training picture."""
    start = time.perf_counter()
    hashes = []
    for name in ("train", "samples"):
        files = sorted((root / name).iterdir())
        with closing(OrderedMap(_hasher, files, machine.cores())) as found:
            hashes.append(np.stack(list(found)))
    for sample in hashes[1]:
        np.bitwise_count(hashes[0] ^ sample).sum(axis=1).min()
    return time.perf_counter() - start


def speed(train: int, samples: int) -> dict[str, float]:
    """Seconds, and the largest memory of the process, of one certificate; seconds of the hashes."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _draw(root / "train", list(range(train)))
        _draw(root / "samples", [*range(COPIES), *range(10**6, 10**6 + samples - COPIES)])
        arguments = ["--train", str(root / "train"), "--samples", str(root / "samples"), "--out", str(root / "out")]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, "-m", "flows.cli", "certify", *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": str(machine.cores())}
        code = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        report = json.loads((root / "out/certificate.json").read_text())
        return {
            "train": train,
            "samples": samples,
            "wall_seconds": wall,
            "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "memory_gib": after.ru_maxrss / 2**20,
            "hash_wall_seconds": _hash_comparison(root),
            "exit_code": code,
            "copies_listed": len({pair["sample"] for pair in report["copies"]}),
            "copies": COPIES,
        }


def backgrounds(copies: int = 20) -> dict[str, float]:
    """300 training pictures, 100 held out, and 200 samples of which some are training figures before other backgrounds."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sets = {
            "train": [figure(seed) for seed in range(300)],
            "heldout": [figure(seed) for seed in range(1000, 1100)],
            "samples": [
                *(figure(seed, 10**7 + seed) for seed in range(copies)),
                *(figure(seed) for seed in range(2000, 2200 - copies)),
            ],
        }
        for name, pictures in sets.items():
            (root / name).mkdir()
            for at, drawn in enumerate(pictures):
                drawn.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(root / name / f"{at:04d}.png")
        result = certify(root / "train", root / "samples", root / "heldout")
        listed = [pair["sample"] for pair in result.report["copies"]]
        return {
            "copies": copies,
            "caught": float(result.exit_code == 10),
            "on_the_list": sum(int(name[:4]) < copies for name in listed),
            "false": sum(int(name[:4]) >= copies for name in listed),
        }


def trained(steps: int = 800, early: int = 30) -> dict[str, float]:
    """A small diffusion model of 30 mannequins of 32 pixels: 150 samples after `early` and after `steps` steps as PNG files.

    40 more mannequins are held out. The model works on COMPONENTS principal components of 300 others, which makes it copy
    within a minute.
    """
    train, others = _persons(range(30)), _vectors(_persons(range(1000, 1300)))
    mean = others.mean(0)
    _, spread, axes = torch.linalg.svd(others - mean, full_matrices=False)
    axes, spread = axes[:COMPONENTS], spread[:COMPONENTS] / len(others) ** 0.5
    sd = 0.5
    x0 = (_vectors(train) - mean) @ axes.T / spread * sd
    torch.manual_seed(0)
    recipe = presets.edm(sd=sd)
    batch = 128
    trainer = Trainer(
        recipe.denoiser(MLP(COMPONENTS, width=256, depth=3)),
        recipe,
        TrainConfig(
            images=steps * batch,
            batch=batch,
            warmup_images=20 * batch,
            ema_halflife_images=20 * batch,
            learning_rate=1e-3,
        ),
        data=lambda index: (x0[index], {}),
        n=len(x0),
    )
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _save(root / "train", train)
        _save(root / "heldout", _persons(range(100, 140)))
        for step in tqdm(range(1, steps + 1), desc="train", mininterval=5):
            trainer.step()
            if step in (early, steps):
                z = generate(
                    trainer.averaged(),
                    recipe.timesteps(18),
                    recipe.step,
                    shape=[COMPONENTS],
                    seed=0,
                    ids=torch.arange(150),
                )
                drawn = ((z / sd * spread) @ axes + mean).reshape(-1, SMALL, SMALL, 3)
                _save(root / f"step-{step}", ((drawn + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).numpy())
                result = certify(root / "train", root / f"step-{step}", root / "heldout")
                name = "late" if step == steps else "early"
                found[f"{name}_is_copies"] = float(result.exit_code == 10)
                found[f"{name}_listed"] = len(result.report["copies"])
    return found


def _persons(numbers: range) -> np.ndarray:
    """Mannequins, uint8 `[n, 32, 32, 3]`."""
    return np.stack([_person(number) for number in numbers])


def _vectors(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).float().flatten(1) / 127.5 - 1


def _person(number: int) -> np.ndarray:
    """A mannequin, uint8 `[32, 32, 3]`."""
    image = Image.fromarray(mannequin.picture(1, number, 128).image)
    return np.asarray(image.resize((SMALL, SMALL), Image.Resampling.BOX))


def _save(folder: Path, pictures: np.ndarray) -> None:
    """Save pictures, enlarged."""
    folder.mkdir(parents=True)
    for at, one in enumerate(pictures):
        Image.fromarray(one).resize((2 * SMALL, 2 * SMALL), Image.Resampling.BICUBIC).save(folder / f"{at:04d}.png")


def main() -> int:
    """Print the tables and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.certify", description=__doc__)
    parser.add_argument("sections", nargs="*", default=["speed", "backgrounds", "trained"])
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=2_000)
    options = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    goals: dict[str, bool] = {}
    if "speed" in options.sections:
        found = figures["speed"] = speed(options.train, options.samples)
        goals |= {
            "at most 3 minutes": found["wall_seconds"] <= 180,
            "at most 2 GiB": found["memory_gib"] <= 2,
            "all exact copies listed": found["copies_listed"] >= COPIES,
        }
    if "backgrounds" in options.sections:
        found = figures["backgrounds"] = backgrounds()
        goals["other backgrounds are caught"] = found["caught"] == 1
    if "trained" in options.sections:
        found = figures["trained"] = trained()
        goals["a model that was trained until it copies is caught"] = found["late_is_copies"] == 1
        goals["it is not accused before"] = found["early_is_copies"] == 0
    for name, numbers in figures.items():
        print(name)
        print(table([(key, f"{value:.4g}") for key, value in numbers.items()]))
    return finish("certify", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
