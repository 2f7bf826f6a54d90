"""Export and serving: what is asked for is what comes back, without a pickle, over HTTP."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors import safe_open

from tasks import paths
from tasks.common import checkpoint
from tasks.common.errors import UserError
from tasks.config.classifier import Classifier
from tasks.config.params import Upscaling, load
from tasks.config.sampling import Guidance, SamplingChoices
from tasks.models import classifier as classifiers
from tasks.models import modality, model_file
from tasks.models.sampler import Sampler
from tasks.registry import model_registry
from tasks.registry.tracking import Store
from tasks.sample import export
from tasks.sample.requests import Artist, Request
from tasks.sample.served_requests import REQUESTS, Body, Studio
from tests.support.serving import post, served
from tests.support.workspaces import TINY_UPSCALER, write_params, write_shards, write_untrained, write_upscaler


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with champions, exported."""
    root = tmp_path_factory.mktemp("exported")
    params = load(write_params(root))
    write_shards(root)
    store = Store(params.tracking, root)
    with pytest.raises(UserError, match="no champion of the poses model yet"):
        export.run(params, root)
    numbers = {}
    for model in paths.MODELS:
        write_untrained(root, params, model)
        folder = paths.model_folder(root, model)
        numbers[model] = store.register(model, folder, paths.model_sha256(root, model), f"# a card of {model}")
    model_registry.make_champions(store, numbers)
    write_classifier(root, "pictures")
    export.run(params, root)
    return root


def write_classifier(root: Path, model: str) -> str:
    """Write a classifier with random weights, and return its sha256."""
    config = Classifier(width=16, depth=1, heads=2)
    guided = model_file.load(paths.model_folder(root, model), torch.device("cpu"))
    folder = paths.classifier_folder(root, model)
    folder.mkdir(parents=True, exist_ok=True)
    classifier, generator = classifiers.build(config, guided), torch.Generator().manual_seed(0)
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)  # a new network has no gradient
    classifiers.save(folder, classifier, config, guided, {})
    return paths.sha256(folder)


@pytest.fixture(scope="module")
def artist(exported: Path) -> Artist:
    return Artist(*(paths.model_folder(exported, model) for model in paths.MODELS))


def test_no_pickle_and_the_layout_of_a_model_repository(exported: Path) -> None:
    files = [path for path in (exported / "exports").rglob("*") if path.is_file()]
    allowed = {".py", ".safetensors", ".json", ".md", ".yaml", ".txt", ".html", ".css", ""}
    assert {path.suffix for path in files} <= allowed
    assert [path.name for path in files if path.suffix == ""] == ["MLmodel"]
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                pass
        else:
            path.read_text(encoding="utf-8")  # a pickle's first byte is none of UTF-8's
    folder = exported / "exports/champion/huggingface/poses"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert "# a card of poses" in (folder / "README.md").read_text()
    assert json.loads((folder / "config.json").read_text())["categories"] == ["calm", "wild"]
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert any(key.startswith("weights.") for key in weights.keys())
    assert model_file.load(folder, torch.device("cpu")).categories == ["calm", "wild"]


