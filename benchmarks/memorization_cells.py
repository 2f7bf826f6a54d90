"""One repetition of each cell of `benchmarks.memorization_power`: one set of data and the statistics computed on it.

Each function is pure (its arguments hold the seed) and gives numbers by name; a verdict is 1 or 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.copy_peers import PEERS
from benchmarks.synthetic_law import Law, with_copies
from benchmarks.synthetic_pictures import compared_array, copies, figure, figures
from tasks.evaluate.memorization import positive_control
from tasks.evaluate.memorization.certificate import Certificate, certify, score_samples
from tasks.evaluate.memorization.copy_test import Verdict
from tasks.evaluate.memorization.invariances import PICTURE_BANKS, Bank, Invariance, identity
from tasks.evaluate.memorization.positive_control import Planted, Planter
from tasks.evaluate.memorization.reference import Items, make_reference

VECTORS = Bank("vectors", (Invariance("as is", identity),), lambda x: x, identity)
PLANTED = 100  # copies planted among pictures
Numbers = dict[str, float]
Generator = Callable[[int, np.random.Generator], np.ndarray]


def _plant(train: np.ndarray) -> Planter:
    """Plants near copies of feature vectors: moved by 2% of the law's spread."""

    def plant(count: int, rng: np.random.Generator) -> Planted:
        rows = rng.choice(len(train), count)
        moved = rng.normal(0, 0.02 * train.std(), (count, train.shape[1])).astype(np.float32)
        return Planted(train[rows] + moved, rows, ["moved"] * count)

    return plant


def _certificate(train: Items, heldout: Items, generated: np.ndarray, rng: np.random.Generator) -> Certificate:
    compared = make_reference((VECTORS,), train, heldout)
    return certify("samples", score_samples("samples", generated, compared), compared, _plant(train.data), rng)


def _apart(train: np.ndarray, heldout: np.ndarray) -> tuple[Items, Items]:
    """One group per item."""
    n = len(train)
    return Items(train, np.arange(n)), Items(heldout, n + np.arange(len(heldout)))


def copied(scenario: str) -> tuple[float, float]:
    """The share of copies and their distance in "0.01 eta 0.3": 0.01, 0.3; zeros for a scenario without copies."""
    fraction, word, eta = scenario.partition(" eta ")
    return (float(fraction), float(eta)) if word else (0.0, 0.0)


