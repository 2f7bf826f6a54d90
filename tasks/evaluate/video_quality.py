"""Stage `video_quality`: do generated clips show the poses that were asked for, and do their frames belong together?

Writes `reports/video_quality/video_quality.json`. Every figure of generated clips stands beside that of real held-out clips:

found, joint_error, ...     MediaPipe reads the poses again in every frame (`tasks.evaluate.pose_accuracy`)
change, flicker             how pixels change from frame to frame (`tasks.metrics.video`), medians over clips
frechet_video_distance      only with the weights of I3D or C3D (`fidelity.video`), and clips of at least 16 frames
verdict                     of the memorization test: the middle frame of each sample against frames of all training clips; a
                            group is a source, so copies that are shifted in time are recognised too

Sets: `samples` (poses of held-out clips), `motions` (poses of generated motion), `apart` (frames that know nothing of each
other), `heldout`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tasks import paths
from tasks.common import machine, skeleton
from tasks.common.files import new_folder, write_json
from tasks.common.subset import evenly_spaced
from tasks.config.params import Params
from tasks.dataset import frames
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import SAMPLES, group_numbers
from tasks.evaluate import pose_accuracy
from tasks.evaluate.memorization import positive_control
from tasks.evaluate.memorization.certificate import certify_samples
from tasks.evaluate.memorization.copy_score import TooFewItems
from tasks.evaluate.memorization.copy_test import Verdict
from tasks.evaluate.memorization.invariances import PICTURE_BANKS
from tasks.evaluate.memorization.reference import Items, make_reference
from tasks.metrics import video as video_metrics
from tasks.metrics import video_networks
from tasks.metrics.findings import Findings
from tasks.metrics.frechet import frechet_estimate

READ = 24  # clips of each set in which poses are read
COMPARED = 2  # every second frame of the training clips is compared
HELD_OUT = "heldout"


def run(params: Params, root: Path) -> None:
    """Judge `samples/video`. A number that cannot be computed is listed under `absent` with the reason."""
    folder = paths.sample_folder(root, paths.VIDEO)
    train, held_out = (ShardDataset(root / paths.VIDEO_CLIPS, *splits) for splits in (["train"], ["val", "test"]))
    sets = {split: ShardDataset(folder, split) for split in ShardDataset(folder).splits}
    if len(held_out):
        sets[HELD_OUT] = held_out
    size = int(sets[SAMPLES].about["size"])
    findings = Findings()
    findings.metrics |= adherence(params, root, sets, size)
    for name, data in sets.items():
        clips = frames.read(data, size)
        for key, values in (("change", video_metrics.change(clips)), ("flicker", video_metrics.flicker(clips))):
            findings.metrics[f"{name}.{key}"] = float(np.median(values))
    _distance(params, root, sets, size, findings)
    copies = _copies(params, sets[SAMPLES], train, held_out, size)
    with new_folder(root / paths.VIDEO_QUALITY) as written:
        report = {"metrics": findings.metrics, "absent": findings.absent, **copies}
        write_json(written / "video_quality.json", report | {"clips": {name: len(data) for name, data in sets.items()}})


def adherence(params: Params, root: Path, sets: dict[str, ShardDataset], size: int) -> dict[str, float]:
    """The figures of `pose_accuracy` for every frame of some clips of each set."""
    some = {name: data.take(evenly_spaced(len(data), READ)) for name, data in sets.items()}
    shown = {name: frames.read(data, size).reshape(-1, size, size, 3) for name, data in some.items()}
    workers = params.extract.workers or machine.cores()
    model, confidence = root / params.extract.model, params.extract.min_confidence
    # One call for all sets, since a worker takes seconds to start.
    read = pose_accuracy.read_poses(np.concatenate(list(shown.values())), model, confidence, workers)
    ends = np.cumsum([len(pictures) for pictures in shown.values()])[:-1]
    numbers: dict[str, float] = {}
    for (name, data), poses in zip(some.items(), np.split(read, ends), strict=True):
        clips = data.clips()
        asked = skeleton.normalise(clips.reshape(-1, 33, 3))
        numbers |= pose_accuracy.metrics(name, poses, asked, clips.shape[1])
    return numbers


def _distance(params: Params, root: Path, sets: dict[str, ShardDataset], size: int, findings: Findings) -> None:
    """The Frechet video distance of each set to the held-out clips, if there are weights for it."""
    name = "frechet_video_distance"
    if params.fidelity.video is None or HELD_OUT not in sets:
        findings.absent[name] = "fidelity.video is not given, or there are no held-out clips."
        return
    length, needed = int(sets[SAMPLES].about["frames"]), video_networks.FRAMES
    if length < needed:
        findings.absent[name] = f"the networks need {needed} frames, and clips have {length} (video.clips.frames)."
        return
    network = video_networks.load(params.fidelity.video, root)
    features = {key: network(frames.read(data, size)[:, :needed])["features"] for key, data in sets.items()}
    real, sources = features.pop(HELD_OUT), [str(meta["source"]) for meta in sets[HELD_OUT].metas()]
    for key, ours in features.items():
        both = [str(i) for i in range(len(ours))], sources
        findings.add(f"{key}.{name}", partial(frechet_estimate, ours, real, np.random.default_rng(0), sources=both))


def _copies(
    params: Params, samples: ShardDataset, train: ShardDataset, held_out: ShardDataset, size: int
) -> dict[str, Any]:
    """The answer of the copy test. Too little data is a verdict, too."""
    groups = group_numbers(train, held_out)

    def items(data: ShardDataset, group: np.ndarray) -> Items:
        clips = frames.read(data, size)[:, ::COMPARED]
        return Items(clips.reshape(-1, size, size, 3), np.repeat(group, clips.shape[1]))

    try:
        known = items(train, groups[0])
        reference = make_reference(PICTURE_BANKS, known, items(held_out, groups[1]))
        plant = positive_control.pictures(len(known), lambda i: known.data[i], lambda picture: picture)
        middle = frames.read(samples)[:, int(samples.about["frames"]) // 2]
        certificate = certify_samples(params.memorization, "frames", middle, reference, plant)
    except TooFewItems as error:
        sentence = f"Nothing can be said about copied frames: {error}"
        return {"verdict": Verdict.TOO_FEW.value, "sentence": sentence, "copy_test": {}}
    return {
        "verdict": certificate.verdict.value,
        "sentence": certificate.sentence,
        "copy_test": certificate.metrics(),
    }
