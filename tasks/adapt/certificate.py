"""The certificate of an adapter: are the pictures that it draws for its captions copies of what it was trained on?

    certificate.json    verdict, sentence, share_bound (of copies, with 95% confidence), power, copies, nearest pairs
    certificate.html    the same with the pictures

It is `contrapposto certify` (tasks/certify) for the squares that the training saw. Pictures that were held out are the
held-out side.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tasks import paths
from tasks.adapt import pictures
from tasks.adapt.pictures import Captioned, Splits
from tasks.certify import certify as copy_test
from tasks.certify.folder import MIN_SIDE
from tasks.common import files
from tasks.common.images import encode_png
from tasks.common.subset import evenly_spaced
from tasks.config.adapt import Certificate
from tasks.config.sampling import SamplingChoices
from tasks.foreign import draw
from tasks.foreign.model import ForeignModel

SAMPLER = "dpmpp_2m"
SIDES = ("train", "heldout")


class Outcome(NamedTuple):
    """What the certificate says."""

    verdict: str
    sentence: str


def certify(
    root: Path, name: str, sides: Sequence[Captioned], identity: Any, draw_into: Callable[[Path], object], folder: Path
) -> Outcome:
    """Compare pictures that an adapted model draws with those of its training, and write the certificate into `folder`.

    `sides`: the pictures of the training and, if there are any, those that were held out. `draw_into` draws into the folder
    that it is given, or goes on there; `identity` is JSON that names what it draws. Too few pictures are a verdict.
    """
    named = json.dumps([identity, *(side.digest for side in sides)])
    state = root / paths.CERTIFICATES / name / hashlib.sha256(named.encode()).hexdigest()[:32]
    for other in state.parent.glob("*/"):
        if other != state:
            shutil.rmtree(other)
    for label, side in zip(SIDES, sides, strict=False):
        if not (state / label).is_dir():
            write(state / label, side)
    draw_into(state / "samples")
    heldout = state / SIDES[1] if len(sides) > 1 else None
    result = copy_test(state / SIDES[0], state / "samples", heldout, folder)
    return Outcome(result.verdict.value, result.sentence)


def of_published(
    root: Path, name: str, config: Certificate, model: ForeignModel, splits: Splits, size: int, seed: int, folder: Path,
    poses: Tensor | None = None,
) -> Outcome:  # fmt: skip
    """The certificate of an adapted published model; `folder` holds the adapter. `poses`: see `draw.Request`.

    Raises UserError if the folder of held-out pictures is missing.
    """
    how = SamplingChoices(sampler=SAMPLER, steps=config.steps, guidance=config.guidance)
    # With a pose, each picture has the caption of its own; without, no caption is drawn more often than another.
    captions = splits.train.captions if poses is not None else sorted(set(splits.train.captions))
    prompts = [captions[i] for i in evenly_spaced(len(captions), config.samples)]
    request = draw.Request(prompts, config.samples, how, size=size, seed=seed, poses=poses)
    about = {"adapter": paths.sha256(folder)}
    identity = [about, prompts, how.sampling_json, size, seed, str(model.dtype)]
    sides = [splits.train, *_heldout(root, config, splits, size)]
    return certify(root, name, sides, identity, lambda place: draw.into(model, request, place, about), folder)


def _heldout(root: Path, config: Certificate, splits: Splits, size: int) -> list[Captioned]:
    """The held-out side, if there is any: pictures of `val`, and those in the folder that the section names."""
    if config.heldout is None:
        return [splits.val] if len(splits.val) else []
    more = pictures.from_folder(root / config.heldout, "", size)
    names = [*splits.val.names, *(f"{Path(config.heldout).name}/{name}" for name in more.names)]
    together = np.concatenate([splits.val.pictures, more.pictures])
    return [Captioned(names, [*splits.val.keys, *more.keys], [*splits.val.captions, *more.captions], together)]


def write(folder: Path, side: Captioned) -> None:
    """The pictures as PNG, named as their files are."""
    with files.new_folder(folder) as temporary:
        for name, picture in zip(side.names, side.pictures, strict=True):
            path = temporary / (name if name.endswith(".png") else f"{name}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(picture))


def png(picture: np.ndarray) -> bytes:
    """A picture uint8 `[s, s, 3]` as PNG bytes, its pixels repeated where the copy test would find it too small to be read."""
    times = -(-MIN_SIDE // len(picture))
    return encode_png(picture.repeat(times, 0).repeat(times, 1))