@pytest.mark.parametrize("model", paths.MODELS)
def test_the_code_on_an_exported_card_runs(model: str, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exported / "exports/champion/huggingface" / model
    _, code, _ = (folder / "README.md").read_text().split("```")
    names: dict[str, Any] = {}
    monkeypatch.chdir(folder)
    exec(code.removeprefix("python"), names)
    assert names["samples"].shape == ((4, 33, 3) if model == "poses" else (4, 3, 16, 16))


def test_a_sample_is_a_function_of_request_and_number(artist: Artist) -> None:
    request = Request(category="calm", steps=4, seed=5)
    several = artist.samples(request, torch.arange(3))
    alone = artist.samples(request, torch.tensor([2]))
    np.testing.assert_allclose(several.poses[2], alone.poses[0], atol=1e-5)
    assert np.abs(several.poses[0] - several.poses[1]).max() > 0.01
    other = artist.samples(request.model_copy(update={"seed": 6}), torch.tensor([2]))
    assert np.abs(other.poses - alone.poses).max() > 0.01


def test_given_joints_are_exact_and_a_complete_pose_is_used_unchanged(artist: Artist) -> None:
    part = {"left_wrist": [0.5, -1.0, 0.0], "nose": [0.0, -1.5, -0.1]}
    samples = artist.samples(Request(pose=part, steps=4), torch.arange(2))
    np.testing.assert_allclose(samples.poses[:, 15], np.tile([0.5, -1.0, 0.0], (2, 1)), atol=1e-6)
    assert np.abs(samples.poses[0, 16] - samples.poses[1, 16]).max() > 1e-3  # the rest is drawn
    from tasks.common.skeleton import LANDMARKS

    whole = {name: [i / 10, 1.0, 0.0] for i, name in enumerate(LANDMARKS)}
    samples = artist.samples(Request(pose=whole, steps=4), torch.arange(2))
    np.testing.assert_allclose(samples.poses[1, :, 0], np.arange(33) / 10, rtol=1e-6)


def test_pictures_are_enlarged_with_one_model_in_memory_at_a_time(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load(write_params(tmp_path, shard__size=32, upscaler=TINY_UPSCALER))
    write_upscaler(tmp_path, params)
    folders = [
        *(paths.model_folder(exported, model) for model in paths.MODELS),
        paths.model_folder(tmp_path, "upscaler"),
    ]
    artist = Artist(*folders[:2], upscaler=folders[2], enlarging=Upscaling(steps=2))
    assert (artist.size, artist.categories) == (32, ["calm", "wild"])
    loaded: list[int] = []
    load_model = model_file.load

    def counting(folder: Path, device: torch.device) -> modality.Model:
        loaded.append(len(artist._loaded))
        return load_model(folder, device)

    monkeypatch.setattr(model_file, "load", counting)
    samples = artist.samples(Request(category="calm", steps=2, seed=5), torch.arange(2))
    assert samples.pictures.shape == (2, 32, 32, 3)
    assert loaded == [0, 0, 0]


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"count": 0}, "greater than or equal to 1"),
        ({"pose": {"tail": [0.0, 0.0, 0.0]}}, "no joint 'tail'"),
        ({"pose": {"nose": [0.0, 0.0]}}, "three finite numbers"),
        ({"sampler": "eular"}, "there is no sampler 'eular'"),
        ({"options": {"unipc": {"eta": 0.5}}}, "method unipc has no parameter eta; it has order"),
        ({"sampler": "ode", "timesteps": "karras"}, "timesteps must be null for sampler ode"),
        ({"guidance": {"scale": 2.0, "strength": 1.0}}, "Extra inputs"),
        ({"guidance": -1.0}, "greater than or equal to 0"),
        ({"solver": "heun"}, "Extra inputs"),
    ],
)
def test_invalid_requests_are_refused(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Request.model_validate(wrong)


def test_a_request_says_how_to_sample(artist: Artist) -> None:
    """Sampler and timesteps are those of both models, guidance is that of the pictures."""
    ids = torch.arange(1)
    plain = artist.samples(Request(category="calm", steps=4), ids)
    body = {
        "category": "calm", "steps": 4, "sampler": "ddim", "timesteps": "quadratic",
        "options": {"ddim": {"eta": 0.5}, "quadratic": {"power": 3}},
        "guidance": {"scale": 3, "interval": [0.1, 5.0], "schedule": "ramp"},
    }  # fmt: skip
    other = artist.samples(Request.model_validate(body), ids)
    assert np.isfinite(other.poses).all() and np.abs(other.poses - plain.poses).max() > 1e-3
    guided = artist.samples(Request.model_validate({**body, "guidance": 1.0}), ids)
    assert np.array_equal(guided.poses, other.poses)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"sampler": "cold"}, "sampler cold needs a recipe that adds no noise"),
        ({"guidance": {"scale": 2.0, "without": ["pose_map"]}}, "pictures.condition_dropout_each above 0"),
        ({"guidance": {"scale": 2.0, "weak_model": "0" * 64}}, "weak_model names a model that is not at hand"),
        ({"sampler": "analytic_dpm"}, "has no measured errors"),
    ],
)
def test_what_the_models_cannot_do_is_refused(how: dict[str, Any], words: str, artist: Artist) -> None:
    with pytest.raises((ValueError, UserError), match=words):
        artist.samples(Request.model_validate({"steps": 2, **how}), torch.arange(1))


def test_a_classifier_is_exported_with_its_model_and_guides_what_is_served(exported: Path) -> None:
    sha256 = paths.sha256(paths.classifier_folder(exported, "pictures"))
    folder = exported / "exports/champion"
    assert paths.sha256(folder / "huggingface/pictures_classifier") == sha256
    assert not (folder / "huggingface/poses_classifier").exists()
    described = YAML(typ="safe").load(folder / "mlflow/MLmodel")["flavors"]["python_function"]["artifacts"]
    studio = Studio({name: folder / "mlflow" / artifact["path"] for name, artifact in described.items()})

    def png(guidance: Any) -> str:
        return str(studio.answer(Body(category="wild", steps=3, guidance=guidance))[0]["png"])

    assert png({"scale": 1.0, "classifier": sha256}) == png(1.0)
    assert png({"scale": 50.0, "classifier": sha256}) != png(1.0)
    with pytest.raises(UserError, match=f"the classifier of these models is {sha256}"):
        png({"scale": 2.0, "classifier": "0" * 64})


