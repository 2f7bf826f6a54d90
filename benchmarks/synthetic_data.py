"""Does synthetic data help? Small networks trained on real, on generated, and on both kinds of pictures, side by side.

    python -m benchmarks.synthetic_data [--workspace DIR] [--work DIR] [--real 10 20 50 200] [--generated 50] [--seeds 3]

DIR is a workspace whose models are trained, such as one after `make train-poses`. Without it the benchmark draws mannequins
and trains small models itself, by the pipeline's own stages, in --work (--train-seconds of one core, and about as many for
the data). The generated pictures are those that the command `generate` writes, and their keypoints are read from its
`coco.json`: pictures that do not show the requested pose are not among them.

Two networks are trained on each set of pictures, with as many steps whatever the set:

    category     the recogniser of `contrapposto recognise`, from pixels; judged by accuracy
    keypoints    a convolutional network that finds the 12 limb joints (integral regression, Sun et al. 2018); judged by
                 PCK@0.1, the share of joints within a tenth of the longer side of their box (Yang & Ramanan 2013)

The judges are real people that neither the generator nor these networks have seen. Intervals are two-way bootstraps over
seeds (which real pictures, initial weights) and groups of people. The generator has seen all real pictures of the training
split. So the row with all of them says what generated pictures add to what they were made from; rows with fewer also say what
a generator is worth to somebody who has its samples and few pictures.

What was generated and measured is kept in --work, so that a run that is stopped goes on there.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pictures import lengths, rate, run_stages, write_params
from benchmarks.report import finish, table
from tasks import paths
from tasks.common import files, log, machine
from tasks.common.skeleton import LANDMARKS, LIMBS, MIRROR
from tasks.config import params as parameters
from tasks.config.params import Params
from tasks.config.recognition import Recognition
from tasks.dataset import dataset_table
from tasks.dataset.pose_map import places
from tasks.dataset.shards import ShardDataset, resized
from tasks.evaluate import pose_accuracy
from tasks.extract.poses_table import read_poses
from tasks.recognise import features, recogniser
from tasks.recognise.stage import labels_of
from tasks.sample import generate
from tasks.sample.requests import Artist

SIDE = features.SIDE  # pixels at which both networks look
RIGHT = 0.1  # of the longer side of the box of the 12 joints
RESAMPLES = 2000
STEPS, BATCH, LEARNING_RATE = 250, 32, 2e-3  # of the keypoint network
MANNEQUINS = 3000  # without a workspace; more than 200 of each category are in the training split
# Changes to params.yaml without a workspace: no codec to train, more pictures for training.
SMALL: dict[str, Any] = {
    "mannequin": {"count": MANNEQUINS},
    "curate": {"val": 0.1, "test": 0.06},
    "codec": {"kind": "pca"},
    "pictures": {"copies": 0, "watch_images": None, "ranks": 1},
    "poses": {"ranks": 1},
}
SHARES = {"poses": 0.25, "pictures": 0.75}  # of the time of training
SETS = ("real", "generated", "both")
TASKS = {"category": "accuracy", "keypoints": "PCK@0.1"}


class People(NamedTuple):
    """Pictures of one person each, and what is known of them."""

    pictures: np.ndarray  # uint8 [n, SIDE, SIDE, 3]
    joints: np.ndarray  # float32 [n, 12, 2]: x, y as shares of the side; NaN where a joint is not labelled
    labels: np.ndarray  # int64 [n]
    groups: np.ndarray  # int64 [n]

    def take(self, rows: np.ndarray) -> People:
        """Some of them."""
        return People(*(column[rows] for column in self))


def joined(first: People, second: People) -> People:
    """Both; no group of one is a group of the other."""
    second = second._replace(groups=second.groups + first.groups.max(initial=-1) + 1)
    return People(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))


def at_side(picture: np.ndarray) -> np.ndarray:
    """A square picture at SIDE pixels."""
    if len(picture) > SIDE:
        return resized(SIDE, picture)
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def real_people(params: Params, root: Path, *splits: str) -> People:
    """The people of these splits of a workspace's shards, with the joints that were found in their photographs."""
    dataset = ShardDataset(root / paths.SHARDS, *splits).pictured()
    persons = dataset_table.read(root / paths.DATASET)
    squares = dict(zip(persons.key, persons.crop, strict=True))
    joints_of: dict[str, np.ndarray] = {}
    for part in params.raw.parts:
        found = read_poses(root / paths.POSES / part)
        for key, pixels in zip(found.key, found.pixels, strict=True):
            if key in squares:
                x, y, side = squares[key]
                joints_of[key] = (pixels[list(LIMBS)] - [x, y]) / side
    groups = np.unique([str(meta["group"]) for meta in dataset.metas()], return_inverse=True)[1]
    joints = np.stack([joints_of[key] for key in dataset.keys]).astype(np.float32)
    return People(dataset.pictures_uint8(SIDE), joints, labels_of(dataset, dataset.about["categories"]), groups)


