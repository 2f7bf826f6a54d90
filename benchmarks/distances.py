"""`python -m benchmarks.distances`: distances against torch-fidelity and float64 references: bias, intervals and speed.

Sections: `parity` (E1), `estimators` (E2, E3), `sources` (E3 where many vectors come from one source), `manifold` (E4:
precision and recall at 50k x 2048, in memory and counts), `speed` (S1). `--reps` scales E2 and E3; `--size` is the number of
vectors of E4.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from typing import Any

import numpy as np
import scipy.linalg
import torch
from tqdm import trange

from benchmarks.report import best_seconds, finish
from tasks.metrics.estimate import TooFewSamples
from tasks.metrics.feature_cache import digest
from tasks.metrics.frechet import frechet, frechet_estimate, frechet_of
from tasks.metrics.kid import kid
from tasks.metrics.moments import Moments
from tasks.metrics.precision_recall import precision_recall_density_coverage

Figures = dict[str, Any]


def features(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated non-normal features (softplus of mixed normals), float32 `[n, d]`."""
    mix = np.random.default_rng([d, 1]).normal(0, 1.5 / np.sqrt(d), (d, d))
    x = np.random.default_rng([seed, d]).normal(shift, 1, (n, d)) @ mix
    return np.log1p(np.exp(x)).astype(np.float32)


