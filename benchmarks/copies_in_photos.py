"""`python -m benchmarks.copies_in_photos --photos DIR [DIR ...]`: disguised copies among real photographs.

All photos of the folders, and frames of the videos in `--videos`, are grouped by alignment once, as `certify` does. Frames of
one video are one group, and so are the photos below a folder in `--scene`: they show one room. In every set the groups are
dealt anew into training, held-out and unseen photos. The unseen ones are the generated pictures, some of which are replaced by
disguised copies of training photos. The disguises are those of the positive control and take turns.

    fresh   no copies
    3%      how many of the copies of each disguise are on the list
    1%      at least two copies: is the verdict COPIES?

`--most` takes a random part of each folder. Finished sets are kept in `--state`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.report import finish, table
from tasks.certify.certify import (
    BANKS,
    CALIBRATION,
    NEAR_DUPLICATE,
    NEEDED_GROUPS,
    NEEDED_HELDOUT,
    NEEDED_SAMPLES,
    grouped,
    item_of,
    moderate,
)
from tasks.certify.folder import Pictures, read
from tasks.common import files
from tasks.common.thumbnail import SIDE
from tasks.dataset.groups import join
from tasks.evaluate.memorization import positive_control, power
from tasks.evaluate.memorization.certificate import Certificate, certify, score_samples
from tasks.evaluate.memorization.copy_test import Enough, Verdict
from tasks.evaluate.memorization.positive_control import PICTURE_DISGUISES, Planted
from tasks.evaluate.memorization.reference import Items, make_reference
from tasks.extract import video
from tasks.extract.source_files import Refusal

TRAIN, HELDOUT = 0.6, 0.2  # of the groups; the rest are the unseen photos
CONTROL = 99  # planted copies in the sets without copies; the others need none
DISGUISES = tuple(PICTURE_DISGUISES)
NEEDED = Enough(NEEDED_GROUPS, NEEDED_HELDOUT, NEEDED_SAMPLES)
FRAME_RATE = 0.5  # frames of a video, a second
MIN_SIDE = 32  # pixels of the shorter side of a frame


def frames(videos: Path, out: Path) -> None:
    """Save frames of all videos below a folder as JPEG files, those of one video in a folder of its own."""
    for path in sorted(path for path in videos.rglob("*") if path.is_file()):
        folder = out / path.relative_to(videos)
        with path.open("rb") as file:
            if video.container(file.read(video.HEAD)) is None:
                continue
            folder.mkdir(parents=True)
            try:
                for frame in video.sampled(file, FRAME_RATE, MIN_SIDE):
                    Image.fromarray(frame.picture).save(folder / f"{frame.number:06d}.jpg", quality=92)
            except Refusal as refusal:
                print(f"{path}: {refusal.detail}")


def _dealt(groups: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of training, held-out and unseen photos; of the unseen ones each group once."""
    numbers = rng.permutation(np.unique(groups))
    first, second = round(TRAIN * len(numbers)), round((TRAIN + HELDOUT) * len(numbers))
    train, heldout = (np.flatnonzero(np.isin(groups, part)) for part in (numbers[:first], numbers[first:second]))
    unseen = np.array([rng.choice(np.flatnonzero(groups == number)) for number in numbers[second:]])
    return train, heldout, unseen


@dataclass(frozen=True)
class Photos:
    """All photos: folder and number there, name, item and group of each."""

    place: list[tuple[Pictures, int]]
    names: list[str]
    items: np.ndarray
    groups: np.ndarray


def one_set(photos: Photos, picture: Callable[[int], np.ndarray], rep: int) -> dict[str, Any]:
    """The verdicts on one dealing of the photos, and for each disguise how many copies were planted and listed.

    `picture(row)`: a photo as it is disguised.
    """
    items, groups = photos.items, photos.groups
    rng = np.random.default_rng([rep, 23])
    train, heldout, unseen = _dealt(groups, rng)
    reference = make_reference(
        BANKS, Items(items[train], groups[train]), Items(items[heldout], groups[heldout]), calibration=CALIBRATION
    )
    planter = positive_control.pictures(len(train), lambda row: picture(int(train[row])), partial(item_of, SIDE))
    count = {"3%": max(3, round(0.03 * len(unseen))), "1%": max(2, round(0.01 * len(unseen)))}
    # The turn of the disguises begins elsewhere in every set.
    total, skipped = sum(count.values()), rep * sum(count.values()) % len(DISGUISES)
    copies = planter(skipped + total, rng)
    copies = Planted(copies.items[skipped:], copies.original[skipped:], copies.disguise[skipped:])
    shown = score_samples("pictures", np.concatenate([items[unseen], copies.items]), reference)

    def certificate(rows: np.ndarray, control: int) -> Certificate:
        scores = [bank.rows(rows) for bank in shown]
        return certify("pictures", scores, reference, planter, rng, planted=control, needed=NEEDED)

    fresh = certificate(np.arange(len(unseen)), CONTROL)
    outcome: dict[str, Any] = {"fresh": fresh.verdict.value, "power": fresh.power.share, "bound": fresh.share_bound}
    outcome["sizes"] = [len(train), len(heldout), len(unseen)]
    if fresh.verdict is Verdict.COPIES:  # which pair is to blame
        worst = int(fresh.sample_p.argmin())
        original = int(fresh.best_bank(worst).samples.first[worst])
        outcome["alarm"] = [photos.names[unseen[worst]], photos.names[train[original]], fresh.tail_p, fresh.split.p]
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
    parser.add_argument(
        "--videos", type=Path, nargs="*", default=[], help="folders whose videos give a frame every 2 s"
    )
    parser.add_argument("--scene", type=Path, nargs="*", default=[], help="folders in --photos that show one room each")
    parser.add_argument("--sets", type=int, default=50)
    parser.add_argument("--most", type=int, help="photos taken at random from a folder that has more")
    parser.add_argument("--state", type=Path, help="file that keeps finished sets")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        filmed = [Path(temporary) / str(number) for number in range(len(options.videos))]
        for folder, out in zip(options.videos, filmed, strict=True):
            frames(folder, out)
        return _run(options, [*options.photos, *filmed], filmed)