def _sets(
    law: Law, size: tuple[int, int, int], scenario: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Training, held-out and generated features of one scenario, and how many of the first generated are copies."""
    without: dict[str, Generator] = {
        "blur": law.blurred,
        "shrink": law.shrunk,
        "half the modes": law.half_the_modes,
        "noise": law.noisy,
    }
    n, m, g = size
    train, heldout = law.draw(n, rng), law.draw(m, rng)
    generated = without.get(scenario, law.draw)(g, rng)
    fraction, eta = copied(scenario)
    count = max(2, round(fraction * g)) if fraction else 0
    if count:
        generated = with_copies(generated, train, heldout, count, eta, rng)
    return train, heldout, generated, count


def _outcome(certificate: Certificate, count: int) -> Numbers:
    """Verdict, tests and list as numbers; the first `count` samples are copies."""
    numbers = {verdict.value: float(certificate.verdict is verdict) for verdict in Verdict}
    numbers["split test"] = float(certificate.split.p < 0.01)
    numbers["control found"] = certificate.power.share
    if count:
        listed = certificate.copies
        numbers["true positives"] = float(listed[:count].mean())
        numbers["false discoveries"] = float(listed[count:].sum() / max(1, listed.sum()))
    return numbers


def law_set(size: tuple[int, int, int], scenario: str, rep: int) -> Numbers:
    """The verdict on features of the synthetic law."""
    rng = np.random.default_rng([rep, size[0]])
    train, heldout, generated, count = _sets(Law(), size, scenario, rng)
    return _outcome(_certificate(*_apart(train, heldout), generated, rng), count)


def peer_set(scenario: str, rep: int) -> Numbers:
    """Every published statistic, and this project's own p-value and verdict, at n = 1000, m = 250, g = 1000."""
    rng = np.random.default_rng([rep, 7])
    train, heldout, generated, _ = _sets(Law(), (1000, 250, 1000), scenario, rng)
    numbers = {name: statistic(train, heldout, generated) for name, statistic in PEERS.items()}
    certificate = _certificate(*_apart(train, heldout), generated, rng)
    return numbers | {"p": certificate.p, Verdict.COPIES.value: float(certificate.verdict is Verdict.COPIES)}


def dimension_set(dimension: int, eta: float, rep: int) -> Numbers:
    """20 copies among 1000 samples of a law of that dimension; n = 1000, m = 250."""
    rng = np.random.default_rng([rep, dimension, 11])
    law, size = Law(latent=dimension), (1000, 250, 1000)
    train, heldout, generated, count = _sets(law, size, f"0.02 eta {eta}", rng)
    certificate = _certificate(*_apart(train, heldout), generated, rng)
    bank = certificate.banks[0]
    return _outcome(certificate, count) | {
        "dimension": bank.tail.dimension,
        "smallest copy": bank.smallest_copy,
        "fresh below 1/3": float((bank.samples.ratio[count:] < 1 / 3).mean()),
    }


def picture_set(disguises: tuple[str, ...], rep: int) -> Numbers:
    """For each disguise: 500 pictures, 10 of them disguised copies (none if it is "fresh"), n = 1000, m = 250."""
    start = rep * 10_000
    train, heldout = figures(range(start, start + 1000)), figures(range(start + 1000, start + 1250))
    compared = make_reference(PICTURE_BANKS, *_apart(train, heldout))
    fresh, disguised = figures(range(start + 2000, start + 2500)), [name for name in disguises if name != "fresh"]
    made = [copies([start + 7 * i for i in range(10)], disguise) for disguise in disguised]
    # The scores of different samples are independent.
    scored = score_samples("pictures", np.concatenate([fresh, *made]), compared)
    planter = positive_control.pictures(1000, lambda row: np.asarray(figure(start + row)), compared_array)
    numbers: Numbers = {}
    for disguise in disguises:
        rows, count = np.arange(500), 0 if disguise == "fresh" else 10
        if count:
            rows[:count] = 500 + 10 * disguised.index(disguise) + np.arange(count)
        chosen = [scores.rows(rows) for scores in scored]
        rng = np.random.default_rng(rep)
        outcome = _outcome(certify("pictures", chosen, compared, planter, rng, planted=PLANTED), count)
        numbers |= {f"{disguise}: {name}": value for name, value in outcome.items()}
    return numbers


def video_set(frames: int, jitter: float, by_scene: bool, count: int, rep: int) -> Numbers:
    """1250 frames in scenes of `frames`, latent points `jitter` deviations apart, split by scene or at random; `count` copies
    among 1000 samples."""
    law = Law()
    rng = np.random.default_rng([rep, frames, 9])
    scenes = np.repeat(np.arange(1250 // frames), frames)
    latents = law.latents(1250 // frames, rng)[scenes]
    x = law.features(latents + rng.normal(0, 0.5 * jitter, latents.shape))
    key = rng.permutation(scenes.max() + 1)[scenes] if by_scene else rng.permutation(len(x))
    outside = key >= np.quantile(key, 0.8)
    # A random split ignores the scenes: every frame is its own group.
    group = scenes if by_scene else np.arange(len(x))
    train, heldout = Items(x[~outside], group[~outside]), Items(x[outside], group[outside])
    generated = law.draw(1000, rng)
    if count:
        generated = with_copies(generated, train.data, heldout.data, count, 0.1 * jitter, rng)
    return _outcome(_certificate(train, heldout, generated, rng), count)
