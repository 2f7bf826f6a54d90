"""`python -m benchmarks.copies_in_photos --photos DIR [DIR ...]`: disguised copies among real photographs.

All photos of the folders are grouped by alignment once, as `certify` does. In every set the groups are dealt anew into
training, held-out and unseen photos. The unseen ones are the generated pictures, some of which are replaced by disguised copies
of training photos. The disguises are those of the positive control and take turns.

    fresh   no copies
    3%      how many of the copies of each disguise are on the list
    1%      at least two copies: is the verdict COPIES?

`--most` takes a random part of the photos. Finished sets are kept in `--state`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta
from tqdm import tqdm

from benchmarks.report import finish, table
from tasks.certify.certify import BANKS, CALIBRATION, NEAR_DUPLICATE, grouped, item_of, moderate
from tasks.certify.folder import Pictures, read
from tasks.common import files
from tasks.common.thumbnail import SIDE
from tasks.evaluate.memorization import positive_control
from tasks.evaluate.memorization.certificate import Certificate, certify, score_samples
from tasks.evaluate.memorization.copy_test import Verdict
from tasks.evaluate.memorization.positive_control import PICTURE_DISGUISES, Planted
from tasks.evaluate.memorization.reference import Items, make_reference

TRAIN, HELDOUT = 0.6, 0.2  # of the groups; the rest are the unseen photos
CONTROL = 99  # planted copies in the sets without copies; the others need none
DISGUISES = tuple(PICTURE_DISGUISES)


def _dealt(groups: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of training, held-out and unseen photos; of the unseen ones each group once."""
    numbers = rng.permutation(np.unique(groups))
    first, second = round(TRAIN * len(numbers)), round((TRAIN + HELDOUT) * len(numbers))
    train, heldout = (np.flatnonzero(np.isin(groups, part)) for part in (numbers[:first], numbers[first:second]))
    unseen = np.array([rng.choice(np.flatnonzero(groups == number)) for number in numbers[second:]])
    return train, heldout, unseen


def one_set(place: list[tuple[Pictures, int]], items: np.ndarray, groups: np.ndarray, rep: int) -> dict[str, Any]:
    """The verdicts on one dealing of the photos, and for each disguise how many copies were planted and listed.

    `place`: folder of each photo, and its number there.
    """
    rng = np.random.default_rng([rep, 23])
    train, heldout, unseen = _dealt(groups, rng)
    reference = make_reference(
        BANKS, Items(items[train], groups[train]), Items(items[heldout], groups[heldout]), calibration=CALIBRATION
    )
    planter = positive_control.pictures(len(train), lambda row: moderate(*place[train[row]]), partial(item_of, SIDE))
    count = {"3%": max(3, round(0.03 * len(unseen))), "1%": max(2, round(0.01 * len(unseen)))}
    # The turn of the disguises begins elsewhere in every set.
    total, skipped = sum(count.values()), rep * sum(count.values()) % len(DISGUISES)
    copies = planter(skipped + total, rng)
    copies = Planted(copies.items[skipped:], copies.original[skipped:], copies.disguise[skipped:])
    shown = score_samples("pictures", np.concatenate([items[unseen], copies.items]), reference)

    def certificate(rows: np.ndarray, control: int) -> Certificate:
        return certify("pictures", [scores.rows(rows) for scores in shown], reference, planter, rng, planted=control)

    fresh = certificate(np.arange(len(unseen)), CONTROL)
    outcome: dict[str, Any] = {"fresh": fresh.verdict.value, "power": fresh.power.share, "bound": fresh.share_bound}
    outcome["sizes"] = [len(train), len(heldout), len(unseen)]
    start = len(unseen)
    for name, number in count.items():
        planted = np.arange(start, start + number)
        start += number
        judged = certificate(np.concatenate([planted, np.arange(number, len(unseen))]), 1)
        outcome[name] = judged.verdict.value
        if name == "3%":
            listed = judged.copies[:number]
            names = [copies.disguise[row - len(unseen)] for row in planted]
            outcome["planted"] = dict(Counter(names))
            outcome["listed"] = dict(Counter(np.array(names)[listed].tolist()))
            outcome["false"] = int(judged.copies[number:].sum())
    return outcome


def main() -> int:
    """Print the tables and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.copies_in_photos", description=__doc__)
    parser.add_argument("--photos", type=Path, nargs="+", required=True)
    parser.add_argument("--sets", type=int, default=50)
    parser.add_argument("--most", type=int, help="photos taken at random, if there are more")
    parser.add_argument("--state", type=Path, help="file that keeps finished sets")
    options = parser.parse_args()
    photos = read(options.photos)
    items = np.concatenate([folder.items for folder in photos])
    groups = grouped(photos, [folder.items for folder in photos], near_duplicate=NEAR_DUPLICATE)
    if options.most and options.most < len(items):
        left_out = np.random.default_rng(0).permutation(len(items))[options.most :]
        groups[left_out] = -1  # in no set
    kept = np.flatnonzero(groups >= 0)
    place = [(folder, row) for folder in photos for row in range(len(folder))]
    found: list[dict[str, Any]] = (
        json.loads(options.state.read_bytes()) if options.state and options.state.is_file() else []
    )
    for rep in tqdm(range(len(found), options.sets), mininterval=5):
        found.append(one_set([place[row] for row in kept], items[kept], groups[kept], rep))
        if options.state:
            files.write_json(options.state, found)
    return _judged(found, len(kept), groups[kept])


def _judged(found: list[dict[str, Any]], photos: int, groups: np.ndarray) -> int:
    sets = len(found)
    print(
        f"{photos} photos, {len(np.unique(groups))} groups, the largest {np.unique(groups, return_counts=True)[1].max()}"
    )
    rows: list[tuple[str, ...]] = [("disguise", "planted", "on the list", "share")]
    shares = {}
    for name in DISGUISES:
        planted, listed = (sum(one[key].get(name, 0) for one in found) for key in ("planted", "listed"))
        shares[name] = listed / max(1, planted)
        rows.append((name, str(planted), str(listed), f"{shares[name]:.2f}"))
    print(table(rows))
    verdicts = {key: Counter(one[key] for one in found) for key in ("fresh", "3%", "1%")}
    print(
        table(
            [
                ("sets", *(v.value for v in Verdict)),
                *((k, *(str(c[v.value]) for v in Verdict)) for k, c in verdicts.items()),
            ]
        )
    )
    alarms = verdicts["fresh"][Verdict.COPIES.value]
    highest = float(beta.ppf(0.95, alarms + 1, sets - alarms)) if alarms < sets else 1.0
    caught = verdicts["1%"][Verdict.COPIES.value] / sets
    power = float(np.mean([one["power"] for one in found]))
    print(f"false alarms: {alarms} of {sets}, at most {highest:.1%} with 95% confidence; mean power {power:.2f}")
    figures = {
        "sets": sets, "photos": photos, "listed": {name: round(share, 3) for name, share in shares.items()},
        "copies_at_1%": caught, "false_alarms": alarms, "false_alarms_at_most": highest, "power": power,
        "false_on_list": float(np.mean([one["false"] for one in found])),
        "verdicts": {key: dict(counts) for key, counts in verdicts.items()},
    }  # fmt: skip
    goals = {
        "no disguise below 0.9 on the list at 3%": min(shares.values()) >= 0.9,
        "COPIES in 0.95 of sets with 1% copies": caught >= 0.95,
        "false alarms in at most 1% of fresh sets": alarms <= 0.01 * sets,
    }
    return finish("copies_in_photos", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
