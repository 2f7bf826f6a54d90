"""`contrapposto certify`: the copy test for folders of pictures by any model, outside of any workspace.

Training pictures that show the same photo are grouped by alignment. Samples are then judged as in the stage `memorization`, in
three banks: colours, edges, and aligned pictures. Nobody has to be on the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from tasks.certify import page
from tasks.certify.findings import Findings, report_of
from tasks.certify.folder import Pictures, letterboxed, read
from tasks.common.errors import DataError, UserError
from tasks.common.files import write_bytes, write_json
from tasks.common.thumbnail import SIDE
from tasks.dataset.groups import Near, join_near
from tasks.evaluate.memorization import positive_control
from tasks.evaluate.memorization.aligned_score import as_gallery
from tasks.evaluate.memorization.certificate import Certificate, score_samples
from tasks.evaluate.memorization.certificate import certify as certificate_of
from tasks.evaluate.memorization.copy_score import TooFewItems
from tasks.evaluate.memorization.copy_test import Enough, Verdict
from tasks.evaluate.memorization.invariances import ALIGNED, COLOURS, EDGES, AnyBank
from tasks.evaluate.memorization.reference import Items, make_reference
from tasks.extract.source_files import Refusal
from tasks.similarity.near_pairs import near_pairs

BANKS: tuple[AnyBank, ...] = (COLOURS, EDGES, ALIGNED)
NEAR_DUPLICATE = 0.17  # distance after alignment up to which two training pictures are one group
SMALL_GROUP = 4  # pictures of one scene that need not all be near to each other
CALIBRATION = 3000  # the most training pictures that calibrate the test
PLANTED = 180
NEEDED_GROUPS, NEEDED_HELDOUT, NEEDED_SAMPLES = 100, 10, 50
DISGUISED_SIDE = 512  # pixels of the longer side to which a picture is reduced before it is disguised
EXIT_CODES = {Verdict.CLEAN: 0, Verdict.COPIES: 10}  # all others: 11
CERTIFICATE, PAGE = "certificate.json", "certificate.html"


@dataclass(frozen=True)
class Result:
    """The outcome: the verdict, what it means in words, and everything in certificate.json."""

    verdict: Verdict
    sentence: str
    report: dict[str, Any]

    @property
    def exit_code(self) -> int:
        """0 for CLEAN, 10 for COPIES, 11 for every other verdict."""
        return EXIT_CODES.get(self.verdict, 11)


def certify(
    train: str | Path,
    samples: str | Path,
    heldout: str | Path | None = None,
    out: str | Path | None = None,
    *,
    near_duplicate: float = NEAR_DUPLICATE,
    level: float = 0.01,
    false_discovery: float = 0.1,
) -> Result:
    """Are the pictures in `samples` copies of those in `train`?

    `heldout`: pictures of the same kind that the model has not seen; without them the training pictures alone calibrate the
    test. `out`: folder for certificate.json and certificate.html; None: nothing is written. `near_duplicate`: distance after
    alignment, 0 to 1, up to which two training pictures count as one. `level`: significance level of the verdict;
    `false_discovery`: share of false entries in the list of copies.

    Raises UserError if a folder is missing or `out` cannot be used, DataError if a folder holds no picture that can be read
    or a file changes meanwhile. Too few pictures are a verdict.
    """
    places = [Path(train), Path(samples), *([Path(heldout)] if heldout is not None else [])]
    _check_apart(places)
    if out is not None:
        _check_out(Path(out), places)
    pictures = read(places)
    for some in pictures:
        if not len(some):
            raise DataError(f"No picture in {some.folder} can be read ({len(some.rejected)} refused).")
    known, generated = pictures[0], pictures[1]
    unseen = pictures[2] if len(pictures) > 2 else None
    with _steps(4 if out is None else 5) as step:
        step("group near-duplicates")
        softness = min(SIDE, generated.shortest)
        items = [_softened(some.items, softness) for some in pictures]
        groups = grouped([known, *([unseen] if unseen else [])], [items[0], *items[2:]], near_duplicate)
        train_groups, heldout_groups = groups[: len(known)], groups[len(known) :]
        apart = ~np.isin(heldout_groups, train_groups)
        findings = Findings(known, generated, unseen, int((~apart).sum()), train_groups, near_duplicate)
        heldout_items = items[2][apart] if unseen else np.zeros((0, *items[0].shape[1:]), np.uint8)
        certificate: Certificate | None = None
        try:
            step("calibrate")
            reference = make_reference(
                BANKS,
                Items(items[0], train_groups),
                Items(heldout_items, heldout_groups[apart]),
                calibration=CALIBRATION,
                without_heldout=True,
            )
            step("compare the samples")
            scored = score_samples("pictures", items[1], reference)
            step("find planted copies")
            judged = certificate_of(
                "pictures",
                scored,
                reference,
                positive_control.pictures(len(known), partial(moderate, known), partial(item_of, softness)),
                np.random.default_rng(0),
                level=level,
                false_discovery=false_discovery,
                planted=PLANTED,
                needed=Enough(NEEDED_GROUPS, NEEDED_HELDOUT if unseen else 0, NEEDED_SAMPLES),
            )
        except TooFewItems as error:
            verdict, sentence = Verdict.TOO_FEW, f"Nothing can be said about copied pictures: {error}"
        else:
            certificate, verdict, sentence = judged, judged.verdict, judged.sentence
        report = report_of(findings, certificate, verdict, sentence)
        if out is not None:
            step("write the page")
            folder = Path(out)
            write_bytes(folder / PAGE, page.render(findings, report).encode())
            write_json(folder / CERTIFICATE, report)
    return Result(verdict, sentence, report)


def _check_apart(folders: list[Path]) -> None:
    """Raise UserError if one folder is another or lies in it: every picture would then be a copy of itself."""
    resolved = [folder.resolve() for folder in folders]
    for i, one in enumerate(resolved):
        for j, other in enumerate(resolved):
            if i != j and one.is_relative_to(other):
                raise UserError(f"The folders {folders[i]} and {folders[j]} overlap; their pictures must be apart.")


def _check_out(out: Path, folders: list[Path]) -> None:
    """Raise UserError if `out` cannot be a folder, or if the page would lie among the pictures."""
    place = out.resolve()
    existing = next(path for path in (place, *place.parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"The certificate cannot be written to {out}: {existing} is not a folder.")
    for folder in folders:
        if place.is_relative_to(folder.resolve()):
            raise UserError(f"The certificate cannot be written to {out}: it lies among the pictures in {folder}.")


@contextmanager
def _steps(total: int) -> Iterator[Any]:
    """A progress bar of named steps: call it at the beginning of each."""
    with tqdm(total=total, unit="step", bar_format="{desc}{n_fmt}/{total_fmt} [{elapsed}]") as bar:
        begun = False

        def step(name: str) -> None:
            nonlocal begun
            bar.update(int(begun))
            begun = True
            bar.set_description(name)

        yield step
        bar.update()


def grouped(some: list[Pictures], items: list[np.ndarray], near_duplicate: float) -> np.ndarray:
    """The group of every picture: the same file, or the same photo after alignment."""
    keys = [key for pictures in some for key in pictures.keys]
    groups = np.unique(keys, return_inverse=True)[1].astype(np.int64)
    if not near_duplicate:
        return groups
    gallery = as_gallery(np.concatenate(items))
    pairs = near_pairs(gallery, gallery, near_duplicate)
    near = Near(pairs.query.numpy(), pairs.reference.numpy(), pairs.distance.numpy())
    return join_near(groups, near, near_duplicate, np.unique(keys, return_inverse=True)[1], SMALL_GROUP)


def _softened(items: np.ndarray, side: int) -> np.ndarray:
    """Items with the detail of pictures of `side` pixels: what a sample cannot have must not count as a difference."""
    if side >= SIDE:
        return items
    return np.array([_soft(side, item) for item in items], np.uint8).reshape(items.shape)


def _soft(side: int, item: np.ndarray) -> np.ndarray:
    colours = Image.fromarray(item[..., :3]).resize((side, side), Image.Resampling.BOX)
    return np.dstack([np.asarray(colours.resize((SIDE, SIDE), Image.Resampling.BICUBIC)), item[..., 3]])


def item_of(softness: int, picture: np.ndarray) -> np.ndarray:
    """The item of a picture, with the detail of pictures of `softness` pixels."""
    item = letterboxed(SIDE, picture)
    return item if softness >= SIDE else _soft(softness, item)


def moderate(pictures: Pictures, row: int) -> np.ndarray:
    """A training picture, reduced if it is large. Raises DataError if its file has changed."""
    try:
        image = Image.fromarray(pictures.picture(row))
    except Refusal as refusal:
        raise DataError(f"{pictures.folder / pictures.names[row]} has changed: {refusal.detail}.") from refusal
    image.thumbnail((DISGUISED_SIDE, DISGUISED_SIDE), Image.Resampling.BOX)
    return np.asarray(image)
