"""`python -m benchmarks.memorization_power`: false alarms and power of the copy verdict, beside published statistics.

Sections: `law` (M1-M4: synthetic features with known copies), `peers` (the same sets through other statistics, each
with the best threshold that 200 fresh sets can give it), `pictures` (M5: disguised copies), `video` (M6: scenes with
near-duplicate frames). `--reps` scales the grid; cells already in the state file are not computed again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import trange

from benchmarks.copy_peers import PEERS
from benchmarks.synthetic_law import Law, with_copies
from benchmarks.synthetic_pictures import DISGUISES, copies, figures
from tasks.copies.certificate import Certificate, Items, certify
from tasks.copies.control import planted_pictures
from tasks.copies.copy_test import Verdict
from tasks.copies.views import PICTURE_BANKS, Bank, View, identity

VECTORS = Bank("vectors", (View("as is", identity),), lambda x: x, identity)
SIZES = ((200, 50, 500), (500, 125, 1000), (1000, 250, 1000), (2000, 500, 2000))
COPIED = ((0.002, 0.1), (0.01, 0.1), (0.01, 0.3), (0.02, 0.3), (0.05, 0.5))
Cell = dict[str, float]


def _plant(train: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Near copies of feature vectors: moved by 2% of the law's spread."""
    chosen = train[rng.choice(len(train), count)]
    return chosen + rng.normal(0, 0.02 * train.std(), chosen.shape).astype(np.float32)


def _certificate(train: Items, heldout: Items, generated: np.ndarray, rng: np.random.Generator) -> Certificate:
    return certify("samples", (VECTORS,), generated, train, heldout, _plant, rng)


def _apart(train: np.ndarray, heldout: np.ndarray) -> tuple[Items, Items]:
    """Every item a group of its own."""
    n = len(train)
    return Items(train, np.arange(n)), Items(heldout, n + np.arange(len(heldout)))


def _law_cell(size: tuple[int, int, int], scenario: str, reps: int) -> Cell:
    """Shares of verdicts, p-values and list quality over `reps` sets of one scenario."""
    law, (n, m, g) = Law(), size
    alarms = unreliable = split = planted = 0
    true_rate, false_rate = [], []
    fraction, eta = map(float, scenario.split(" eta ")) if " eta " in scenario else (0.0, 0.0)
    generators: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
        "blur": law.blurred,
        "shrink": law.shrunk,
        "half the modes": law.half_the_modes,
        "noise": law.noisy,
    }
    for rep in trange(reps, desc=f"{size} {scenario}", leave=False):
        rng = np.random.default_rng([rep, n])
        train, heldout = law.draw(n, rng), law.draw(m, rng)
        generated = generators.get(scenario, law.draw)(g, rng)
        count = max(2, round(fraction * g)) if fraction else 0
        if count:
            generated = with_copies(generated, train, heldout, count, eta, rng)
        certificate = _certificate(*_apart(train, heldout), generated, rng)
        alarms += certificate.verdict is Verdict.COPIES
        unreliable += certificate.verdict is Verdict.SPLIT_UNRELIABLE
        split += certificate.split.p < 0.01
        planted += certificate.planted_found == certificate.planted
        listed = certificate.copies
        if count:
            true_rate.append(listed[:count].mean())
            false_rate.append(listed[count:].sum() / max(1, listed.sum()))
    cell = {"copies": alarms / reps, "split_unreliable": unreliable / reps, "split_test": split / reps}
    cell |= {"control_found": planted / reps, "reps": reps}
    if true_rate:
        cell |= {"true_positive_rate": float(np.mean(true_rate)), "false_discovery": float(np.mean(false_rate))}
    return cell


def _peer_cell(scenario: str, reps: int, thresholds: dict[str, float]) -> Cell:
    """Share of alarms of each peer, and of this project's own dataset p-value, at n = 1000, m = 250, g = 1000."""
    law = Law()
    alarms = dict.fromkeys([*PEERS, "contrapposto"], 0)
    for rep in trange(reps, desc=f"peers, {scenario}", leave=False):
        rng = np.random.default_rng([rep, 7])
        train, heldout = law.draw(1000, rng), law.draw(250, rng)
        generator = {"blur": law.blurred, "shrink": law.shrunk, "half the modes": law.half_the_modes}
        generated = generator.get(scenario, law.draw)(1000, rng)
        if " eta " in scenario:
            fraction, eta = map(float, scenario.split(" eta "))
            generated = with_copies(generated, train, heldout, max(2, round(fraction * 1000)), eta, rng)
        for name, statistic in PEERS.items():
            alarms[name] += statistic(train, heldout, generated) < thresholds[name]
        alarms["contrapposto"] += _certificate(*_apart(train, heldout), generated, rng).verdict is Verdict.COPIES
    return {name: count / reps for name, count in alarms.items()}


