"""`python -m benchmarks.recognition --root WORKSPACE [--photos DIR]`: how well people's categories are recognised.

The persons of the workspace's shards (by default the built-in mannequins) are divided by group into folds; each fold is judged
by a recogniser that has not seen it. For landmarks and pixels it prints

    accuracy            share of persons whose most likely category is right, with its 95 % interval
    answered, right     share of persons for whom a category is named, and how many of these names are right
    rejected            share of persons called unknown although their category is known
    ECE, chance         expected calibration error, and that of a perfectly calibrated classifier of so few people
    unseen              AUROC of the distance, if the first category is left out of the training

and for unsupervised classification, k-means beside InfoGAN, the agreement with the labels (NMI, ARI). `--photos`: a folder
whose sub-folders are categories; it is read with MediaPipe, and neighbouring pictures by name form one group.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, roc_auc_score

from benchmarks.report import finish, table
from tasks.common import skeleton
from tasks.common.subset import evenly_spaced
from tasks.config.recognition import Recognition
from tasks.dataset.crop import crop, square
from tasks.dataset.shards import ShardDataset
from tasks.extract.decode import open_picture
from tasks.metrics import calibration
from tasks.recognise import features, infogan, recogniser, stage
from tasks.recognise.recogniser import Answers
from tasks.recognise.stage import Examples

PROJECT = Path(__file__).parents[1]
BLOCK = 10  # neighbouring photos in one group: they may be frames of one video
MARGIN = 0.08


def mannequins(root: Path) -> tuple[list[str], dict[str, Examples]]:
    """The categories, and everybody in a workspace's shards as the views see them."""
    people = ShardDataset(root / "data/shards", "train", "val", "test").pictured()
    categories: list[str] = people.about["categories"]
    groups = np.unique([str(meta["group"]) for meta in people.metas()], return_inverse=True)[1]
    labels = stage.labels_of(people, categories)
    return categories, {view: Examples(stage.seen(people, view), labels, groups) for view in recogniser.VIEWS}


