"""The registered models: versions and their aliases, their files and cards, promotion and rollback.

The versions of a model are registered in MLflow as `contrapposto-<model>`. Its aliases are `challenger`, the last one trained;
`champion`, the one in use; and `previous`, the champion before it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_core import method_tables
from tasks import paths
from tasks.common import checkpoint
from tasks.common.errors import DataError, UserError
from tasks.config.params import Pictures, Poses
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
    "pictures.fid": "FID to held-out pictures (plain value, biased upwards at small sample sizes)",
    "pictures.fid_floor": "the same of the training pictures",
    "pictures.fid_corrected": "FID to held-out pictures, bias-corrected",
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

It knows only the people, clothes and places of its training pictures. It is meant for research and for making training data;
its pictures are not evidence of anything. The verdict of the memorization test holds for the tested samples, at the level that
the report states.
"""


def name(model: str) -> str:
    """The registered model's name."""
    return f"contrapposto-{model}"


def version(store: Store, model: str, alias: str) -> Any | None:
    """The MLflow ModelVersion with an alias, or None."""
    known = store.client.search_registered_models(f"name = '{name(model)}'")
    if not known or alias not in known[0].aliases:
        return None
    return store.client.get_model_version_by_alias(name(model), alias)


def fetch(store: Store, root: Path, model: str, alias: str) -> Path:
    """The folder with the files of the version with this alias, copied once to `.contrapposto/models/<sha256>`.

    Raises UserError if there is no such version, DataError if the file's sha256 is not the registered one.
    """
    registered = version(store, model, alias)
    if registered is None:
        raise UserError(f"There is no {alias} of the {model} model yet: run `make train-poses` first.")
    sha256: str = registered.tags["sha256"]
    folder = root / paths.REGISTERED_MODELS / sha256
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A folder of its own, since two processes may fetch at once.
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            downloaded = Path(store.client.download_artifacts(registered.run_id, "model", temporary))
            if hashlib.sha256((downloaded / paths.MODEL_FILE).read_bytes()).hexdigest() != sha256:
                raise DataError(f"The {alias} of the {model} model in MLflow is damaged: sha256 mismatch.")
            try:
                downloaded.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    return folder


def make_champions(store: Store, numbers: Mapping[str, str]) -> None:
    """Give these versions (model -> number) the alias `champion`, and the champions so far the alias `previous`.

    The models of a pipeline are promoted together, so a version that stays champion becomes `previous` as well. If all
    versions are champions already, nothing changes.
    """
    champions = {model: version(store, model, CHAMPION) for model in numbers}
    if all(now is not None and str(now.version) == numbers[model] for model, now in champions.items()):
        return
    for model, number in numbers.items():
        champion = champions[model]
        if champion is not None:
            store.client.set_registered_model_alias(name(model), PREVIOUS, champion.version)
        store.client.set_registered_model_alias(name(model), CHAMPION, number)


def rollback(store: Store) -> dict[str, tuple[str, str]]:
    """Exchange the champions and the previous champions; returns model -> (new champion, old champion).

    Raises UserError and changes nothing if there are no previous champions.
    """
    exchanged = {}
    for model in MODELS:
        before, now = version(store, model, PREVIOUS), version(store, model, CHAMPION)
        if before is None or now is None:
            raise UserError(f"The {model} model has no previous champion to go back to.")
        exchanged[model] = (str(before.version), str(now.version))
    make_champions(store, {model: number for model, (number, _) in exchanged.items()})
    return exchanged


def card_of(folder: Path, verdict: str, metrics: Mapping[str, float], reasons: Sequence[str]) -> str:
    """The card of the model in `folder` in Markdown: what it is, its training, its quality, and its limits.

    `metrics`: flat metrics of the stage `fidelity`; `reasons`: why it was not promoted, empty if it was.
    """
    _, meta = checkpoint.load(folder / paths.MODEL_FILE)
    model = meta["model"]
    config = Poses(**meta["config"]) if model == "poses" else Pictures(**meta["config"])
    facts = {
        **method_tables.of_training(config.training),
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