def _peer_thresholds(reps: int) -> Cell:
    """The 1% quantile of each peer over `reps` fresh sets: an oracle that no user has."""
    law = Law()
    values: dict[str, list[float]] = {name: [] for name in PEERS}
    for rep in trange(reps, desc="peers, thresholds", leave=False):
        rng = np.random.default_rng([rep, 8])
        train, heldout, generated = law.draw(1000, rng), law.draw(250, rng), law.draw(1000, rng)
        for name, statistic in PEERS.items():
            values[name].append(statistic(train, heldout, generated))
    return {name: float(np.quantile(v, 0.01)) for name, v in values.items()}


def _picture_cell(disguise: str, reps: int) -> Cell:
    """Detection of 10 disguised copies among 500 pictures, n = 1000, m = 250, by the union of the banks."""
    found, rate = 0, []
    for rep in trange(reps, desc=f"pictures, {disguise}", leave=False):
        start = rep * 10_000
        train, heldout = figures(range(start, start + 1000)), figures(range(start + 1000, start + 1250))
        generated = figures(range(start + 2000, start + 2500))
        if disguise != "fresh":
            generated[:10] = copies([start + 7 * i for i in range(10)], disguise)
        certificate = certify(
            "pictures", PICTURE_BANKS, generated, *_apart(train, heldout), planted_pictures, np.random.default_rng(rep)
        )
        found += certificate.verdict is Verdict.COPIES
        rate.append(certificate.copies[:10].mean())
    return {"copies": found / reps, "true_positive_rate": float(np.mean(rate)), "reps": reps}


