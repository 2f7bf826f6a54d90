"""`python -m benchmarks.copy_share`: is the stated bound on the share of copies honest?

Feature vectors of the synthetic law, of 12 dimensions, in which copies are not all recognised. Of 500 samples each is a
copy with a probability between 0 and 10%, different in every set, at a distance of 0.05 to 0.5 of the usual one, as the
planted copies are. The bound must cover the share of copies among the samples in 95% of 200 sets; it holds whatever the
verdict is.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from tqdm import tqdm

from benchmarks.report import finish, table
from benchmarks.synthetic_law import Law
from tasks.evaluate.memorization.certificate import certify, score_samples
from tasks.evaluate.memorization.invariances import Bank, Invariance, identity
from tasks.evaluate.memorization.positive_control import Planted
from tasks.evaluate.memorization.reference import Items, make_reference

VECTORS = Bank("vectors", (Invariance("as is", identity),), lambda x: x, identity)
TRAIN, HELDOUT, SAMPLES = 300, 100, 500
ETAS = (0.05, 0.5)


def honest_share(rep: int) -> dict[str, float]:
    """One set: the true share of copies among its samples, the bound, and whether the bound covers it."""
    rng = np.random.default_rng([rep, 17])
    law = Law(latent=12)
    train, heldout = law.draw(TRAIN, rng), law.draw(HELDOUT, rng)
    between = np.linalg.norm(heldout[:, None] - train[None], axis=-1).min(axis=1)
    usual = float(np.median(between))

    def copies(count: int, rng: np.random.Generator) -> Planted:
        rows = rng.choice(TRAIN, count)
        directions = rng.normal(size=(count, train.shape[1]))
        directions *= usual * rng.uniform(*ETAS, (count, 1)) / np.linalg.norm(directions, axis=1, keepdims=True)
        return Planted((train[rows] + directions).astype(np.float32), rows, ["moved"] * count)

    copied = rng.uniform(size=SAMPLES) < rng.uniform(0, 0.1)
    samples = law.draw(SAMPLES, rng)
    samples[copied] = copies(int(copied.sum()), rng).items
    groups = np.arange(TRAIN + HELDOUT)
    compared = make_reference((VECTORS,), Items(train, groups[:TRAIN]), Items(heldout, groups[TRAIN:]))
    certificate = certify("samples", score_samples("samples", samples, compared), compared, copies, rng)
    share = float(copied.mean())
    return {
        "share": share,
        "bound": certificate.share_bound,
        "power": certificate.power.share,
        "covered": float(certificate.share_bound >= share),
    }


def main() -> int:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.copy_share", description=__doc__)
    parser.add_argument("--sets", type=int, default=200)
    sets = [honest_share(rep) for rep in tqdm(range(parser.parse_args().sets), mininterval=5)]
    figures = {key: float(np.mean([one[key] for one in sets])) for key in sets[0]}
    print(table([("", "mean over sets"), *((key, f"{value:.3f}") for key, value in figures.items())]))
    return finish("copy_share", figures, {"the bound covers the share in 95% of sets": figures["covered"] >= 0.95})


if __name__ == "__main__":
    sys.exit(main())