def photos(folder: Path, most: int) -> tuple[list[str], dict[str, Examples]]:
    """The same for a folder of photos: at most `most` of each category, those in which MediaPipe finds somebody."""
    from tasks.extract.landmarker import Landmarker, kept_offline

    by_category: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*"), key=lambda p: [int(n) for n in re.findall(r"\d+", p.stem)] or [0]):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            by_category.setdefault(path.parent.name, []).append(path)
    categories = sorted(by_category)
    world, pixels, labels, groups = [], [], [], []
    with kept_offline(), Landmarker(PROJECT / "models/pose_landmarker_full.task") as landmarker:
        for label, category in enumerate(categories):
            paths = by_category[category]
            for i in evenly_spaced(len(paths), most):
                picture = open_picture(paths[i])
                found = landmarker.detect(picture)
                if not found or skeleton.torso_length(found[0].world) < 1e-3:
                    continue
                points = found[0].landmarks[:, :2] * [picture.shape[1], picture.shape[0]]
                world.append(skeleton.normalise(found[0].world))
                pixels.append(crop(picture, *square(points, MARGIN), features.SIDE))
                labels.append(label)
                groups.append(label * 10**6 + i // BLOCK)
    seen = {"landmarks": features.of_poses(np.stack(world)), "pixels": features.of_pictures(np.stack(pixels))}
    about = np.array(labels), np.array(groups)
    return categories, {view: Examples(rows, *about) for view, rows in seen.items()}


def across_folds(people: Examples, classes: int, folds: int, settings: Recognition) -> tuple[list[Answers], np.ndarray]:
    """The answers for each fold by a recogniser that has not seen it, and the labels in their order."""
    names = np.random.default_rng(0).permutation(np.unique(people.groups))
    answers, truth = [], []
    for part in np.array_split(names, folds):
        out = np.isin(people.groups, part)
        view = recogniser.fit(people.features[~out], people.labels[~out], people.groups[~out], classes, settings)
        answers.append(view.answers(people.features[out], settings.min_confidence))
        truth.append(people.labels[out])
    return answers, np.concatenate(truth)


def judged(answers: list[Answers], truth: np.ndarray) -> dict[str, float]:
    """The figures of all folds together."""
    confidence, category, known = (
        np.concatenate([getattr(some, name) for some in answers]) for name in ("confidence", "category", "known")
    )
    right = category == truth
    low, high = stage.wilson(int(right.sum()), len(right))
    return {
        "people": len(truth),
        "accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "answered": float(known.mean()),
        "right": float(right[known].mean()),
        "rejected": float(np.concatenate([some.distance > some.radius for some in answers]).mean()),
        "ECE": calibration.expected_calibration_error(confidence, right),
        "chance": calibration.calibration_floor(confidence),
    }


def unseen(people: Examples, classes: int, settings: Recognition) -> float:
    """How well the distance tells the first category, left out of the training, from a held-out part of the others."""
    names = np.random.default_rng(1).permutation(np.unique(people.groups))
    out = np.isin(people.groups, names[: len(names) // 4])
    known = people.labels != 0
    train = known & ~out
    view = recogniser.fit(people.features[train], people.labels[train], people.groups[train], classes, settings)
    asked = out & known | ~known
    distance = view.answers(people.features[asked], settings.min_confidence).distance
    return float(roc_auc_score(~known[asked], distance))


def k_means(x: np.ndarray, classes: int) -> np.ndarray:
    """The nearest of `classes` centroids of each row."""
    means = faiss.Kmeans(x.shape[1], classes, niter=25, nredo=5, seed=1, min_points_per_centroid=1)
    means.train(x)
    return np.asarray(means.index.search(x, 1)[1].ravel())


def unsupervised(people: Examples, classes: int) -> dict[str, dict[str, float]]:
    """NMI, ARI and seconds of both ways to find categories without labels."""
    mean, components = recogniser._principal_components(people.features)
    x = np.ascontiguousarray(recogniser._project(people.features, mean, components)[:, 0, :32].numpy())
    x /= np.sqrt(x.var(axis=0).mean())
    ways: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"k-means": k_means, "InfoGAN": infogan.classify}
    figures = {}
    for name, way in ways.items():
        start = time.process_time()
        found = way(x, classes)
        figures[name] = {
            "NMI": float(normalized_mutual_info_score(people.labels, found)),
            "ARI": float(adjusted_rand_score(people.labels, found)),
            "cpu_seconds": time.process_time() - start,
        }
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recognition", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--root", type=Path, default=PROJECT, help="a workspace with shards")
    parser.add_argument("--photos", type=Path, help="a folder of photos in sub-folders by category")
    parser.add_argument("--most", type=int, default=150, help="photos read of each category")
    parser.add_argument("--folds", type=int, default=4)
    options = parser.parse_args()
    settings = Recognition()
    figures: dict[str, Any] = {}
    sources = {"shards": mannequins(options.root)}
    if options.photos:
        sources["photos"] = photos(options.photos, options.most)
    rows: list[tuple[str, ...]] = [
        ("data", "view", "people", "accuracy", "interval", "answered", "right", "ECE", "chance")
    ]
    for source, (categories, views) in sources.items():
        for view, people in views.items():
            part = judged(*across_folds(people, len(categories), options.folds, settings))
            figures[f"{source} {view}"] = part
            cells = [f"{part[key]:.3f}" for key in ("answered", "right", "ECE", "chance")]
            interval = f"{part['accuracy_low']:.3f}-{part['accuracy_high']:.3f}"
            rows.append((source, view, f"{part['people']}", f"{part['accuracy']:.3f}", interval, *cells))
    categories, views = sources["shards"]
    for view, people in views.items():
        figures[f"shards {view}"]["unseen"] = unseen(people, len(categories), settings)
    figures["unsupervised"] = unsupervised(views["landmarks"], len(categories))
    print(table(rows))
    for name, part in figures["unsupervised"].items():
        print(f"{name}: NMI {part['NMI']:.3f}, ARI {part['ARI']:.3f} ({part['cpu_seconds']:.1f} s)")
    mine = figures["shards landmarks"]
    goals = {
        "accuracy from landmarks at least 0.97": mine["accuracy"] >= 0.97,
        "expected calibration error from landmarks at most 0.03": mine["ECE"] <= 0.03,
    }
    return finish("recognition", figures, goals)


if __name__ == "__main__":
    raise SystemExit(main())
