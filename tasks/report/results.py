"""What the stages of a run measured: read from their files, and summed up as a table and as flat figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import paths
from tasks.common import files
from tasks.common.text import one_line
from tasks.config.params import Params
from tasks.extract import parts
from tasks.paths import MODELS

# Key figure -> where it stands in `summary.json`. These are what `dvc metrics` and `dvc exp show` print.
KEY_FIGURES = {
    "poses.loss": "training.poses.loss",
    "poses.frechet_distance": "fidelity.poses.frechet_pose_distance",
    "poses.frechet_distance_training_data": "fidelity.poses.frechet_pose_distance_floor",
    "poses.frechet_distance_noise": "fidelity.poses.frechet_pose_distance_noise",
    "poses.kid": "fidelity.poses.kernel_pose_distance",
    "poses.kid_training_data": "fidelity.poses.kernel_pose_distance_floor",
    "pictures.loss": "training.pictures.loss",
    "pictures.fid": "fidelity.pictures.fid",
    "pictures.fid_training_data": "fidelity.pictures.fid_floor",
    "pictures.fid_corrected": "fidelity.pictures.fid_corrected",
    "pictures.edge_kid": "fidelity.pictures.edge_kernel_distance",
    "pictures.edge_kid_training_data": "fidelity.pictures.edge_kernel_distance_floor",
    "pictures.pixel_kid": "fidelity.pictures.pixel_kernel_distance",
    "pictures.found": "pose_accuracy.pictures.found",
    "pictures.within_0.2_torso": "pose_accuracy.pictures.within_0.2",
    "poses.bits_per_dim": "likelihood.poses.bits_per_dim",
    "pictures.bits_per_dim": "likelihood.pictures.bits_per_dim",
    "recognition.landmarks": "recognition.landmarks.accuracy",
    "recognition.pixels": "recognition.pixels.accuracy",
}


@dataclass(frozen=True)
class Results:
    """The results of all stages, as read from their JSON files."""

    extraction: dict[str, Any]
    curation: dict[str, Any]
    losses: dict[str, float]  # model -> last training loss
    memorization: dict[str, Any]
    membership_inference: dict[str, Any]
    likelihood: dict[str, Any]
    pose_accuracy: dict[str, Any]
    codec_quality: dict[str, Any]
    recognition: dict[str, Any]
    fidelity: dict[str, Any]
    promotion: dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """The short table that a run ends with, as rows of (label, value), and all figures by name."""

    rows: list[tuple[str, str]]
    metrics: dict[str, float]


def read(params: Params, root: Path) -> Results:
    """The results that the stages wrote."""
    losses = {
        m: files.read_json(paths.model_folder(root, params.sampled(m)) / "training.json")["loss"][-1][1]
        for m in paths.trained_models(root)
    }
    membership_inference = files.read_json(root / paths.MEMBERSHIP_INFERENCE / "membership_inference.json")
    return Results(
        extraction=parts.summary(root, params.raw),
        curation=files.read_json(root / paths.DATASET / "summary.json"),
        losses=losses,
        memorization=files.read_json(root / paths.MEMORIZATION / "memorization.json"),
        membership_inference=membership_inference,
        likelihood=membership_inference["likelihood"],
        pose_accuracy=files.read_json(root / paths.POSE_ACCURACY / "pose_accuracy.json"),
        codec_quality=files.read_json(root / paths.CODEC_QUALITY / "codec_quality.json"),
        recognition=files.read_json(root / paths.RECOGNITION / "recognition.json"),
        fidelity=files.read_json(root / paths.FIDELITY / "fidelity.json"),
        promotion=files.read_json(root / paths.PROMOTE / "promote.json"),
    )


def number(value: float) -> str:
    """A number with four significant digits."""
    return f"{value:.4g}"


def counts_in_words(counts: Mapping[str, int]) -> str:
    """Counts by reason or split, such as "blurred 3, too dark 1"."""
    return ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in sorted(counts.items())) or "none"


def frechet_distance(results: Results) -> tuple[str, str]:
    """The Frechet pose distance and its references in words; without one, "absent" and the reason."""
    name = "poses.frechet_pose_distance"
    metrics = results.fidelity["metrics"]
    if name not in metrics:
        reasons = results.fidelity["absent"]
        return "absent", str(reasons.get(name, reasons.get("poses", "")))
    references = [
        f"{label} {number(metrics[key])}"
        for label, key in (("training data", f"{name}_floor"), ("noise", f"{name}_noise"))
        if key in metrics
    ]
    return number(metrics[name]), "; ".join(references)


def fid(results: Results) -> tuple[str, str] | None:
    """The plain FID, and in words its references and sample sizes; None without the weights of Inception-v3.

    It is the number that papers compare, so it is shown even where it is biased; the words say so.
    """
    name = "pictures.fid"
    metrics = results.fidelity["metrics"]
    if name not in metrics:
        return None
    words = [f"training data {number(metrics[f'{name}_floor'])}"] if f"{name}_floor" in metrics else []
    corrected, low, high = (metrics.get(f"{name}_corrected{end}") for end in ("", "_low", "_high"))
    if corrected is not None and low is not None and high is not None:
        words.append(f"corrected {number(corrected)}, 95% interval {number(low)} to {number(high)}")
    return number(metrics[name]), "; ".join([*words, results.fidelity["notes"][name]])


def summarise(results: Results) -> Summary:
    """The table and the figures of a run."""
    distance, references = frechet_distance(results)
    plain_fid = fid(results)
    extraction, curation = results.extraction, results.curation
    rejects = {**extraction["rejects"], **curation["gated"]}
    promotion = results.promotion
    sentences = one_line(" ".join(promotion.get("warnings", []) if promotion["promote"] else promotion["reasons"]))
    promoted = ("yes" if promotion["promote"] else "no") + (f": {sentences}" if sentences else "")
    rows = [
        ("pictures in", str(extraction["files"])),
        ("persons kept", f"{curation['persons_kept']} ({counts_in_words(curation['splits'])})"),
        ("rejects", counts_in_words(rejects)),
        *((f"training loss, {model}", number(loss)) for model, loss in results.losses.items()),
        ("Frechet pose distance", f"{distance} ({references})" if references else distance),
        *([] if plain_fid is None else [("FID", f"{plain_fid[0]} ({plain_fid[1]})")]),
        *((f"memorization, {model}", results.memorization["verdicts"][model]) for model in MODELS),
        ("promoted", promoted),
    ]
    metrics = {
        "data.files": extraction["files"],
        "data.persons_kept": curation["persons_kept"],
        **{f"data.rejects.{reason}": count for reason, count in rejects.items()},
        **{
            f"extraction.{part}.{key}": value
            for part, errors in extraction["joint_error"].items()
            for key, value in errors.items()
        },
        **{f"training.{model}.loss": loss for model, loss in results.losses.items()},
        **{f"memorization.{key}": value for key, value in results.membership_inference["metrics"].items()},
        **{f"likelihood.{key}": value for key, value in results.likelihood["metrics"].items()},
        **{f"pose_accuracy.{key}": value for key, value in results.pose_accuracy["metrics"].items()},
        **results.codec_quality["metrics"],
        **{f"recognition.{key}": value for key, value in results.recognition["metrics"].items()},
        **{f"fidelity.{key}": value for key, value in results.fidelity["metrics"].items()},
        **{f"memorization.{key}": value for key, value in results.memorization["metrics"].items()},
    }
    return Summary(rows, {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)})


def key_figures(results: Results, metrics: Mapping[str, float]) -> dict[str, float | str]:
    """The figures to compare runs by, out of a summary's metrics, and the verdicts as words. Figures may be missing."""
    return {
        "persons_kept": int(metrics["data.persons_kept"]),
        **{name: metrics[key] for name, key in KEY_FIGURES.items() if key in metrics},
        **{f"{model}.memorization": results.memorization["verdicts"][model] for model in MODELS},
        "promoted": "yes" if results.promotion["promote"] else "no",
    }