def test_generate_guides_by_the_classifier_of_the_workspace(exported: Path, artist: Artist) -> None:
    params = load(exported / paths.PARAMS)
    folders = {model: paths.model_folder(exported, model) for model in paths.MODELS}

    def prepare(model: modality.Model, how: SamplingChoices) -> Sampler:
        return model_registry.sampler(params, exported, folders[model.name], how, model)

    generating = Artist(folders["poses"], folders["pictures"], prepare)
    sha256 = paths.sha256(paths.classifier_folder(exported, "pictures"))
    request = Request(category="wild", steps=3, guidance=Guidance(scale=50.0, classifier=sha256))
    guided = generating.samples(request, torch.arange(1))
    plain = generating.samples(request.model_copy(update={"guidance": 1.0}), torch.arange(1))
    assert not np.array_equal(guided.pictures, plain.pictures) and np.array_equal(guided.poses, plain.poses)
    with pytest.raises(UserError, match="no classifier was exported"):
        artist.samples(request, torch.arange(1))


def test_a_classifier_of_other_categories_is_not_exported(
    exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = paths.model_folder(exported, "pictures")
    own = paths.classifier_folder(exported, "pictures")
    assert export.fitting_classifiers(exported, {"pictures": source}) == {"pictures_classifier": own}
    tensors, about = checkpoint.load(own / paths.MODEL_FILE)
    other = paths.classifier_folder(tmp_path, "pictures")
    checkpoint.save(other / paths.MODEL_FILE, tensors, {**about, "categories": ["loud", "quiet"]})
    assert export.fitting_classifiers(tmp_path, {"pictures": source}) == {}
    assert "is not exported" in caplog.text


def test_what_mlflow_reads_has_the_keys_of_a_request() -> None:
    assert set(Body.model_fields) == {"kind", *(key for kind in REQUESTS.values() for key in kind.model_fields)}
    body = Body(sampler="ddim", guidance={"scale": 3, "interval": [0.1, 2]}, options={"ddim": {"eta": 1}}, steps=4)
    assert body.request() == Request(
        sampler="ddim", guidance=Guidance(scale=3.0, interval=[0.1, 2.0]), options={"ddim": {"eta": 1.0}}, steps=4
    )
    with pytest.raises(ValueError, match="request: method unipc has no parameter eta") as caught:
        Body(options={"unipc": {"eta": 0.5}}).request()
    assert "\n" not in str(caught.value)


def test_the_signature_of_the_served_model_has_its_keys(exported: Path) -> None:
    described = (exported / "exports/champion/mlflow/MLmodel").read_text()
    assert all(f'\\"{key}\\"' in described or f'"{key}"' in described for key in Body.model_fields)


def test_an_unknown_category_names_the_known_ones(artist: Artist) -> None:
    with pytest.raises(ValueError, match="no category 'loud'; there are calm, wild"):
        artist.answer(Request(category="loud"))


@pytest.mark.slow
def test_mlflow_serves_it_over_http(exported: Path, tmp_path: Path) -> None:
    with served(exported / "exports/champion/mlflow", tmp_path) as address:
        code, told = post(address, {"inputs": [{"category": "calm", "count": 2, "steps": 4, "seed": 3}]})
        assert code == 200, told
        (samples,) = told["predictions"]
        assert len(samples) == 2 and np.shape(samples[0]["landmarks"]) == (33, 3)
        with Image.open(io.BytesIO(base64.b64decode(samples[0]["png"]))) as picture:
            assert picture.format == "PNG" and picture.size == (16, 16)
        again = post(address, {"inputs": [{"category": "calm", "count": 2, "steps": 4, "seed": 3}]})[1]
        assert again == told
        how = {"sampler": "ddim", "timesteps": "karras", "options": {"ddim": {"eta": 1}, "karras": {"rho": 5}}}
        how["guidance"] = {"scale": 2, "interval": [0.1, 5.0]}
        code, other = post(address, {"inputs": [{"category": "calm", "count": 2, "steps": 4, "seed": 3, **how}]})
        assert code == 200 and other["predictions"][0][0]["landmarks"] != samples[0]["landmarks"]
        code, told = post(address, {"inputs": [{"sampler": "unipc", "options": {"unipc": {"eta": 0.5}}}]})
        assert code == 400 and "no parameter eta" in json.dumps(told)
        code, told = post(address, {"inputs": [{"category": "loud"}]})
        assert code == 400 and "there are calm, wild" in told["message"] and "stack_trace" not in told