def _some(folder: Pictures, most: int | None) -> Pictures:
    """At most so many pictures of a folder, taken at random."""
    rows = np.sort(np.random.default_rng(0).permutation(len(folder))[:most])
    return replace(
        folder,
        names=[folder.names[row] for row in rows],
        keys=[folder.keys[row] for row in rows],
        items=folder.items[rows],
    )


def gathered(folders: list[Path], scenes: list[Path], filmed: list[Path], most: int | None) -> Photos:
    """The photos of all folders, grouped.

    `scenes`: folders below which all photos are one group; `filmed`: folders whose sub-folders are one group each.
    """
    photos = [_some(folder, most) for folder in read(folders)]
    items = np.concatenate([folder.items for folder in photos])
    groups = grouped(photos, [folder.items for folder in photos], near_duplicate=NEAR_DUPLICATE)
    place = [(folder, row) for folder in photos for row in range(len(folder))]
    names = [str(folder.folder / folder.names[row]) for folder, row in place]
    rows_of: dict[Path, list[int]] = defaultdict(list)
    for row, (folder, _) in enumerate(place):
        rooms = [scene for scene in scenes if Path(names[row]).is_relative_to(scene)]
        if folder.folder in filmed:
            rooms.append(Path(names[row]).parent)
        for room in rooms:
            rows_of[room].append(row)
    for rows in rows_of.values():
        groups = join(groups, np.array(rows[:-1], np.int64), np.array(rows[1:], np.int64))
    return Photos(place, names, items, groups)


def _run(options: argparse.Namespace, folders: list[Path], filmed: list[Path]) -> int:
    photos = gathered(folders, options.scene, filmed, options.most)
    found: list[dict[str, Any]] = (
        json.loads(options.state.read_bytes()) if options.state and options.state.is_file() else []
    )
    picture = cache(lambda row: moderate(*photos.place[row]))
    for rep in tqdm(range(len(found), options.sets), mininterval=5):
        found.append(one_set(photos, picture, rep))
        if options.state:
            files.write_json(options.state, found)
    return _judged(found, len(photos.items), photos.groups)


def _judged(found: list[dict[str, Any]], photos: int, groups: np.ndarray) -> int:
    sets = len(found)
    print(
        f"{photos} photos, {len(np.unique(groups))} groups, the largest {np.unique(groups, return_counts=True)[1].max()}"
    )
    rows: list[tuple[str, ...]] = [("disguise", "planted", "on the list", "share", "95% interval")]
    shares = {}
    for name in DISGUISES:
        planted, listed = (sum(one[key].get(name, 0) for one in found) for key in ("planted", "listed"))
        share = power.Power(listed, planted)
        shares[name] = share.share
        rows.append((name, str(planted), str(listed), f"{share.share:.2f}", _interval(share)))
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
    highest = power.upper(alarms, sets, 0.05)
    caught = verdicts["1%"][Verdict.COPIES.value]
    recognised = float(np.mean([one["power"] for one in found]))
    print(f"1%: COPIES in {caught} of {sets} sets, 95% interval {_interval(power.Power(caught, sets))}")
    print(f"false alarms: {alarms} of {sets}, at most {highest:.1%} with 95% confidence; mean power {recognised:.2f}")
    for one in found:
        if "alarm" in one:
            print("falsely accused: {} because of {}; p of the tail {:.2g}, of the split {:.2g}".format(*one["alarm"]))
    figures = {
        "sets": sets, "photos": photos, "listed": {name: round(share, 3) for name, share in shares.items()},
        "copies_at_1%": caught / sets, "false_alarms": alarms, "false_alarms_at_most": highest, "power": recognised,
        "false_on_list": float(np.mean([one["false"] for one in found])),
        "verdicts": {key: dict(counts) for key, counts in verdicts.items()},
    }  # fmt: skip
    goals = {
        "no disguise below 0.9 on the list at 3%": min(shares.values()) >= 0.9,
        "COPIES in 0.95 of sets with 1% copies": caught >= 0.95 * sets,
        "false alarms in at most 1% of fresh sets": alarms <= 0.01 * sets,
    }
    return finish("copies_in_photos", figures, goals)


def _interval(share: power.Power) -> str:
    low, high = share.interval()
    return f"{low:.2f} to {high:.2f}"


if __name__ == "__main__":
    sys.exit(main())
