"""Students: distilled by every method through the stages, resumed exactly after a kill, sampled, judged and on their card."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_core.distill_choices import DISTILLATIONS, Distillation, Student
from diffusion_core.training_choices import Training
from tasks import paths
from tasks.common import files
from tasks.common.errors import UserError
from tasks.config.params import load
from tasks.config.sampling import SamplingChoices
from tasks.dataset.shards import ShardDataset
from tasks.models import model_file, sampler
from tasks.registry import model_registry, promote
from tasks.registry.tracking import Store
from tasks.sample import export
from tasks.sample import stage as sample
from tasks.train import distill, run_fingerprint
from tasks.train import stage as train
from tasks.train.loop import TrainingLoop
from tests.support.serving import post, served
from tests.support.workspaces import write_params, write_shards, write_untrained

SHORT = {"images": 64, "warmup_images": 0, "cooldown_images": 0, "checkpoint_images": 32}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a trained teacher."""
    root = tmp_path_factory.mktemp("trained")
    write_shards(root)
    write_params(root, **{f"poses__{key}": value for key, value in SHORT.items()})
    train.run(load(root / "params.yaml"), root, "poses")
    return root


def _workspace(root: Path, trained: Path, method: str, **changes: Any) -> Path:
    shutil.copytree(trained / "artifacts", root / "artifacts")
    (root / "data").symlink_to(trained / "data")
    section = {"method": method, "steps": 2, "times": 4, **SHORT}
    student = {"sample__poses__model": "poses_student", "sample__poses__sampler": DISTILLATIONS[method].sampler}
    store = f"sqlite:///{trained}/mlflow.db"
    write_params(root, **{
        **{f"poses__{key}": value for key, value in SHORT.items()},
        "distill": {"poses": section}, **student, "sample__poses__steps": 2, "sample__poses__count": 4,
        "tracking__store": store, **changes,
    })  # fmt: skip
    return root