def generated_people(folder: Path, categories: list[str]) -> People:
    """The people in a folder that the command `generate` wrote, read as any tool would: from COCO's JSON and the pictures."""
    document = json.loads((folder / "coco.json").read_text(encoding="utf-8"))
    names = document["categories"][0]["keypoints"]
    columns = [names.index(LANDMARKS[joint]) for joint in LIMBS]
    about = {image["id"]: image for image in document["images"]}
    pictures, joints, labels = [], [], []
    for annotation in document["annotations"]:
        image = about[annotation["image_id"]]
        with Image.open(folder / "images" / image["file_name"]) as picture:
            pictures.append(at_side(np.asarray(picture.convert("RGB"))))
        points = np.array(annotation["keypoints"], np.float32).reshape(-1, 3)[columns]
        points[points[:, 2] == 0] = np.nan
        joints.append(points[:, :2] / [image["width"], image["height"]])
        labels.append(categories.index(annotation["attributes"]["category"]))
    n = len(labels)
    return People(np.stack(pictures), np.stack(joints).astype(np.float32), np.array(labels), np.arange(n))


def export_error(root: Path, people: People) -> dict[str, float]:
    """How far the export's rule for keypoints (`pose_map.places`) is from the landmarks in photographs of val and test."""
    dataset = ShardDataset(root / paths.SHARDS, "val", "test").pictured()
    placed = places(dataset.poses(), float(dataset.about["margin"]))[:, list(LIMBS)]
    distance = np.linalg.norm(placed - people.joints, axis=-1)
    return {"distance": float(distance.mean()), "PCK@0.1": float(right_joints(placed, people.joints).mean())}


def some(people: People, of_each: int, rng: np.random.Generator) -> People:
    """At most `of_each` people of each category, at random."""
    rows = [rng.permutation(np.flatnonzero(people.labels == label))[:of_each] for label in np.unique(people.labels)]
    return people.take(np.concatenate(rows))


def exported(params: Params, root: Path, folder: Path, count: int) -> None:
    """Generate `count` pictures with a workspace's models as the command `generate` does, and write its export, once."""
    about = {
        "count": count,
        "models": [paths.model_sha256(root, name) for name in paths.MODELS],
        "settings": params.generate.model_dump(mode="json"),
    }
    done = folder / "of.json"
    if done.is_file() and files.read_json(done) == about:
        return
    settings = params.generate.model_copy(update={"kind": "picture", "count": count, "category": None, "pose": None})
    settings = settings.model_copy(update={"min_acceptance": 0.01})
    artist = Artist(paths.model_folder(root, "poses"), paths.model_folder(root, "pictures"))
    workers, confidence = params.extract.workers or machine.cores(), params.extract.min_confidence
    with pose_accuracy.pose_reader(root / params.extract.model, confidence, workers) as read:
        accepted = generate.sample(artist, settings, read)
    generate.write(folder, accepted, settings, artist.margin, {"categories": artist.categories})
    files.write_json(done, about)


