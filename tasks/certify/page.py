"""certificate.html: the certificate as one page with the pairs as pictures inside it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tasks.certify.findings import Findings
from tasks.certify.folder import Pictures, letterboxed
from tasks.evaluate.memorization.aligned_score import laid_over
from tasks.evaluate.memorization.sentences import p_text
from tasks.extract.source_files import Refusal
from tasks.report import html

TILE = 168  # pixels
COPIES_SHOWN, NEAREST_SHOWN, ORIGINALS_SHOWN, GROUPS_SHOWN, GROUP_SHOWN = 24, 6, 12, 5, 6
VERDICTS = {
    "CLEAN": "no copies, and copies would have been recognised",
    "COPIES": "some samples are copies of training pictures",
    "LOW-POWER": "no copies were found, but the test would have missed too many",
    "SPLIT-UNRELIABLE": "near-duplicates in the data make a verdict impossible",
    "TOO-FEW": "there are too few pictures for a verdict",
}


@dataclass(frozen=True)
class Tile:
    """A picture of the page: its data, what is written below, and its file for the tooltip."""

    data: str
    caption: str
    name: str


@dataclass(frozen=True)
class Pair:
    """A sample and the training picture nearest to it, side by side and laid over each other."""

    tiles: list[Tile]
    note: str


@dataclass(frozen=True)
class Original:
    """A training picture that was copied, with the samples that copy it and its duplicates in the training set."""

    tile: Tile
    copies: int
    duplicates: list[str]


def render(findings: Findings, report: dict[str, Any]) -> str:
    """The page."""
    return html.render(
        "certificate.html",
        report=report,
        meaning=VERDICTS[report["verdict"]],
        style=report["verdict"] if report["verdict"] in ("CLEAN", "COPIES") else "unsure",
        cards=_cards(report),
        copies=[_pair(findings, pair) for pair in report["copies"][:COPIES_SHOWN]],
        nearest=[_pair(findings, pair) for pair in report["nearest"][:NEAREST_SHOWN]],
        originals=[_original(findings, entry) for entry in report["originals"][:ORIGINALS_SHOWN]],
        groups=_groups(findings),
        rejected=[(name, one) for name, folder in report["folders"].items() for one in folder["rejected"][:50]],
        p_text=p_text,
    )


def _cards(report: dict[str, Any]) -> list[html.Card]:
    folders = report["folders"]
    held = f", {folders['heldout']['pictures']} held out" if "heldout" in folders else ""
    cards = [
        html.Card(
            "pictures", f"{folders['samples']['pictures']} samples", f"{folders['train']['pictures']} training{held}"
        )
    ]
    if "power" in report:
        power, bound = report["power"], report["share_bound"]
        cards += [
            html.Card("samples on the list of copies", str(len(report["copies"])), p_text(report["p"])),
            html.Card(
                "planted copies recognised",
                f"{power['share']:.0%}",
                f"{power['found']} of {power['planted']}, 95% interval {power['low']:.0%} to {power['high']:.0%}",
            ),
            html.Card(
                "copies among the samples",
                f"at most {bound:.1%}" if bound < 1 else "possibly all" if report["copies"] else "unknown",
                "with 95% confidence",
            ),
        ]
    return cards


def _tile(square: np.ndarray, caption: str, name: str = "") -> Tile:
    """A tile of a letterboxed picture, uint8 `[s, s, 3 or 4]`; outside of the picture it is white."""
    shown = square[..., :3].copy()
    if square.shape[-1] == 4:
        shown[square[..., 3] == 0] = 255
    stream = io.BytesIO()
    Image.fromarray(shown).save(stream, "JPEG", quality=88)
    return Tile(base64.b64encode(stream.getvalue()).decode(), caption, name)


def _large(pictures: Pictures, row: int) -> np.ndarray:
    """A picture at the size of a tile, uint8 `[TILE, TILE, 4]`; the judged, small version if its file has changed meanwhile."""
    try:
        return letterboxed(TILE, pictures.picture(row))
    except Refusal:
        return np.asarray(Image.fromarray(pictures.items[row]).resize((TILE, TILE), Image.Resampling.NEAREST))


def _pair(findings: Findings, pair: dict[str, Any]) -> Pair:
    i, first, second = pair["rows"]
    sample, original = _large(findings.samples, i), _large(findings.train, first)
    seen = laid_over(sample, original)
    overlay = np.clip(seen[..., :3] * 255, 0, 255).astype(np.uint8)
    overlay[seen[..., 3] <= 0.75] = 255
    inside = (seen[..., 3] > 0.75) & (original[..., 3] > 0)
    difference = np.abs(overlay.astype(int) - original[..., :3]).astype(np.uint8)
    difference[~inside] = 0
    tiles = [
        _tile(sample, "sample", pair["sample"]),
        _tile(original, "nearest training picture", pair["original"]),
        _tile(overlay, "sample, laid over it"),
        _tile(255 - difference, "difference (white: none)"),
        _tile(_large(findings.train, second), "next training picture", pair["second"]),
    ]
    note = (
        f"{p_text(pair['p'])}; distance {pair['distance']:.3g} to the nearest training picture and "
        f"{pair['second_distance']:.3g} to the next one, by {pair['bank']}"
        f"{', mirrored' if pair['view'].startswith('mirror') else ''}"
    )
    return Pair(tiles, note)


def _original(findings: Findings, entry: dict[str, Any]) -> Original:
    return Original(
        _tile(_large(findings.train, entry["row"]), "", entry["original"]), entry["copies"], entry["duplicates"]
    )


def _groups(findings: Findings) -> list[list[Tile]]:
    """The largest groups of near-duplicates in the training set, some pictures of each."""
    numbers, counts = np.unique(findings.groups, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    groups = []
    for number in numbers[order][:GROUPS_SHOWN]:
        rows = np.flatnonzero(findings.groups == number)
        if len(rows) > 1:
            shown = [
                _tile(_large(findings.train, int(row)), "", findings.train.names[row]) for row in rows[:GROUP_SHOWN]
            ]
            groups.append(shown)
    return groups
