"""The registered models: versions and their aliases, their files and cards, promotion and rollback.

The versions of a model are registered in MLflow as `contrapposto-<model>`. Its aliases are `challenger`, the last one trained;
`champion`, the one in use; and `previous`, the champion before it.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core import method_tables
from diffusion_core.distill_choices import Student
from tasks import paths
from tasks.common import checkpoint
from tasks.common.errors import DataError, UserError
from tasks.config.params import Params
from tasks.config.sampling import SNAPSHOT, SamplingChoices
from tasks.models import classifier as classifiers
from tasks.models import modality, model_file
from tasks.models.modality import Model
from tasks.models.sampler import Sampler
from tasks.paths import MODELS, MOTION, UPSCALER, VIDEO
from tasks.registry.tracking import Store
from tasks.text.encoder import embeddings

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"

# Models that are promoted and rolled back together.
PIPELINE = (*MODELS, UPSCALER)
ALONE = (MOTION, VIDEO)  # models that are promoted and rolled back by themselves

WHAT = {
    "poses": "draws human poses: 33 joints in space, hips at the origin, the torso one unit long, given a category",
    "pictures": "draws small pictures of people, given a category and a pose",
    UPSCALER: "doubles the size of pictures of people, given the smaller picture",
    VIDEO: "draws short clips of people in motion, given a category and the pose in each frame",
    "motion": "draws motion of people, 33 joints in space over time, given a category, a first pose or a path of the hips",
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
MOTION_DISTANCES = {
    "frechet_motion_distance": "Frechet distance of trajectories to held-out clips, bias-corrected",
    "frechet_motion_distance_floor": "the same of training clips",
    "foot_skating": "foot skating, torso lengths per second (median)",
    "foot_skating_heldout": "the same of held-out clips",
}
VIDEO_FIGURES = {
    "samples.joint_error": "distance of joints that MediaPipe reads in clips from those asked for, torso lengths",
    "heldout.joint_error": "the same of held-out clips",
    "samples.flicker": "flicker of clips",
    "heldout.flicker": "the same of held-out clips",
}
DISTANCES_OF = {
    "poses": DISTANCES,
    "pictures": PICTURE_DISTANCES,
    UPSCALER: PICTURE_DISTANCES,
    "motion": MOTION_DISTANCES,
    VIDEO: VIDEO_FIGURES,
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
        flow = f"train-{model}" if model in ALONE else "train-poses"
        advice = "no champion has been replaced" if alias == "previous" else f"run `make {flow}` first"
        raise UserError(f"There is no {alias} of the {model} model yet: {advice}.")
    return _fetched(store, root, model, registered, f"{alias} of the {model} model")


def _fetched(store: Store, root: Path, model: str, registered: Any, what: str) -> Path:
    sha256: str = registered.tags["sha256"]
    folder = root / paths.REGISTERED_MODELS / sha256
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A folder of its own, since two processes may fetch at once.
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            downloaded = Path(store.client.download_artifacts(registered.run_id, "model", temporary))
            if hashlib.sha256((downloaded / paths.MODEL_FILE).read_bytes()).hexdigest() != sha256:
                raise DataError(f"The {what} in MLflow is damaged: sha256 mismatch.")
            try:
                downloaded.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    return folder


def fetch_all(store: Store, root: Path, alias: str) -> dict[str, Path]:
    """The folders of the models of poses and pictures with this alias, and of the upscaler if it has the alias.

    Raises as `fetch` does.
    """
    named = {model: fetch(store, root, model, alias) for model in MODELS}
    if version(store, UPSCALER, alias) is not None:
        named[UPSCALER] = fetch(store, root, UPSCALER, alias)
    return named


def fetch_served(store: Store, root: Path, alias: str) -> dict[str, Path]:
    """The folders of everything that can be served with this alias: poses and pictures, motion, and clips of pictures.

    Raises as `fetch` does.
    """
    alone = [model for model in ALONE if version(store, model, alias) is not None]
    still = any(version(store, model, alias) is not None for model in MODELS)
    named = fetch_all(store, root, alias) if still or not alone else {}
    return named | {model: fetch(store, root, model, alias) for model in alone}


def find(params: Params, root: Path, model: str, sha256: str) -> Path:
    """The folder of the model with this digest: in `artifacts/`, in the cache of registered models, or fetched from MLflow.

    Raises DataError if there is none.
    """
    cached = root / paths.REGISTERED_MODELS / sha256
    if (cached / paths.MODEL_FILE).is_file():
        return cached
    own = paths.model_folder(root, model)
    if (own / paths.MODEL_FILE).is_file() and paths.model_sha256(root, model) == sha256:
        return own
    store = Store(params.tracking, root)
    for registered in store.client.search_model_versions(f"name = '{name(model)}'"):
        if registered.tags.get("sha256") == sha256:
            return _fetched(store, root, model, registered, f"{model} model {sha256[:12]}")
    raise DataError(f"There is no {model} model {sha256}, neither in {own} nor in MLflow.")


def sampler(params: Params, root: Path, folder: Path, how: SamplingChoices, model: Model | None = None) -> Sampler:
    """The model in a folder (`model` if it is loaded already) with a way to sample it, and the other models that this needs.

    A snapshot that guides the model is one of the model's own. Raises DataError if a file is missing or damaged, UserError if
    the models do not fit.
    """
    model = model or model_file.load(folder, modality.device())
    weak = source = None
    reference = how.guidance_options.weak_model
    if reference is not None and re.fullmatch(SNAPSHOT, reference):
        path = folder / "snapshots" / f"{reference}.safetensors"
        weak = model_file.with_weights(model, checkpoint.load(path)[0], modality.device())
    elif reference is not None:
        weak = model_file.load(find(params, root, model.name, reference), modality.device())
    if how.start is not None and how.start.model is not None:
        source = model_file.load(find(params, root, model.name, how.start.model), modality.device())
    classifier = None
    if (wanted := how.guidance_options.classifier) is not None:
        own = paths.classifier_folder(root, model.name)
        if not (own / paths.MODEL_FILE).is_file() or paths.sha256(own) != wanted:
            raise DataError(f"There is no classifier {wanted} in {own}.")
        classifier = classifiers.load(own, model)
    return Sampler(model, how, weak, source, classifier, unwanted_text(root, model, how))


def unwanted_text(root: Path, model: Model, how: SamplingChoices) -> np.ndarray | None:
    """The embedding of the negative prompt, `[1, length, width]`; None without one."""
    prompt = how.guidance_options.negative_prompt
    if prompt is None or model.text is None:
        return None
    return embeddings(root, model.text.encoder, [prompt])


def make_champions(store: Store, numbers: Mapping[str, str], together: Sequence[str] = PIPELINE) -> None:
    """Give these versions (model -> number) the alias `champion`, and the champions so far the alias `previous`.

    The models of `together` are promoted together, so a version that stays champion becomes `previous` as well. One of them
    that has no number loses the alias: an upscaler belongs to certain pictures. Other models keep their aliases. If all
    versions are champions already, nothing changes.
    """
    champions = {model: version(store, model, CHAMPION) for model in together}
    if {model: str(now.version) for model, now in champions.items() if now is not None} == dict(numbers):
        return
    for model, champion in champions.items():
        _set_alias(store, model, PREVIOUS, None if champion is None else str(champion.version))
        _set_alias(store, model, CHAMPION, numbers.get(model))


def without_challenger(store: Store, model: str) -> None:
    """Take the alias `challenger` from a model that the last training did not make."""
    _set_alias(store, model, CHALLENGER, None)


def _set_alias(store: Store, model: str, alias: str, number: str | None) -> None:
    """Give a version the alias; with None, take it from the version that has it."""
    if number is not None:
        store.client.set_registered_model_alias(name(model), alias, number)
    elif version(store, model, alias) is not None:
        store.client.delete_registered_model_alias(name(model), alias)


def rollback(store: Store, together: Sequence[str] = PIPELINE) -> dict[str, tuple[str, str]]:
    """Exchange the champions and the previous champions of `together`; returns model -> (new champion, old champion).

    Raises UserError and changes nothing if there are no previous champions.
    """
    exchanged = {}
    for model in together:
        before, now = version(store, model, PREVIOUS), version(store, model, CHAMPION)
        if model != UPSCALER and (before is None or now is None):
            raise UserError(f"The {model} model has no previous champion to go back to.")
        if before is not None or now is not None:
            exchanged[model] = (
                "none" if before is None else str(before.version),
                "none" if now is None else str(now.version),
            )
    make_champions(store, {model: number for model, (number, _) in exchanged.items() if number != "none"}, together)
    return exchanged


def _student_in_words(meta: Mapping[str, Any]) -> str:
    """How a model was distilled; nothing if it was not."""
    if modality.STUDENT not in meta:
        return ""
    student = Student(**meta[modality.STUDENT])
    method = method_tables.described("distill", student.method)
    return f"{method}: {student.steps} steps instead of {student.total}"


def card_of(
    folder: Path,
    verdict: str,
    metrics: Mapping[str, float],
    reasons: Sequence[str],
    how: SamplingChoices | None = None,
    warnings: Sequence[str] = (),
) -> str:
    """The card of the model in `folder` in Markdown: what it is, its training, its quality, and its limits.

    `metrics`: flat metrics of the stage `fidelity`; `reasons`: why it was not promoted, empty if it was;
    `how`: how the samples that were judged were drawn; `warnings`: what to know of the memorization test.
    """
    _, meta = checkpoint.load(folder / paths.MODEL_FILE)
    model = meta["model"]
    config = modality.KINDS[model](**meta["config"])
    facts = {
        **method_tables.of_training(config.training),
        **({} if how is None else how.words),
        "distilled": _student_in_words(meta),
        "weights": f"{paths.MODEL_FILE}, sha256 {hashlib.sha256((folder / paths.MODEL_FILE).read_bytes()).hexdigest()}",
        "trained on": f"{meta['images']} images seen" if "images" in meta else "",
        "memorization test": " ".join([verdict, *(warning for warning in warnings if f" {model} model" in warning)]),
        "promoted": "yes" if not reasons else "no. " + " ".join(reasons),
    }
    for name, what in DISTANCES_OF[model].items():
        if name in metrics:
            low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
            interval = f" ({low:.4g} to {high:.4g})" if low is not None and high is not None else ""
            facts[what] = f"{metrics[name]:.4g}{interval}"
    facts |= {f"`{key}`": str(value) for key, value in sorted(meta["config"].items())}
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value)
    return CARD.format(model=model, what=WHAT[model], categories=", ".join(meta["categories"]) or "none", rows=rows)