def prepared(work: Path, seconds: float) -> None:
    """Draw mannequins and train a small generator of them in `work`, once."""
    run_stages(work, SMALL)
    if all((paths.model_folder(work, name) / paths.MODEL_FILE).is_file() for name in paths.MODELS):
        return
    from tasks.train import stage

    changes: dict[str, Any] = {key: dict(value) for key, value in SMALL.items()}
    stage.run(write_params(work, changes), work, "codec")
    for name, share in SHARES.items():
        changes[name] |= lengths(name, 10**9, 0.5)
        params = write_params(work, changes)
        batch = getattr(params, name).batch
        images = max(batch, int(share * seconds * rate(params, work, name)) // batch * batch)
        changes[name] |= lengths(name, images, 0.5)
        stage.run(write_params(work, changes), work, name)


class JointNet(nn.Module):
    """Finds the limb joints `[n, 12, 2]` (shares of the side) in pictures `[n, 3, SIDE, SIDE]`: centres of mass of 12 maps."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()

        def block(before: int, after: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
            )

        self.fine = nn.Sequential(block(3, width, 2), block(width, 2 * width, 2), block(2 * width, 2 * width, 1))
        self.coarse = nn.Sequential(block(2 * width, 4 * width, 2), block(4 * width, 4 * width, 1))
        self.deep = nn.Sequential(block(4 * width, 4 * width, 2), block(4 * width, 4 * width, 1))
        self.up, self.low = nn.Conv2d(4 * width, 2 * width, 1), nn.Conv2d(4 * width, 4 * width, 1)
        self.maps = nn.Sequential(block(2 * width, 2 * width, 1), nn.Conv2d(2 * width, len(LIMBS), 1))

    def forward(self, x: Tensor) -> Tensor:
        """The joints of pictures."""
        fine = self.fine(x)
        coarse = self.coarse(fine)
        coarse = coarse + functional.interpolate(self.low(self.deep(coarse)), scale_factor=2.0)
        maps = self.maps(fine + functional.interpolate(self.up(coarse), scale_factor=2.0))
        side = maps.shape[-1]
        centres = (torch.arange(side, device=x.device) + 0.5) / side
        mass = maps.flatten(2).softmax(-1).unflatten(2, (side, side))
        return torch.stack([(mass.sum(2) * centres).sum(-1), (mass.sum(3) * centres).sum(-1)], -1)


_EXCHANGED = [LIMBS.index(MIRROR[joint]) for joint in LIMBS]  # left and right, among the 12 limb joints


def as_input(pictures: np.ndarray) -> Tensor:
    """Pictures uint8 `[n, s, s, 3]` as float `[n, 3, s, s]`, about -1 to 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def varied(x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures and joints mirrored, turned (0.25 rad at most), enlarged or reduced (15 %), shifted (6 %) and recoloured."""
    n = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    mirrored = torch.rand(n, generator=generator) < 0.5
    x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    flipped = torch.stack([1 - y[:, _EXCHANGED, 0], y[:, _EXCHANGED, 1]], -1)
    y = torch.where(mirrored[:, None, None], flipped, y)
    angle, scale, shift = uniform(-0.25, 0.25), uniform(-0.15, 0.15).exp(), uniform(-0.12, 0.12, 2)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(n, 2, 2) / scale[:, None, None]
    grid = functional.affine_grid(torch.cat([turn, shift[:, :, None]], 2), list(x.shape), align_corners=False)
    x = functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    # A pixel at p shows what was at turn p + shift; so a joint goes from q to the inverse of turn applied to q - shift.
    y = (torch.linalg.inv(turn) @ ((2 * y - 1) - shift[:, None]).transpose(1, 2)).transpose(1, 2) / 2 + 0.5
    return x * uniform(0.8, 1.2, 1, 1, 1) + uniform(-0.2, 0.2, 3, 1, 1), y


def trained_joint_net(people: People, seed: int, steps: int = STEPS) -> JointNet:
    """A network trained on people's joints. AdamW with a cosine, the L1 distance; joints without a label are left out."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = JointNet()
    optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    x, y = as_input(people.pictures), torch.from_numpy(people.joints)
    for _ in range(steps):
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        pictures, joints = varied(x[rows], y[rows], generator)
        error = (net(pictures) - joints).abs()
        loss = error[joints.isfinite()].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


def right_joints(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The share of each person's joints that are within RIGHT of the longer side of the joints' box, `[n]`."""
    longer = (np.nanmax(truth, axis=1) - np.nanmin(truth, axis=1)).max(axis=1)
    distance = np.linalg.norm(found - truth, axis=-1)
    share: np.ndarray = np.nanmean(np.where(np.isfinite(distance), distance <= RIGHT * longer[:, None], np.nan), axis=1)
    return share


def score(train: People, held_out: People, classes: int, seed: int) -> dict[str, np.ndarray]:
    """What networks trained on these people get right of each held-out one, `[n]` by task."""
    settings = Recognition(seed=seed)
    view = recogniser.fit(features.of_pictures(train.pictures), train.labels, train.groups, classes, settings)
    answers = view.answers(features.of_pictures(held_out.pictures), settings.min_confidence)
    net = trained_joint_net(train, seed)
    with torch.no_grad():
        joints = net(as_input(held_out.pictures)).numpy()
    return {
        "category": (answers.category == held_out.labels).astype(float),
        "keypoints": right_joints(joints, held_out.joints),
    }


def interval(scores: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """The mean of scores `[seeds, people]` and its 95 % interval: a bootstrap over the seeds and over groups of people."""
    rng = np.random.default_rng(0)
    names, group = np.unique(groups, return_inverse=True)
    sums, sizes = np.stack([np.bincount(group, one) for one in scores]), np.bincount(group)
    means = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        seeds, chosen = rng.integers(len(scores), size=len(scores)), rng.integers(len(names), size=len(names))
        means[i] = sums[seeds][:, chosen].sum() / (len(seeds) * sizes[chosen].sum())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(scores.mean()), float(low), float(high)


def kept(path: Path, train: People, held_out: People, classes: int, seed: int) -> dict[str, np.ndarray]:
    """`score`, or what an earlier run stored of the same people in a file."""
    digest = hashlib.sha256(f"{classes} {seed} {STEPS}".encode())
    for people in (train, held_out):
        for column in people:
            digest.update(np.ascontiguousarray(column).tobytes())
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["of"]) == digest.hexdigest():
                return {task: stored[task] for task in TASKS}
    scores = score(train, held_out, classes, seed)
    stream = io.BytesIO()
    np.savez(stream, of=np.array(digest.hexdigest()), category=scores["category"], keypoints=scores["keypoints"])
    files.write_bytes(path, stream.getvalue())
    return scores


def sentence(difference: tuple[float, float, float]) -> str:
    """What a difference, both minus real, says."""
    value, low, high = (100 * number for number in difference)
    between = f"(95 % interval {low:+.1f} to {high:+.1f})"
    if low > 0:
        return f"Synthetic data helps by {value:.1f} points {between}."
    return f"Synthetic data does not help: {value:+.1f} points {between}."


def compared(
    scores: dict[tuple[str, int], list[dict[str, np.ndarray]]], groups: np.ndarray
) -> tuple[list[dict[str, Any]], str]:
    """The rows of the table, and the last sentence: of the row with most real pictures, of both tasks.

    `scores`: of each set and number of real pictures a category, those of each seed.
    """
    counts = sorted({count for name, count in scores if name == "real"})
    rows, last = [], ""
    for task in TASKS:
        stacked = {key: np.stack([one[task] for one in seeds]) for key, seeds in scores.items()}
        for count in counts:
            real, both = stacked["real", count], stacked["both", count]
            difference = interval(both - real, groups)
            rows.append(
                {
                    "task": task, "real pictures a category": count,
                    "real": interval(real, groups), "generated": interval(stacked["generated", 0], groups),
                    "both": interval(both, groups), "both minus real": difference,
                }
            )  # fmt: skip
        last += f"{task}, {counts[-1]} real pictures a category: {sentence(difference)}\n"
    return rows, last.rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.synthetic_data", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--workspace", type=Path, help="a workspace with trained models")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "contrapposto-synthetic-data")
    parser.add_argument("--real", type=int, nargs="+", default=[10, 20, 50, 200], help="real pictures a category")
    parser.add_argument("--generated", type=int, default=50, help="generated pictures a category")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train-seconds", type=float, default=480, help="of one core, without a workspace")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("WDS_SECURE", "1")
    log.to_stdout()
    options.work.mkdir(parents=True, exist_ok=True)
    root: Path = options.workspace or options.work
    if options.workspace is None:
        prepared(options.work, options.train_seconds)
    params = parameters.load(root / paths.PARAMS)
    categories: list[str] = ShardDataset(root / paths.SHARDS, "train").about["categories"]
    folder = options.work / "export"
    exported(params, root, folder, options.generated * len(categories))
    counts = files.read_json(folder / "generated.json")
    print(f"{counts['drawn']} drawn, {counts['kept']} kept ({counts['acceptance']:.1%})", flush=True)

    real, held_out = real_people(params, root, "train"), real_people(params, root, "val", "test")
    synthetic = generated_people(folder, categories)
    rule = export_error(root, held_out)
    print(
        f"keypoints as the export places them, on held-out people: {rule['distance']:.3f} of the side off, PCK@0.1 "
        f"{rule['PCK@0.1']:.3f}",
        flush=True,
    )
    available = int(np.bincount(real.labels, minlength=len(categories)).max())
    wanted = sorted({min(count, available) for count in options.real})
    scores: dict[tuple[str, int], list[dict[str, np.ndarray]]] = {}
    for seed in range(options.seeds):
        rng = np.random.default_rng(seed)
        sets = {("generated", 0): synthetic}
        for count in wanted:
            chosen = some(real, count, rng)
            sets |= {("real", count): chosen, ("both", count): joined(chosen, synthetic)}
        for key, people in sets.items():
            began = time.process_time()
            path = options.work / "scores" / f"{key[0]}-{key[1]}-{seed}.npz"
            scores.setdefault(key, []).append(kept(path, people, held_out, len(categories), seed))
            told = ", ".join(f"{task} {values.mean():.3f}" for task, values in scores[key][-1].items())
            print(f"seed {seed}, {key}: {told} ({time.process_time() - began:.0f} s)", flush=True)

    rows, last = compared(scores, held_out.groups)
    cells: list[tuple[str, ...]] = [("task", "real pictures a category", *SETS, "both minus real")]
    for row in rows:
        shown = ["{:.3f} ({:.3f} to {:.3f})".format(*row[name]) for name in (*SETS, "both minus real")]
        cells.append((f"{row['task']}, {TASKS[row['task']]}", f"{row['real pictures a category']}", *shown))
    print(table(cells))
    print(f"{len(held_out.labels)} held-out people, {len(synthetic.labels)} generated pictures, {options.seeds} seeds")
    print(last)
    return finish("synthetic_data", {"rows": rows, "generated": counts, "export": rule, "sentence": last}, {})


if __name__ == "__main__":
    sys.exit(main())