def _video_cell(frames: int, jitter: float, split_by_scene: bool, copied: bool, reps: int) -> Cell:
    """1000 frames in scenes of `frames`, their latent points `jitter` deviations apart; 2% copies or none."""
    law = Law()
    verdicts = dict.fromkeys(Verdict, 0)
    rate = []
    for rep in trange(reps, desc=f"video, {frames} frames, jitter {jitter}", leave=False):
        rng = np.random.default_rng([rep, frames, 9])
        scenes = np.repeat(np.arange(1250 // frames), frames)
        latents = law.latents(1250 // frames, rng)[scenes]
        x = law.features(latents + rng.normal(0, 0.5 * jitter, latents.shape))
        key = rng.permutation(scenes.max() + 1)[scenes] if split_by_scene else rng.permutation(len(x))
        outside = key >= np.quantile(key, 0.8)
        # A random split is made by who does not know the scenes: every frame is its own group.
        group = scenes if split_by_scene else np.arange(len(x))
        train, heldout = Items(x[~outside], group[~outside]), Items(x[outside], group[outside])
        generated = law.draw(1000, rng)
        if copied:
            generated = with_copies(generated, train.data, heldout.data, 20, 0.1 * jitter, rng)
        certificate = _certificate(train, heldout, generated, rng)
        verdicts[certificate.verdict] += 1
        rate.append(certificate.copies[:20].mean())
    cell = {verdict.value: count / reps for verdict, count in verdicts.items()}
    return cell | {"true_positive_rate": float(np.mean(rate)), "reps": reps}


class Cells:
    """Results by name, kept in a file so that an interrupted run goes on where it was."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.values: dict[str, Cell] = json.loads(path.read_text()) if path and path.is_file() else {}

    def get(self, name: str, compute: Callable[[], Cell]) -> Cell:
        """The cell, computed unless it is known; printed as it comes."""
        if name not in self.values:
            self.values[name] = compute()
            if self.path:
                self.path.write_text(json.dumps(self.values, indent=1))
        numbers = ", ".join(f"{key} {value:.3g}" for key, value in self.values[name].items())
        print(f"{name}: {numbers}", flush=True)
        return self.values[name]


def _law(cells: Cells, reps: int) -> dict[str, bool]:
    met = {}
    false_alarms: list[float] = []
    power: list[float] = []
    rare: list[float] = []
    rates: list[float] = []
    discoveries: list[float] = []
    controls: list[float] = []
    splits: list[float] = []
    for size in SIZES:
        label = "/".join(map(str, size))

        def cell(scenario: str, count: int, size: tuple[int, int, int] = size, label: str = label) -> Cell:
            return cells.get(f"law {label} {scenario}", lambda: _law_cell(size, scenario, count))

        false_alarms.append(cell("fresh", reps)["copies"])
        for fraction, eta in COPIED:
            result = cell(f"{fraction} eta {eta}", max(10, reps // 10))
            if eta <= 0.3:
                (power if fraction >= 0.01 else rare).append(result["copies"])
                rates.append(result["true_positive_rate"])
                discoveries.append(result["false_discovery"])
        for scenario in ("blur", "shrink", "half the modes", "noise"):
            result = cell(scenario, max(10, reps // 5))
            controls.append(result["copies"])
            splits.append(result["split_test"])
    met["M1 false alarm of the verdict <= 2%"] = max(false_alarms) <= 0.02
    met["M2 power >= 0.99 at 1% near copies"] = min(power) >= 0.99
    met["M2 power >= 0.95 at two copies, eta 0.1"] = min(rare) >= 0.95
    met["M3 list: true positive rate >= 0.98"] = min(rates) >= 0.98
    met["M3 list: false discovery <= 0.12"] = max(discoveries) <= 0.12
    met["M4 copy-free generators: COPIES <= 5%"] = max(controls) <= 0.05
    met["M4 copy-free generators: split test <= 1%"] = max(splits) <= 0.01
    return met


def _peers(cells: Cells, reps: int) -> dict[str, bool]:
    thresholds = cells.get("peer thresholds", lambda: _peer_thresholds(min(200, max(50, reps))))
    scenarios = ("0.002 eta 0.1", "0.005 eta 0.3", "0.01 eta 0.3", "0.02 eta 0.3", "0.05 eta 0.5", "0.2 eta 0.5")
    for scenario in (*scenarios, "blur", "shrink", "half the modes"):
        cells.get(f"peers {scenario}", lambda s=scenario: _peer_cell(s, max(10, reps // 20), thresholds))  # type: ignore[misc]
    return {}


def _pictures(cells: Cells, reps: int) -> dict[str, bool]:
    found = [
        cells.get(f"pictures {name}", lambda name=name: _picture_cell(name, max(3, reps // 60)))["copies"]  # type: ignore[misc]
        for name in (*DISGUISES, "other background")
    ]
    fresh = cells.get("pictures fresh", lambda: _picture_cell("fresh", max(5, reps // 10)))["copies"]
    return {"M5 disguised copies found >= 0.95": min(found) >= 0.95, "M5 false alarm <= 2%": fresh <= 0.02}


def _video(cells: Cells, reps: int) -> dict[str, bool]:
    unreliable, clean = [], []
    count = max(5, reps // 50)
    for frames in (2, 5, 10):
        for jitter in (0.05, 0.2, 0.5):
            random, by_scene = (
                cells.get(
                    f"video {frames} frames, jitter {jitter}, {'by scene' if by_scene else 'random split'}",
                    lambda f=frames, j=jitter, s=by_scene: _video_cell(f, j, s, False, count),  # type: ignore[misc]
                )
                for by_scene in (False, True)
            )
            unreliable.append(random[Verdict.SPLIT_UNRELIABLE.value])
            clean.append(by_scene[Verdict.SPLIT_UNRELIABLE.value])
    copied = cells.get("video 5 frames, 2% copies", lambda: _video_cell(5, 0.2, True, True, count))
    return {
        "M6 random split: SPLIT-UNRELIABLE >= 0.95": min(unreliable) >= 0.95,
        "M6 split by scene: SPLIT-UNRELIABLE <= 1%": float(np.mean(clean)) <= 0.01,
        "M6 split by scene: power >= 0.95": copied[Verdict.COPIES.value] >= 0.95,
    }


SECTIONS: dict[str, Callable[[Cells, int], dict[str, bool]]] = {
    "law": _law,
    "peers": _peers,
    "pictures": _pictures,
    "video": _video,
}


def main() -> None:
    """Run the chosen sections; the last line printed is JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memorization_power", description=__doc__)
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), help=", ".join(SECTIONS))
    parser.add_argument("--reps", type=int, default=1000, help="fresh sets a cell; other cells take a part of it")
    parser.add_argument("--state", type=Path, help="file that keeps finished cells")
    options = parser.parse_args()
    cells = Cells(options.state)
    met: dict[str, bool] = {}
    for section in options.sections:
        met |= SECTIONS[section](cells, options.reps)
    result: dict[str, Any] = {
        "benchmark": "memorization_power",
        "figures": cells.values,
        "goals": {goal: bool(is_met) for goal, is_met in met.items()},
        "missed": [goal for goal, is_met in met.items() if not is_met],
    }
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
