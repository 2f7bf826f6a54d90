"""The words and numbers of the report: what the stages found, as tables, cards and one flat dictionary of metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import paths
from tasks.common import files
from tasks.config.params import Params
from tasks.extract import parts
from tasks.paths import MODELS

ERRORS = {  # how `joint_error` names them, and in words
    "persons": "persons measured",
    "pixels_mean": "error of the 12 limb joints in the picture, mean, pixels",
    "pixels_median": "the same, median",
    "torsos_mean": "the same in torso lengths, mean",
    "torsos_median": "the same in torso lengths, median",
    "within_0.2": "joints within 0.2 torso lengths (PCK)",
    "within_0.5": "joints within 0.5 torso lengths (PCK)",
    "swapped": "persons whose left was read as right",
    "metres_mean": "error in space after scaling, mean, metres",
    "metres_median": "the same, median",
}
QUESTIONS = {  # of the copy test, in the order of the page
    "poses": "poses",
    "pictures": "pictures",
    "train_conditions": "pictures asked for with training conditions (no verdict on the model)",
    "pose_reuse": "poses seen in the pictures (no verdict on the model)",
}
VERDICT_STYLES = {"CLEAN": "CLEAN", "COPIES": "COPIES"}


@dataclass(frozen=True)
class Found:
    """The findings of all stages, as read from their files."""

    extraction: dict[str, Any]
    curation: dict[str, Any]
    losses: dict[str, float]  # model -> last training loss
    memorization: dict[str, Any]
    membership_inference: dict[str, Any]
    pose_accuracy: dict[str, Any]
    fidelity: dict[str, Any]
    promotion: dict[str, Any]


def gather(params: Params, root: Path) -> Found:
    """Read what the stages left."""
    losses = {m: files.read_json(paths.model_folder(root, m) / "training.json")["loss"][-1][1] for m in MODELS}
    return Found(
        extraction=parts.summary(root, params.raw),
        curation=files.read_json(root / paths.DATASET / "summary.json"),
        losses=losses,
        memorization=files.read_json(root / paths.MEMORIZATION / "memorization.json"),
        membership_inference=files.read_json(root / paths.MEMBERSHIP_INFERENCE / "membership_inference.json"),
        pose_accuracy=files.read_json(root / paths.POSE_ACCURACY / "pose_accuracy.json"),
        fidelity=files.read_json(root / paths.FIDELITY / "fidelity.json"),
        promotion=files.read_json(root / paths.PROMOTE / "promote.json"),
    )


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def _spell(counts: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in sorted(counts.items())) or "none"


def _distance(found: Found) -> tuple[str, str]:
    """The Frechet pose distance and its references in words; or why there is none."""
    name = "poses.frechet_pose_distance"
    metrics = found.fidelity["metrics"]
    if name not in metrics:
        reasons = found.fidelity["absent"]
        return "absent", str(reasons.get(name, reasons.get("poses", "")))
    references = [f"{what} {number(metrics[key])}" for key, what in (
        (f"{name}_floor", "training data"), (f"{name}_noise", "noise")) if key in metrics]  # fmt: skip
    return number(metrics[name]), "; ".join(references)


def summary(found: Found) -> dict[str, Any]:
    """The short table that a run ends with, `rows` of [label, value], and `metrics`, flat, for MLflow."""
    distance, references = _distance(found)
    rejects = {**found.extraction["rejects"], **found.curation["gated"]}
    rows = [
        ["pictures in", str(found.extraction["files"])],
        ["persons kept", f"{found.curation['persons_kept']} ({_spell(found.curation['splits'])})"],
        ["rejects", _spell(rejects)],
        *([f"training loss, {model}", number(loss)] for model, loss in found.losses.items()),
        ["Frechet pose distance", f"{distance} ({references})" if references else distance],
        *([f"memorization, {model}", found.memorization["verdicts"][model]] for model in MODELS),
        ["promoted", _promotion(found)],
    ]
    metrics = {
        "data.files": found.extraction["files"],
        "data.persons_kept": found.curation["persons_kept"],
        **{f"data.rejects.{reason}": count for reason, count in rejects.items()},
        **{
            f"extraction.{part}.{key}": value
            for part, errors in found.extraction["joint_error"].items()
            for key, value in errors.items()
        },
        **{f"training.{model}.loss": loss for model, loss in found.losses.items()},
        **{f"memorization.{key}": value for key, value in found.membership_inference["metrics"].items()},
        **{f"pose_accuracy.{key}": value for key, value in found.pose_accuracy["metrics"].items()},
        **{f"fidelity.{key}": value for key, value in found.fidelity["metrics"].items()},
        **{f"memorization.{key}": value for key, value in found.memorization["metrics"].items()},
    }
    numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}
    return {"rows": rows, "metrics": numbers}


def _promotion(found: Found) -> str:
    return "yes" if found.promotion["promote"] else "no: " + " ".join(found.promotion["reasons"])


def sections(params: Params, root: Path, found: Found) -> dict[str, Any]:
    """Everything of the page but its pictures."""
    distance, references = _distance(found)
    verdicts = found.memorization["models"]
    cards = [
        {"label": "people kept", "value": found.curation["persons_kept"], "style": "",
         "note": f"of {found.extraction['files']} files"},
        {"label": "Frechet pose distance", "value": distance, "style": "", "note": references},
        *(
            {"label": f"memorization, {model}", "value": verdicts[model]["verdict"],
             "style": VERDICT_STYLES.get(verdicts[model]["verdict"], "unsure"), "note": ""}
            for model in MODELS
        ),
    ]  # fmt: skip
    return {
        "name": ", ".join(sorted(params.raw.parts)),
        "persons_kept": found.curation["persons_kept"],
        "cards": cards,
        "funnel": _funnel(found),
        "accuracy": [
            [f"{part}: {words}", number(errors[key])]
            for part, errors in found.extraction["joint_error"].items()
            for key, words in ERRORS.items()
        ],
        "verdicts": [
            {"model": words, "verdict": verdicts[name]["verdict"], "sentence": verdicts[name]["sentence"],
             "style": VERDICT_STYLES.get(verdicts[name]["verdict"], "unsure"),
             "evidence": _evidence(verdicts[name]["metrics"])}
            for name, words in QUESTIONS.items() if name in verdicts
        ],
        "on_demand": _on_demand(found.memorization["metrics"]),
        "gaps": [[model, entry["sentence"]] for model, entry in found.membership_inference["models"].items()],
        "metrics": [
            [f"{stage}{key}", number(value)]
            for stage, entry in (("", found.fidelity), ("pose_accuracy.", found.pose_accuracy))
            for key, value in sorted(entry["metrics"].items())
        ],
        "absent": sorted(found.fidelity["absent"].items()),
        "promotion": found.promotion,
        "lineage": _lineage(root),
    }  # fmt: skip


def _evidence(metrics: dict[str, float]) -> list[list[str]]:
    """What stands behind a verdict, and what could not have been seen: rows of [words, value]. Empty without a test."""
    if "p" not in metrics:
        return []
    counted = {key: round(value) for key, value in metrics.items()}
    rows = [
        ["samples; training items; held-out items",
         f"{counted['samples']}; {counted['train']}; {counted['heldout']}"],
        ["samples on the list of copies", f"{counted['copies']} ({metrics['copies_fraction']:.1%}, 95% interval "
         f"{metrics['copies_fraction_low']:.1%} to {metrics['copies_fraction_high']:.1%})"],
        ["p-value: samples nearer to train than anybody", number(metrics["p_tail"])],
        ["p-value: train comes up more often than held-out", f"{number(metrics['p_split'])}, "
         f"{counted['originals_hit_in_train']} of {counted['originals_hit']} originals in train"],
        ["copies planted as a control, found", f"{counted['planted_found']} of {counted['planted']}"],
    ]  # fmt: skip
    for bank in [key.removesuffix(".smallest_copy") for key in metrics if key.endswith(".smallest_copy")]:
        size = metrics[f"{bank}.smallest_copy"]
        rows.append([
            f"{bank.replace('_', ' ')}: dimension of the data; how far a copy may be and still be seen",
            f"{metrics[f'{bank}.intrinsic_dimension']:.1f}; {size:.2f} of the usual distance to the nearest"
            + ("" if metrics[f"{bank}.tail_fits"] else " (by ranks: the tail follows no power law)"),
        ])  # fmt: skip
    return rows


def _on_demand(metrics: dict[str, float]) -> str:
    """Copies among pictures that were asked for with conditions of the training set, beside held-out ones."""
    shares = [metrics.get(f"{name}.copies_fraction") for name in ("train_conditions", "pictures")]
    if None in shares:
        return ""
    return (
        f"Asked for with conditions of the training set, {shares[0]:.1%} of the pictures are on the list of copies; with "
        f"those of held-out people {shares[1]:.1%}."
    )


def _funnel(found: Found) -> list[list[Any]]:
    curation = found.curation
    return [
        ["files", found.extraction["files"], ""],
        ["persons found", found.extraction["persons"], "refused: " + _spell(found.extraction["rejects"])],
        ["persons kept", curation["persons_kept"], "refused: " + _spell(curation["gated"])],
        ["groups of near-copies", curation["groups"], f"the largest has {curation['largest_group']}"],
        *([split, count, "whole groups"] for split, count in curation["splits"].items()),
        ["categories", len(curation["categories"]), _spell(curation["categories"])],
    ]


def _lineage(root: Path) -> list[list[str]]:
    rows = []
    for shard in files.read_json(root / paths.SHARDS / paths.SHARD_INDEX)["shards"]:
        rows.append([f"shard {shard['name']}", f"sha256 {shard['sha256']}"])
    for model in MODELS:
        rows.append([f"model {model}", f"sha256 {paths.model_sha256(root, model)}"])
        samples = paths.sample_folder(root, model) / "index.json"
        for shard in files.read_json(samples)["shards"]:
            rows.append([f"samples of {model}, {shard['name']}", f"sha256 {shard['sha256']}"])
    return rows
