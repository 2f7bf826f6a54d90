"""The words and tables of the report; its figures are drawn by the stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import paths
from tasks.common import files
from tasks.common.text import enumerated
from tasks.config.params import Params
from tasks.evaluate.pose_accuracy import NEAR
from tasks.paths import MODELS
from tasks.report.html import Card
from tasks.report.results import Results, counts_in_words, fid, frechet_distance, number

JOINT_ERRORS = {  # a measure of extraction's `joint_error` -> words
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
QUESTIONS = {  # of the memorization test, in the order of the page
    "poses": "poses",
    "pictures": "pictures",
    "train_conditions": "pictures generated with training conditions (no verdict on the model)",
    "pose_reuse": "poses read in the pictures (no verdict on the model)",
}

WITHIN = f"within_{NEAR}"

Row = tuple[str, str]


@dataclass(frozen=True)
class VerdictSection:
    """The answer to one question of the memorization test."""

    model: str
    verdict: str
    style: str
    sentence: str
    evidence: list[Row]


@dataclass(frozen=True)
class Page:
    """Everything on the page but its figures."""

    name: str
    persons_kept: int
    pictures: str  # how well the generated pictures show their poses, in a sentence; empty if there are none
    cards: list[Card]
    funnel: list[tuple[str, int, str]]  # step, count, remark
    extraction_accuracy: list[Row]
    verdicts: list[VerdictSection]
    train_conditions: str  # a sentence; empty if it cannot be said
    membership_inference: list[Row]  # model, sentence
    likelihood: list[Row]  # model, sentence
    recognition: list[Row]  # view, sentence
    metrics: list[Row]
    absent: list[Row]  # metric, reason
    promoted: bool
    compared: bool  # with a champion
    promotion_reasons: list[str]
    promotion_warnings: list[str]
    lineage: list[Row]


def make(params: Params, root: Path, results: Results) -> Page:
    """The page of a run."""
    return Page(
        name=", ".join(sorted(params.raw.parts)),
        persons_kept=results.curation["persons_kept"],
        pictures=_pictures(results.pose_accuracy["metrics"]),
        cards=_cards(results),
        funnel=_funnel(results),
        extraction_accuracy=[
            (f"{part}: {words}", number(errors[key]))
            for part, errors in results.extraction["joint_error"].items()
            for key, words in JOINT_ERRORS.items()
        ],
        verdicts=_verdicts(results.memorization["models"]),
        train_conditions=_train_conditions(results.memorization["metrics"]),
        membership_inference=[
            (model, entry["sentence"]) for model, entry in results.membership_inference["models"].items()
        ],
        likelihood=[*results.likelihood["sentences"].items(), *results.likelihood["absent"].items()],
        recognition=_recognition(results.recognition),
        metrics=_metrics(results),
        absent=sorted(results.fidelity["absent"].items()),
        promoted=results.promotion["promote"],
        compared="model_comparison" in results.promotion,
        promotion_reasons=results.promotion["reasons"],
        promotion_warnings=results.promotion.get("warnings", []),
        lineage=_lineage(params, root),
    )


def _metrics(results: Results) -> list[Row]:
    """All metrics of quality, with the notes on how to read them."""
    stages = (
        ("", results.fidelity),
        ("pose_accuracy.", results.pose_accuracy),
        ("", results.codec_quality),
    )
    return [
        (f"{stage}{key}" + (f" ({entry['notes'][key]})" if key in entry.get("notes", {}) else ""), number(value))
        for stage, entry in stages
        for key, value in sorted(entry["metrics"].items())
    ]


def _recognition(measured: dict[str, Any]) -> list[Row]:
    """How well each view names the categories of held-out people, or why it does not."""
    metrics, rows = measured["metrics"], list(measured["absent"].items())
    for view in measured["confusion"]:
        of = {key.removeprefix(f"{view}."): value for key, value in metrics.items() if key.startswith(f"{view}.")}
        sentence = (
            f"{of['accuracy']:.1%} of {of['people']:.0f} held-out people are recognised (95% interval "
            f"{of['accuracy_low']:.1%} to {of['accuracy_high']:.1%}). For {of['answered']:.1%} a category is named"
        )
        if "accuracy_answered" in of:
            sentence += f", and {of['accuracy_answered']:.1%} of these names are right"
        sentence += (
            f". The confidence is off by {of['calibration_error']:.3f} on average (expected calibration error; "
            f"{of['calibration_error_floor']:.3f} would be chance, {of['calibration_error_raw']:.3f} without temperature "
            f"scaling). {of['rejected']:.1%} are called unknown; {of['false_rejection_stated']:.1%} was the limit."
        )
        rows.append((view, sentence))
    return rows


def _style(verdict: str) -> str:
    return verdict if verdict in ("CLEAN", "COPIES") else "unsure"


def _pictures(metrics: dict[str, float]) -> str:
    """What MediaPipe reads in the generated pictures, beside real ones of the same size."""
    if "pictures.found" not in metrics:
        return ""

    def share(key: str) -> str:
        real = f" (real pictures of this size: {metrics[f'floor.{key}']:.1%})" if f"floor.{key}" in metrics else ""
        return f"{metrics[f'pictures.{key}']:.1%}{real}"

    sentence = f"Share of the generated pictures in which MediaPipe finds a person: {share('found')}."
    if f"pictures.{WITHIN}" in metrics:
        sentence += f" Share of their limb joints within {NEAR} torso lengths of the pose asked for: {share(WITHIN)}."
    return sentence


def _share(metrics: dict[str, float], key: str, label: str) -> list[Card]:
    """A share of the generated pictures as a card, beside that of real pictures; none if it was not measured."""
    if f"pictures.{key}" not in metrics:
        return []
    real = f"real pictures: {metrics[f'floor.{key}']:.1%}" if f"floor.{key}" in metrics else ""
    return [Card(label, f"{metrics[f'pictures.{key}']:.1%}", real)]


def _cards(results: Results) -> list[Card]:
    distance, references = frechet_distance(results)
    plain_fid = fid(results)
    accuracy = results.pose_accuracy["metrics"]
    verdicts = {model: results.memorization["models"][model]["verdict"] for model in MODELS}
    return [
        *_share(accuracy, "found", "pictures with a person"),
        *_share(accuracy, WITHIN, f"joints within {NEAR} torso"),
        Card("Frechet pose distance", distance, references),
        *([] if plain_fid is None else [Card("FID", *plain_fid)]),
        *(Card(f"memorization, {model}", verdict, "", _style(verdict)) for model, verdict in verdicts.items()),
        Card("people kept", str(results.curation["persons_kept"]), f"of {results.extraction['files']} files"),
    ]


def _verdicts(models: dict[str, Any]) -> list[VerdictSection]:
    return [
        VerdictSection(
            model=words,
            verdict=models[name]["verdict"],
            style=_style(models[name]["verdict"]),
            sentence=models[name]["sentence"],
            evidence=_evidence(models[name]["metrics"]) + _power(models[name].get("power", [])),
        )
        for name, words in QUESTIONS.items()
        if name in models
    ]


def _evidence(metrics: dict[str, float]) -> list[Row]:
    """What a verdict rests on, and how near a copy must be to be detected. Empty if the test was not made."""
    if "p" not in metrics:
        return []
    counted = {key: round(value) for key, value in metrics.items()}
    low, high = metrics["copies_fraction_low"], metrics["copies_fraction_high"]
    rows = [
        (
            "samples; training items; held-out items",
            f"{counted['samples']}; {counted['train']}; {counted['heldout']}",
        ),
        (
            "samples on the list of copies",
            f"{counted['copies']} ({metrics['copies_fraction']:.1%}, 95% interval {low:.1%} to {high:.1%})",
        ),
        ("p-value: some samples are nearer to training items than held-out items are", number(metrics["p_tail"])),
        (
            "p-value: nearest items are in the training set more often than by chance",
            f"{number(metrics['p_split'])}, "
            f"{counted['originals_hit_in_train']} of {counted['originals_hit']} originals in train",
        ),
        (
            "copies planted as a control, recognised",
            f"{counted['planted_found']} of {counted['planted']} ({metrics['power']:.0%}, 95% interval "
            f"{metrics['power_low']:.0%} to {metrics['power_high']:.0%})",
        ),
        ("largest share of copies among the samples, at 95% confidence", f"{metrics['share_bound']:.1%}"),
    ]
    for bank in [key.removesuffix(".smallest_copy") for key in metrics if key.endswith(".smallest_copy")]:
        size = metrics[f"{bank}.smallest_copy"]
        ranks = "" if metrics[f"{bank}.tail_fits"] else " (by ranks: the tail follows no power law)"
        rows.append(
            (
                f"{bank.replace('_', ' ')}: dimension of the data; largest distance at which a copy is detected",
                f"{metrics[f'{bank}.intrinsic_dimension']:.1f}; {size:.2f} of the usual nearest distance{ranks}",
            )
        )
    return rows


def _power(rows: list[dict[str, Any]]) -> list[Row]:
    """How many planted copies of each disguise were recognised."""
    return [
        (
            f"planted copies, {row['disguise']}",
            f"{row['found']} of {row['planted']} recognised (95% interval {row['low']:.0%} to {row['high']:.0%})",
        )
        for row in rows
    ]


def _train_conditions(metrics: dict[str, float]) -> str:
    """Copies among pictures generated with conditions of the training set, beside held-out ones; empty if not measured."""
    trained, held_out = (metrics.get(f"{name}.copies_fraction") for name in ("train_conditions", "pictures"))
    if trained is None or held_out is None:
        return ""
    return (
        f"Of the pictures generated with conditions of the training set, {trained:.1%} are on the list of copies; of those "
        f"generated with held-out conditions, {held_out:.1%}."
    )


def _funnel(results: Results) -> list[tuple[str, int, str]]:
    extraction, curation = results.extraction, results.curation
    return [
        ("files", extraction["files"], ""),
        ("persons found", extraction["persons"], "refused: " + counts_in_words(extraction["rejects"])),
        ("persons kept", curation["persons_kept"], "refused: " + counts_in_words(curation["gated"])),
        ("groups of near-copies", curation["groups"], f"the largest has {curation['largest_group']}"),
        *((split, count, "whole groups") for split, count in curation["splits"].items()),
        ("categories", len(curation["categories"]), _largest(curation["categories"])),
    ]


def _largest(categories: dict[str, int]) -> str:
    ordered = sorted(categories.items(), key=lambda item: (-item[1], item[0]))
    return enumerated([f"{name} {count}" for name, count in ordered], most=20)


def _lineage(params: Params, root: Path) -> list[Row]:
    """The sha256 of shards, models and samples."""
    rows = [(f"shard {shard['name']}", f"sha256 {shard['sha256']}") for shard in _shards(root / paths.SHARDS)]
    for model in paths.trained_models(root):
        rows.append((f"model {model}", f"sha256 {paths.model_sha256(root, params.sampled(model))}"))
    for model in MODELS:
        for shard in _shards(paths.sample_folder(root, model)):
            rows.append((f"samples of {model}, {shard['name']}", f"sha256 {shard['sha256']}"))
    return rows


def _shards(folder: Path) -> list[dict[str, Any]]:
    shards: list[dict[str, Any]] = files.read_json(folder / paths.SHARD_INDEX)["shards"]
    return shards
