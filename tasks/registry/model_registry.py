"""The registered models: which version has which alias, its files, its card, and the way back.

A model's versions live in MLflow as `contrapposto-<model>`. `challenger` is the last one trained, `champion` the one that
is used, `previous` the champion before it. `python -m tasks rollback` makes the previous champions the champions again.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks import paths
from tasks.common import checkpoint
from tasks.common.errors import DataError, UserError
from tasks.paths import MODELS
from tasks.registry.tracking import Store

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"

WHAT = {
    "poses": "draws human poses: 33 joints in space, hips at the origin, the torso one unit long, given a category",
    "pictures": "draws small pictures of people, given a category and a pose",
}
DISTANCES = {
    "poses.frechet_pose_distance_corrected": "Frechet pose distance to held-out people, bias-corrected",
    "poses.frechet_pose_distance_floor_corrected": "the same of the training data",
    "poses.kernel_pose_distance": "kernel pose distance to held-out people",
}
PICTURE_DISTANCES = {
    "pictures.fid": "FID to held-out pictures, bias-corrected",
    "pictures.kid": "KID to held-out pictures",
    "pictures.pixel_kernel_distance": "kernel distance of the pixels to held-out pictures",
}
CARD = """# Contrapposto, {model}

A diffusion model that {what}.

Categories: {categories}.

| | |
|---|---|
{rows}

## Limits

It knows the people, clothes and places of its training pictures and no others. It is meant for research and for making
training data; what it draws is no evidence of anything. The verdict of the memorization test holds for the samples that were
tested, at the level that the report states.
"""


def name(model: str) -> str:
    """The registered model's name."""
    return f"contrapposto-{model}"


def version(store: Store, model: str, alias: str) -> Any | None:
    """The version with an alias, an MLflow ModelVersion; None if there is none."""
    known = store.client.search_registered_models(f"name = '{name(model)}'")
    if not known or alias not in known[0].aliases:
        return None
    return store.client.get_model_version_by_alias(name(model), alias)


def fetch(store: Store, root: Path, model: str, alias: str) -> Path:
    """The folder with the files of the version with this alias, copied to `.contrapposto/models/<sha256>` once.

    Raises UserError if there is no such version, DataError if the file is not the one that was registered.
    """
    found = version(store, model, alias)
    if found is None:
        raise UserError(f"There is no {alias} of the {model} model yet: run `make train-poses` first.")
    sha256: str = found.tags["sha256"]
    folder = root / paths.REGISTERED_MODELS / sha256
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:  # its own: two processes may fetch at once
            kept = Path(store.client.download_artifacts(found.run_id, "model", temporary))
            if hashlib.sha256((kept / paths.MODEL_FILE).read_bytes()).hexdigest() != sha256:
                raise DataError(f"The {model} model that MLflow keeps as {alias} is damaged: its sha256 is another.")
            try:
                kept.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    return folder


def crown(store: Store, numbers: Mapping[str, str]) -> None:
    """Make these versions (model -> number) the champions, and those that were the champions the previous ones.

    The models of a pipeline are one team: where one of them stays, it is champion and previous. Crowning the champions
    again changes nothing.
    """
    old = {model: version(store, model, CHAMPION) for model in numbers}
    if all(now is not None and str(now.version) == numbers[model] for model, now in old.items()):
        return
    for model, number in numbers.items():
        before = old[model]
        if before is not None:
            store.client.set_registered_model_alias(name(model), PREVIOUS, before.version)
        store.client.set_registered_model_alias(name(model), CHAMPION, number)


def rollback(store: Store) -> dict[str, tuple[str, str]]:
    """Exchange the champions and the previous ones; returns model -> (version now, version before).

    Raises UserError, and changes nothing, if there are no previous champions.
    """
    exchanged = {}
    for model in MODELS:
        before, now = version(store, model, PREVIOUS), version(store, model, CHAMPION)
        if before is None or now is None:
            raise UserError(f"The {model} model has no previous champion to go back to.")
        exchanged[model] = (str(before.version), str(now.version))
    crown(store, {model: number for model, (number, _) in exchanged.items()})
    return exchanged


def card_of(folder: Path, verdict: str, metrics: Mapping[str, float], reasons: Sequence[str]) -> str:
    """The card of the model in `folder`, in Markdown: what it is, from what, how good, and its limits.

    `metrics`: flat metrics of the stage `fidelity`; `reasons`: why it was not promoted, empty if it was.
    """
    _, meta = checkpoint.load(folder / paths.MODEL_FILE)
    model = meta["model"]
    facts = {
        "weights": f"{paths.MODEL_FILE}, sha256 {hashlib.sha256((folder / paths.MODEL_FILE).read_bytes()).hexdigest()}",
        "trained on": f"{meta['images']} images seen" if "images" in meta else "",
        "memorization test": verdict,
        "promoted": "yes" if not reasons else "no. " + " ".join(reasons),
    }
    for name, what in (DISTANCES if model == "poses" else PICTURE_DISTANCES).items():
        if name in metrics:
            low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
            interval = f" ({low:.4g} to {high:.4g})" if low is not None and high is not None else ""
            facts[what] = f"{metrics[name]:.4g}{interval}"
    facts |= {f"`{key}`": str(value) for key, value in sorted(meta["config"].items())}
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value)
    return CARD.format(model=model, what=WHAT[model], categories=", ".join(meta["categories"]), rows=rows)
