"""Mixed models, GANs and discrete diffusion on data whose law is known: `python -m benchmarks.mixed [--keep JSON]`.

On the asymmetric mixture by the sliced Wasserstein distance to its law, on 8 x 8 digits by that to held-out digits, with
precision, recall and the share of components that are missed. All models have networks of one kind and size, see the same
number of examples, and are drawn with the same noise. With --keep, what is in the file is not measured again, so that a run
can be made in pieces (--only). About 12 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import mixture
from benchmarks.report import finish, table
from diffusion_core import presets, rng
from diffusion_core.extras import (
    closed_form,
    denoising_gan,
    diffflow,
    diffuse_vae,
    generators,
    likelihood,
    lsgm,
    tokens,
)
from diffusion_core.extras.vdm import bits_per_dim
from diffusion_core.nets.mlp import MLP
from diffusion_core.nets.patch_transformer import PatchTransformer
from diffusion_core.recipe import Recipe
from diffusion_core.sampling import solvers, timesteps
from diffusion_core.sampling.loop import generate
from diffusion_core.schedules import logsnr, sigma_level
from diffusion_core.training.trainer import TrainConfig, Trainer
from tasks.metrics.precision_recall import precision_recall_density_coverage

SD = 0.5
BATCH = 256
COUNT = 4000  # samples of the mixture in a set
LOW, HIGH = 0.02, 20.0  # sigmas of the plain model's timesteps
PLAIN, FEW = 32, 8  # evaluations of the plain model, and of those that shall need a quarter
START = 0.7  # sigma of truncated starts
GREYS = 17  # values of a digit's pixel


class Subject(NamedTuple):
    """Data `[n, d]`, and what judges samples of them."""

    d: int
    width: int
    data: Callable[[Tensor], Tensor]
    n: int
    judge: Callable[[Tensor], dict[str, float]]
    samples: int


def mixture_subject() -> Subject:
    """The mixture of known density."""
    law = mixture.quantiles(COUNT)

    def judge(samples: Tensor) -> dict[str, float]:
        nearest = torch.cdist(samples, mixture.MEANS).argmin(1)
        shares = torch.bincount(nearest, minlength=len(mixture.WEIGHTS)) / len(samples)
        own = torch.cdist(mixture.draw(7, torch.arange(20_000)), mixture.MEANS).argmin(1)
        wanted = torch.bincount(own, minlength=len(mixture.WEIGHTS)) / len(own)
        return {"distance": mixture.w2_to_law(samples, law), "shares off": float((shares - wanted).abs().sum() / 2)}

    return Subject(2, 96, lambda i: mixture.draw(1, i), 10**7, judge, COUNT)


def digits() -> tuple[Tensor, Tensor]:
    """Training and held-out digits `[n, 64]` of sd 0.5 around the mean, as scikit-learn has them, in an order of its own."""
    from sklearn.datasets import load_digits

    grey = torch.from_numpy(load_digits().data).float()
    grey = grey[torch.argsort(rng.bits(0, torch.arange(len(grey)), 1)[:, 0])]
    return grey[:1300], grey[1300:]


def digits_subject() -> Subject:
    """Digits in units in which they have the standard deviation SD."""
    known, held = digits()
    mean, scale = known.mean(), known.std() / SD
    known, held = (known - mean) / scale, (held - mean) / scale

    def judge(samples: Tensor) -> dict[str, float]:
        quality = precision_recall_density_coverage(samples[: len(held)].numpy(), held.numpy())
        return {
            "distance": mixture.sliced_w2(samples[: len(held)], held),
            "precision": quality.precision,
            "recall": quality.recall,
        }

    return Subject(64, 192, lambda i: known[i % len(known)], len(known), judge, len(held))


def train(subject: Subject, recipe: Recipe, steps: int, rate: float, seed: int = 0) -> tuple[Any, float]:
    """The averaged model, and the CPU-seconds of its training."""
    torch.manual_seed(seed)
    d = subject.d
    net = recipe.network(lambda maps, outputs: MLP(d, subject.width, 3, dict.fromkeys(maps, d), out=d * outputs))
    images = steps * BATCH
    config = TrainConfig(
        images, BATCH, rate, warmup_images=20 * BATCH, cooldown_images=images // 3, ema_halflife_images=images // 20,
        seed=seed,
    )  # fmt: skip
    trainer = Trainer(recipe.denoiser(net), recipe, config, lambda i: (subject.data(i), {}), subject.n)
    begun = time.process_time()
    while not trainer.done:
        trainer.step()
    return trainer.averaged(), time.process_time() - begun


def plain(subject: Subject) -> Recipe:
    """The diffusion model that the others are compared with."""
    return presets.edm(SD, sigma_min=LOW, sigma_max=HIGH)


def draw(subject: Subject, recipe: Recipe, model: Any, levels: Any, step: Any, seed: int = 0, **more: Any) -> Tensor:
    """Samples `[count, d]`."""
    how = {**recipe.drawing(model), **more}
    denoiser = model.posterior if isinstance(model, diffflow.TwoWays) else model
    return generate(denoiser, levels, step, (subject.d,), seed, torch.arange(subject.samples), **how)


def plain_rows(subject: Subject, steps: int) -> dict[str, Any]:
    """The plain model in PLAIN and in FEW evaluations, and from truncated starts."""
    recipe = plain(subject)
    model, seconds = train(subject, recipe, steps, 3e-3)
    rows: dict[str, Any] = {}
    for evaluations in (PLAIN, FEW, 4):
        samples = draw(subject, recipe, model, recipe.timesteps(evaluations), solvers.unipc())
        rows[f"plain, {evaluations}"] = {**subject.judge(samples), "evaluations": evaluations, "seconds": seconds}
    level = sigma_level(torch.tensor(START, dtype=torch.float64))
    for name, make, noise in (
        ("TDPM (GAN)", generators.gan(SD, START), 0.0),
        ("ES-DDPM (GAN)", generators.gan(SD), 1.0),
        ("ES-DDPM (VAE)", generators.vae(SD), 1.0),
    ):
        source, own = train(subject, make, steps, 1e-3 if "GAN" in name else 3e-3)
        begun = draw(subject, make, source, make.timesteps(1), make.step, seed=1)  # not the noise that is added to it
        if noise:
            rows[name.split("(")[1][:-1]] = {**subject.judge(begun), "evaluations": 1, "seconds": own}
        levels = timesteps.truncate(timesteps.karras(FEW, LOW, START), level)
        levels = [level, *levels[1:]]
        samples = draw(subject, recipe, model, levels, solvers.unipc(), start=begun, start_noise=noise)
        rows[name] = {**subject.judge(samples), "evaluations": len(levels) - 1, "seconds": seconds + own}
    return rows


def mixed_rows(subject: Subject, name: str, steps: int) -> dict[str, Any]:
    """One of the other models."""
    if name == "DiffuseVAE":
        recipe = diffuse_vae.diffuse_vae(SD)
        model, seconds = train(subject, recipe, steps, 3e-3)
        samples = draw(subject, recipe, model, timesteps.karras(FEW, LOW, HIGH), solvers.unipc())
        return {name: {**subject.judge(samples), "evaluations": FEW, "seconds": seconds}}
    if name == "DDGAN":
        recipe = denoising_gan.ddgan(SD)
        model, seconds = train(subject, recipe, steps, 1e-3)
        return {name: {**subject.judge(draw(subject, recipe, model, recipe.timesteps(4), recipe.step)),
                       "evaluations": 4, "seconds": seconds}}  # fmt: skip
    if name == "LSGM":
        recipe = lsgm.lsgm(SD)
        model, seconds = train(subject, recipe, 2 * steps, 3e-3)
        row = {**subject.judge(draw(subject, recipe, model, recipe.timesteps(16), solvers.unipc())), "evaluations": 16}
        bound = lsgm.bound
    else:
        recipe = diffflow.diffflow(SD)
        model, seconds = train(subject, recipe, steps // 2, 4e-3)
        row = {**subject.judge(draw(subject, recipe, model, recipe.timesteps(24), recipe.step)), "evaluations": 24}
        bound = diffflow.bound  # type: ignore[assignment]
    row["seconds"] = seconds
    if subject.d == 2:
        x0 = mixture.draw(99, torch.arange(COUNT))
        clean = sigma_level(torch.tensor(0.0, dtype=torch.float64))
        exact = closed_form.mixture_logp(x0.double(), clean, mixture.WEIGHTS, mixture.MEANS, mixture.SDS)
        gap = exact - bound(recipe, model, x0)
        row |= {"gap": float(gap.mean()), "gap error": float(gap.std()) / COUNT**0.5}
    return {name: row}


def gan_seeds(subject: Subject, steps: int) -> dict[str, Any]:
    """GAN against plain diffusion over three seeds: how far their distances spread."""
    rows = {}
    for name, recipe, rate in (("plain", plain(subject), 3e-3), ("GAN", generators.gan(SD), 1e-3)):
        found = []
        for seed in (1, 2, 3):
            model, _ = train(subject, recipe, steps // 2, rate, seed)
            levels = recipe.timesteps(PLAIN if name == "plain" else 1)
            step = solvers.unipc() if name == "plain" else recipe.step
            found.append(subject.judge(draw(subject, recipe, model, levels, step))["distance"])
        rows[f"{name}, three seeds"] = {"distance": float(np.mean(found)), "spread": float(np.std(found, ddof=1))}
    return rows


def token_rows(steps: int) -> dict[str, Any]:
    """The three discrete processes on the grey values of digits, and the distance of their samples."""
    known, held = digits()
    rows = {}
    for name, recipe in (
        ("masked, temperature 1", tokens.masked(GREYS, 1.0)), ("masked, temperature 0.5", tokens.masked(GREYS, 0.5)),
        ("absorbing", tokens.absorbing(GREYS)), ("uniform", tokens.uniform(GREYS)),
    ):  # fmt: skip
        torch.manual_seed(0)
        net = PatchTransformer(8, 1, channels=16, width=64, depth=2, heads=4, out=GREYS)
        config = TrainConfig(
            steps * 64, 64, 3e-3, optimiser="muon", muon_learning_rate=0.01, warmup_images=640,
            cooldown_images=steps * 24, ema_halflife_images=steps * 3,
        )  # fmt: skip
        model = recipe.denoiser(tokens.TokenNet(net, 8, GREYS, 16))
        trainer = Trainer(model, recipe, config, lambda i: (known[i % 1300].long(), {}), 1300)
        begun = time.process_time()
        while not trainer.done:
            trainer.step()
        seconds, averaged = time.process_time() - begun, trainer.averaged()
        drawn = generate(
            averaged, recipe.timesteps(16), recipe.step, (64,), 0, torch.arange(len(held)), **recipe.drawing(averaged)
        )
        scale = known.std() / SD
        distance = mixture.sliced_w2(drawn.float() / scale, held / scale)
        rows[name] = {
            "distance": distance,
            "evaluations": 16,
            "seconds": seconds,
            "mean grey": float(drawn.float().mean()),
        }
    rows["data"] = {"distance": 0.0, "mean grey": float(held.mean())}
    return rows


def likelihood_rows(steps: int) -> dict[str, Any]:
    """Bits a pixel of held-out digits, whose grey values are GREYS numbers from -1 to 1, with each decoder."""
    known, held = digits()
    known, held = known / 8 - 1, held / 8 - 1
    sd = float(known.std())
    subject = Subject(64, 192, lambda i: known[i % len(known)], len(known), lambda _: {}, 0)
    model, seconds = train(subject, presets.edm(sd), steps, 3e-3)
    schedule = logsnr(7.0, -10.0)
    important = likelihood.important_levels(model, known[:400].double(), schedule)
    decoders = {"normal law (DDPM)": likelihood.discrete_decoder(GREYS), "logistic": likelihood.logistic_decoder(GREYS)}
    net = nn.Linear(64, 64 * likelihood.LogisticMixture.parameters_of(1, 3))
    nn.init.zeros_(net.weight)
    nn.init.normal_(net.bias, 0.0, 0.1)
    mixed = likelihood.LogisticMixture(nn.Sequential(net, nn.Unflatten(1, (-1, 64))), 1, components=3, bins=GREYS)
    optimiser = torch.optim.Adam(mixed.parameters(), lr=0.01)
    last = schedule(torch.tensor(0.0))
    for i in range(150):
        x0 = known[torch.arange(i * 128, (i + 1) * 128) % 1300]
        loss = -mixed(x0, last.corrupt(x0, rng.normal((64,), 5, torch.arange(i * 128, (i + 1) * 128))), last, x0).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    decoders["mixture of 3 logistics"] = mixed
    rows = {}
    for name, decoder in decoders.items():
        for kind, levels in (("even levels", None), ("chosen levels", important)):
            bits = bits_per_dim(model, held.double(), schedule, draws=16, decoder=decoder, levels=levels)
            mean, error = likelihood.mean_and_error(bits)
            rows[f"{name}, {kind}"] = {"bits": mean, "error": error, "seconds": seconds}
    return rows


PIECES = ("plain", "DiffuseVAE", "DDGAN", "LSGM", "DiffFlow", "seeds", "tokens", "likelihood")


def measure(piece: str, name: str, steps: int) -> dict[str, Any]:
    """The rows of a piece on a subject."""
    if piece in ("tokens", "likelihood"):
        if name != "digits":
            return {}
        return token_rows(max(steps // 4, 2)) if piece == "tokens" else likelihood_rows(steps)
    subject = mixture_subject() if name == "mixture" else digits_subject()
    if piece == "plain":
        return plain_rows(subject, steps)
    if piece == "seeds":
        return gan_seeds(subject, steps)
    if name == "digits" and piece == "DiffFlow":
        return {}  # its bound is what counts, and only in two dimensions it is known
    return mixed_rows(subject, piece, steps)


def goals_of(rows: dict[str, Any]) -> dict[str, bool]:
    """The goals whose models were measured."""
    goals: dict[str, bool] = {}
    if f"plain, {PLAIN}" in rows:
        limit = 1.1 * rows[f"plain, {PLAIN}"]["distance"]
        for name in ("DiffuseVAE", "TDPM (GAN)", "DDGAN"):
            if name in rows:
                row = rows[name]
                few = row["evaluations"] <= PLAIN / 4
                goals[f"{name} within 10% of the plain model at a quarter of its evaluations"] = (
                    few and row["distance"] <= limit
                )
    for name in ("LSGM", "DiffFlow"):
        if "gap" in rows.get(name, {}):
            gap, error = rows[name]["gap"], rows[name]["gap error"]
            goals[f"{name}'s bound is below the exact log-likelihood, within 0.1 nat"] = -2 * error < gap < 0.1
    return goals


def main() -> int:
    """Measure what is missing, print the tables and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixed", description=__doc__)
    parser.add_argument("--steps", type=int, default=1000, help=f"of training, with {BATCH} examples each")
    parser.add_argument("--subjects", nargs="*", default=["mixture", "digits"], choices=["mixture", "digits"])
    parser.add_argument("--only", nargs="*", default=list(PIECES), choices=PIECES)
    parser.add_argument("--keep", type=Path, help="file (json) with what is measured already")
    options = parser.parse_args()
    kept: dict[str, Any] = {}
    if options.keep is not None and options.keep.is_file():
        kept = json.loads(options.keep.read_text())
    for name in options.subjects:
        for piece in options.only:
            key = f"{name}/{piece}/{options.steps}"
            if key not in kept:
                kept[key] = measure(piece, name, options.steps)
                print(key, kept[key], file=sys.stderr, flush=True)
                if options.keep is not None:
                    new = options.keep.with_suffix(".new")
                    new.write_text(json.dumps(kept))
                    new.rename(options.keep)
    figures: dict[str, Any] = {}
    goals: dict[str, bool] = {}
    for name in options.subjects:
        rows: dict[str, Any] = {}
        for key, value in kept.items():
            if key.startswith(f"{name}/"):
                rows |= {row: {**found, "steps": int(key.split("/")[2])} for row, found in value.items()}
        columns = sorted({column for row in rows.values() for column in row}, key=lambda c: (c != "distance", c))
        print(
            table(
                [
                    (name, *columns),
                    *((one, *(_shown(row.get(column)) for column in columns)) for one, row in rows.items()),
                ]
            )
        )
        print()
        figures[name] = rows
        goals |= {f"{name}: {goal}": reached for goal, reached in goals_of(rows).items()}
    return finish("mixed", figures, goals)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