@pytest.mark.parametrize("method", DISTILLATIONS)
def test_a_student_is_a_model(method: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _workspace(tmp_path, trained, method)
    params = load(root / "params.yaml")
    left_out: set[tuple[str, ...]] = set()

    def digest(code: tuple[str, ...], without: tuple[str, ...]) -> str:
        left_out.add(without)
        return "digest"

    monkeypatch.setattr(run_fingerprint, "code_digest", digest)
    distill.run(params, root, "poses")
    assert left_out == {()}  # a student learns from the steps of a sampler, whose code counts
    sample.run(params, root, "poses")
    assert np.isfinite(ShardDataset(root / "samples/poses", "samples").poses()).all()
    student = model_file.load(root / "artifacts/poses_student", torch.device("cpu"))
    teacher = model_file.load(root / "artifacts/poses", torch.device("cpu"))
    assert student.student == Student(method, 8, 4) and teacher.student is None
    assert any(
        not torch.equal(a, b) for a, b in zip(student.denoiser.parameters(), teacher.denoiser.parameters(), strict=True)
    )
    with pytest.raises(UserError, match="student"):
        sampler.draw(student, student.conditions([None]), SamplingChoices(steps=8), 0, torch.arange(1))
    how = student.fitting(SamplingChoices(steps=8))
    assert (how.sampler, how.steps) == (DISTILLATIONS[method].sampler, 2)
    card = model_registry.card_of(root / "artifacts/poses_student", "CLEAN", {}, [])
    assert f"({method}, " in card and "2 steps instead of 8" in card
    runs = Store(params.tracking, root).trainings()
    assert runs[0].data.tags["contrapposto.model"] == "poses_student"


@pytest.mark.slow
def test_a_student_is_promoted_and_served(trained: Path, tmp_path: Path) -> None:
    """As its users do it: distilled, sampled, judged, champion, exported, and asked over HTTP."""
    root = _workspace(tmp_path, trained, "direct")
    params = load(root / paths.PARAMS)
    write_untrained(root, params, "pictures")
    distill.run(params, root, "poses")
    for model in paths.MODELS:
        sample.run(params, root, model)
    verdicts = dict.fromkeys(paths.MODELS, "CLEAN")
    files.write_json(root / paths.MEMORIZATION / "memorization.json", {"verdicts": verdicts})
    files.write_json(root / paths.FIDELITY / "fidelity.json", {"metrics": {promote.DISTANCE: 0.3}})
    promote.run(params, root)
    assert files.read_json(root / paths.PROMOTE / "promote.json")["promote"]
    store = Store(params.tracking, root)
    champion = model_registry.fetch(store, root, "poses", "champion")
    student = model_file.load(champion, torch.device("cpu"))
    assert student.student == Student("direct", 8, 4)

    export.run(params, root)
    request = {
        "category": "calm",
        "count": 2,
        "seed": 3,
    }  # with the default sampler, which is that of the pictures alone
    with served(root / "exports/champion/mlflow", tmp_path) as address:
        code, told = post(address, {"inputs": [request]})
        assert code == 200, told
        (answer,) = told["predictions"]
        given = {"left_wrist": [0.5, -1.0, 0.0]}
        code, partly = post(address, {"inputs": [request | {"pose": given}]})
        assert code == 200, partly
    cond = student.conditions(["calm"] * 2)
    here = sampler.draw(student, cond, student.fitting(SamplingChoices()), 3, torch.arange(2)).numpy()
    np.testing.assert_allclose([one["landmarks"] for one in answer], here, atol=1e-5)
    assert partly["predictions"][0][0]["landmarks"][15] == pytest.approx(given["left_wrist"])


class _Killed(BaseException):
    """Stands for a kill: nothing is written after it."""


@pytest.mark.parametrize("method", ["consistency", pytest.param("progressive", marks=pytest.mark.slow)])
def test_a_killed_distillation_resumes_to_the_same_bits(
    method: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the first round and in the last, after a checkpoint."""
    whole, killed = (_workspace(tmp_path / name, trained, method) for name in ("whole", "killed"))
    distill.run(load(whole / "params.yaml"), whole, "poses")
    saved, after = TrainingLoop._save, {1, 3}
    count = 0

    def save_and_die(loop: TrainingLoop) -> None:
        nonlocal count
        saved(loop)
        count += 1
        if count in after:
            raise _Killed

    monkeypatch.setattr(TrainingLoop, "_save", save_and_die)
    for _ in range(2 if method == "progressive" else 1):
        with pytest.raises(_Killed):
            distill.run(load(killed / "params.yaml"), killed, "poses")
    distill.run(load(killed / "params.yaml"), killed, "poses")
    models = [root / "artifacts/poses_student/model.safetensors" for root in (whole, killed)]
    assert models[0].read_bytes() == models[1].read_bytes()


def test_the_students_of_progressive_distillation_halve_the_steps() -> None:
    assert Distillation("progressive", 4, 8).students == [Student("progressive", 32, times) for times in (2, 4, 8)]
    assert Distillation("direct", 4, 8).students == [Student("direct", 32, 8)]
    recipe = Training("edm").make(0.5)
    student = Student("direct", 32, 8)
    visited = student.timesteps(Training("edm"), recipe)
    assert len(visited) == 5 and visited[-1].s == 0
    assert [level.sigma for level in visited[:-1]] == [level.sigma for level in recipe.timesteps(32)[:-1:8]]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"distill": {"poses": {"method": "magic"}}}, "no distillation 'magic'"),
        ({"distill": {"poses": {"method": "progressive", "times": 6}}}, "times must be a power of 2"),
        ({"distill": {"poses": {"method": "direct", "parameters": {"decay": 0.9}}}}, "has no parameter decay"),
        ({"distill": {"poses": {"method": "direct"}}, "poses__recipe": "ddpm"}, "only with target x0"),
        (
            {
                "distill": {"poses": {"method": "direct", "steps": 200, "times": 8}},
                "poses__recipe": "ddpm", "poses__target": "v",
            },
            "steps must be at most 1000",
        ),
        (
            {"distill": {"poses": {"method": "direct"}}, "poses__recipe": "cold_mask", "sample__poses__sampler": "cold"},
            "adds no noise",
        ),
        ({"distill": {"poses": {"method": "direct"}}, "poses__self_condition": True}, "self_condition to be false"),
        ({"sample__poses__model": "poses_student"}, "distill.poses is missing"),
        ({"sample__poses__model": "pictures"}, "poses.model must be poses, poses_student or"),
        (
            {"distill": {"poses": {"method": "direct", "steps": 4}}, "sample__poses__model": "poses_student"},
            "sample.poses.sampler must be ddim for the student",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_sentence(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        load(write_params(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_a_model_without_a_section_is_not_distilled(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"distill\.poses is missing"):
        distill.run(load(write_params(tmp_path)), tmp_path, "poses")
    assert not (tmp_path / paths.ARTIFACTS).exists()