def _by_eigenvalues(x: np.ndarray, y: np.ndarray) -> float:
    """The Frechet distance by numpy's eigenvalues of the product of the covariances, float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    cross = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * cross)


def parity(reps: int, size: int) -> tuple[Figures, dict[str, bool]]:
    """E1: the value against torch-fidelity's and numpy's; merged against one-pass moments. E5: what changes the cache key."""
    from tasks.metrics import torch_fidelity_bridge as bridge

    figures: Figures = {}
    worst = {"many": 0.0, "few": 0.0}
    for n, d in ((2000, 99), (1000, 512), (80, 99), (300, 512)):
        x, y = features(n, d, 0), features(n, d, 1, shift=0.05)
        ours, numpy_value = frechet_of(x, y), _by_eigenvalues(x, y)
        theirs = bridge.frechet_pose_distance(x, y)  # the extractor flattens its input
        error = max(abs(ours / theirs - 1), abs(ours / numpy_value - 1))
        figures[f"relative difference, {n} x {d}"] = error
        kind = "many" if n > d else "few"
        worst[kind] = max(worst[kind], error)
    x = features(5000, 200, 3) + 100
    merged = Moments.of(x[:7])
    for part in np.array_split(x[7:], 9):
        merged = merged.merge(Moments.of(part))
    whole = Moments.of(x)
    error = float(np.abs(merged.covariance - whole.covariance).max() / np.abs(whole.covariance).max())
    figures["relative difference of merged covariance"] = error
    pictures = np.random.default_rng(0).integers(0, 256, (1000, 32, 32, 3)).astype(np.uint8)
    changed = pictures.copy()
    changed[700, 5, 5, 1] ^= 1
    about = {"network": "inception", "resize": "bilinear"}
    keys = {digest(lambda p=some: iter([p]), about) for some in (pictures, changed)}  # type: ignore[misc]
    keys.add(digest(lambda: iter([pictures]), {**about, "resize": "bicubic"}))
    same = digest(lambda: iter(np.array_split(pictures, 7)), about) in keys
    return figures, {
        "E5 one bit of one picture, or the filter, changes the key; block size does not": len(keys) == 3 and same,
        "E1 n > d: relative difference <= 1e-6": worst["many"] <= 1e-6,
        "E1 n <= d: relative difference <= 1e-5": worst["few"] <= 1e-5,
        "E1 merged moments <= 1e-10": error <= 1e-10,
    }


def _truth(d: int, shift: float, n: int = 400_000) -> float:
    """The distance of the laws, from moments of many vectors. Its bias is a thousandth of what is measured."""
    sides = []
    for seed, moved in ((10**6, 0.0), (10**6 + 1, shift)):
        moments = Moments.of(features(20_000, d, seed, moved))
        for part in range(1, n // 20_000):
            moments = moments.merge(Moments.of(features(20_000, d, seed + 2 * part, moved)))
        sides.append(moments)
    return frechet(*sides)


def estimators(reps: int, size: int) -> tuple[Figures, dict[str, bool]]:
    """E2 and E3 in the 99 dimensions of poses: bias and spread of the corrected value, coverage of the intervals."""
    d, figures = 99, {}
    unbiased, spread, covered_frechet, covered_kid = [], [], [], []
    for shift in (0.0, 0.1):
        truth = _truth(d, shift)
        pairs = [kid(features(4000, d, 5000 + 2 * i), features(4000, d, 5001 + 2 * i, shift)).value for i in range(6)]
        kid_truth = 0.0 if shift == 0 else float(np.mean(pairs))
        for n in (300, 1000):
            values, raw, inside, inside_kid = [], [], 0, 0
            for rep in trange(reps, desc=f"shift {shift}, n = {n}", leave=False):
                x, y = features(n, d, 2 * rep), features(n, d, 2 * rep + 1, shift)
                estimate = frechet_estimate(x, y, np.random.default_rng(rep))
                values.append(estimate.value)
                raw.append(estimate.value + estimate.bias)
                inside += estimate.low <= truth <= estimate.high
                interval = kid(x, y)
                inside_kid += interval.low <= kid_truth <= interval.high
            bias, raw_bias = np.mean(values) - truth, np.mean(raw) - truth
            error = np.std(values, ddof=1) / np.sqrt(reps)
            figures[f"shift {shift}, n = {n}"] = {
                "truth": truth,
                "raw": float(np.mean(raw)),
                "corrected": float(np.mean(values)),
                "sd": float(np.std(values)),
                "sd_raw": float(np.std(raw)),
                "coverage": inside / reps,
                "kid_coverage": inside_kid / reps,
            }
            unbiased.append(abs(bias) <= max(0.03 * raw_bias, 2 * error))
            spread.append(np.std(values) <= 1.2 * np.std(raw))
            covered_frechet.append(inside / reps >= 0.9)
            if n >= 1000:
                covered_kid.append(inside_kid / reps >= 0.9)
    refused = False
    try:
        frechet_estimate(features(197, d, 0), features(300, d, 1), np.random.default_rng(0))
    except TooFewSamples:
        refused = True
    return figures, {
        "E2 bias <= 3% of the raw bias, or two standard errors": all(unbiased),
        "E2 spread <= 1.2 of the raw value's": all(spread),
        "E2 refused below 2 d": refused,
        "E3 Frechet interval covers >= 0.90": all(covered_frechet),
        "E3 KID interval covers >= 0.90": all(covered_kid),
    }


def _kernel_truth(d: int, step: float) -> float:
    """The kernel distance of two normal laws of unit covariance whose means are `step` apart in each of d dimensions, the first
    about the origin: by the moments of products of normal numbers up to the third."""
    s = d * step**2
    third = s**3 + 6 * s**2 + 3 * s * d + 6 * s
    moved = 1 + 3 * s / d + 3 * (s**2 + 2 * s + d) / d**2 + third / d**3
    return 1 + 3 / d + moved - 2 * (1 + 3 * (s + d) / d**2)


def sources(reps: int, size: int) -> tuple[Figures, dict[str, bool]]:
    """E3 where many vectors come from one source: coverage of intervals that use the sources and of those that ignore them."""
    figures: Figures = {}
    covered = []
    for number, each, uneven, d, alike in (
        (60, 10, False, 6, 0.75), (60, 10, True, 6, 0.75), (25, 20, False, 4, 0.75), (150, 8, False, 20, 0.64),
    ):  # fmt: skip
        truths = {"Frechet": d * 0.4**2, "kernel": _kernel_truth(d, 0.4)}
        inside: dict[str, list[bool]] = {}
        values: dict[str, list[float]] = {}
        for rep in range(reps):
            rng = np.random.default_rng(rep)
            sides = []
            for shift in (0.0, 0.4):
                of = np.repeat(np.arange(number), rng.integers(1, 2 * each, number) if uneven else each)
                own, rest = rng.standard_normal((number, d)), rng.standard_normal((len(of), d))
                sides.append((np.sqrt(alike) * own[of] + np.sqrt(1 - alike) * rest + shift, of.astype(str).tolist()))
            (x, of_x), (y, of_y) = sides
            for how, names in (("by sources", (of_x, of_y)), ("as if independent", None)):
                for name, found in (
                    ("Frechet", frechet_estimate(x, y, np.random.default_rng(0), sources=names)),
                    ("kernel", kid(x, y, sources=names)),
                ):
                    inside.setdefault(f"{name}, {how}", []).append(found.low <= truths[name] <= found.high)
                    values.setdefault(f"{name}, {how}", []).append(found.value)
        shares = {name: {"inside": np.mean(inside[name]), "mean": np.mean(values[name])} for name in inside}
        each_of = f"1 to {2 * each - 1}" if uneven else each
        figures[f"{number} sources of {each_of}, d {d}, correlation {alike}"] = {"truth": truths} | shares
        covered.append(min(shares[f"{name}, by sources"]["inside"] for name in truths) >= 0.9)
    return figures, {"E3 intervals by sources cover >= 0.90": all(covered)}


def manifold(reps: int, size: int) -> tuple[Figures, dict[str, bool]]:
    """E4: peak memory at `size` x 2048 beside the features, and equality with the definition at 2000."""
    x, y = features(2000, 64, 0), features(2000, 64, 1, shift=0.05)
    ours = precision_recall_density_coverage(x, y)
    a, b = torch.from_numpy(x).double(), torch.from_numpy(y).double()
    between = torch.cdist(a, b).numpy()
    radii = [torch.cdist(side, side).sort(dim=1).values[:, 3].numpy() for side in (a, b)]
    precision, recall = (between <= radii[1]).any(1).mean(), (between.T <= radii[0]).any(1).mean()
    equal = bool(ours.precision == precision and ours.recall == recall)
    generator = np.random.default_rng(0)
    x, y = (generator.standard_normal((size, 2048), dtype=np.float32) for _ in range(2))
    start = time.perf_counter()
    precision_recall_density_coverage(x, y)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of the whole process, libraries and all
    figures = {"size": size, "seconds": seconds, "peak GiB of the process": peak}
    return figures, {"E4 counts equal": equal, f"E4 {size} x 2048 in <= 3 GiB": peak <= 3}


def speed(reps: int, size: int) -> tuple[Figures, dict[str, bool]]:
    """S1: the distance at d = 2048 from given moments, beside torch's eigenvalues and scipy's matrix square root."""
    x, y = features(5000, 2048, 0), features(5000, 2048, 1)
    a, b = Moments.of(x), Moments.of(y)
    one, two = a.covariance, b.covariance
    product = torch.from_numpy(one) @ torch.from_numpy(two)
    few_x, few_y = x[:1000].astype(np.float64), y[:1000].astype(np.float64)
    times = {
        "ours": best_seconds(lambda: frechet(a, b), 2),
        "torch eigvals": best_seconds(lambda: torch.linalg.eigvals(product).sqrt().real.sum(), 1),
        "scipy sqrtm": best_seconds(lambda: scipy.linalg.sqrtm(one @ two), 1),
        "ours, 1000 vectors": best_seconds(lambda: frechet_of(few_x, few_y), 2),
    }
    eigenvalues = times["torch eigvals"] / times["ours"]
    square_root = times["scipy sqrtm"] / times["ours"]
    few = times["torch eigvals"] / times["ours, 1000 vectors"]
    figures = {"seconds": times, "over torch": eigenvalues, "over scipy": square_root, "few over torch": few}
    return figures, {
        "S1 >= 2.5 times as fast as torch eigvals": eigenvalues >= 2.5,
        "S1 >= 8 times as fast as scipy sqrtm": square_root >= 8,
        "S1 few vectors: >= 10 times as fast as torch eigvals": few >= 10,
    }


# Memory before the rest: a process's peak never falls.
SECTIONS = {"manifold": manifold, "parity": parity, "estimators": estimators, "sources": sources, "speed": speed}


def main() -> int:
    """Run the chosen sections; the last line printed is JSON, the exit code 1 if a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distances", description=__doc__)
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), help=", ".join(SECTIONS))
    parser.add_argument("--reps", type=int, default=200)
    parser.add_argument("--size", type=int, default=50_000)
    options = parser.parse_args()
    figures: Figures = {}
    goals: dict[str, bool] = {}
    for section in options.sections:
        figures[section], met = SECTIONS[section](options.reps, options.size)
        goals |= {goal: bool(value) for goal, value in met.items()}
        print(section, json.dumps(figures[section]), flush=True)
    return finish("distances", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
