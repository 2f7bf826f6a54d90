"""What identifies a training: everything that decides its weights, and nothing else."""

import sys
from pathlib import Path
from types import FrameType

import pytest
import torch

from diffusion_core import training_choices
from diffusion_core.conditioning import rows
from diffusion_core.training import monitoring
from diffusion_core.training.trainer import TrainConfig, Trainer
from tasks.common.code_digest import code_files
from tasks.config.optimisation import KeptAverage, Stop
from tasks.config.params import Params, Poses, load
from tasks.dataset.pose_map import pose_map
from tasks.dataset.shards import ShardDataset
from tasks.models import conditioning, inputs, modality
from tasks.models.inputs import Examples
from tasks.train import run_fingerprint
from tasks.train.data import ExampleDataset, digest, from_shards, in_memory
from tasks.train.evaluation import Evaluator
from tasks.train.run_fingerprint import RunFingerprint
from tests.support.imports import OBSERVERS, closure
from tests.support.project import PROJECT
from tests.support.training import workspace
from tests.support.workspaces import write_params


def _fingerprint(config: Poses, x0: torch.Tensor, cond: dict[str, torch.Tensor]) -> RunFingerprint:
    return run_fingerprint.of(config, digest(Examples(x0, cond)), held_out="none")


def test_the_fingerprint_covers_parameters_and_examples_but_not_the_number_of_ranks() -> None:
    config = load(PROJECT / "params.yaml").poses
    x0, cond = torch.zeros(4, 33, 3), {"vec:category": torch.eye(4)}
    first = _fingerprint(config, x0, cond)
    assert _fingerprint(config, x0.clone(), dict(cond)) == first
    assert _fingerprint(config.model_copy(update={"ranks": 4, "sharded": True, "microbatch": 8}), x0, cond) == first
    moved = x0.clone()
    moved[3, 32, 2] = 1e-7
    other = {"vec:category": torch.eye(4)[[0, 1, 3, 2]]}
    changed = config.model_copy(update={"learning_rate": 2e-3, "stop": Stop(converged=True)})
    others = [
        _fingerprint(config, moved, cond),
        _fingerprint(config, x0, other),
        _fingerprint(changed, x0, cond),
    ]
    assert len({run_fingerprint.digest(one) for one in [first, *others]}) == 4
    assert run_fingerprint.difference(first, others[0]) == "the training examples changed"
    assert run_fingerprint.difference(first, others[2]) == (
        "learning_rate was 0.002 and is 0.001 now, stop.converged was true and is false now"
    )


def test_the_width_of_a_computed_average_is_no_part_of_the_training_but_of_the_model() -> None:
    plain = load(PROJECT / "params.yaml").poses
    narrow, wide, tracked = (
        plain.model_copy(update={"keep": KeptAverage(ema=width), **more})
        for width, more in ((0.05, {}), (0.1, {}), (0.1, {"power_averages": [0.1]}))
    )
    trainings = [run_fingerprint.of(config, "a", "b") for config in (plain, narrow, wide, tracked)]
    assert trainings[1] == trainings[2]
    assert len({run_fingerprint.digest(training) for training in trainings}) == 3
    models = [run_fingerprint.model_digest(trainings[1], config) for config in (narrow, wide)]
    assert models[0] != models[1]
    assert run_fingerprint.model_digest(trainings[0], plain) == run_fingerprint.digest(trainings[0])


def test_options_of_one_network_are_part_of_the_training() -> None:
    plain = load(PROJECT / "params.yaml").pictures.model_copy(update={"net": "rin"})
    conditioned = plain.model_copy(update={"latent_self_conditioning": 0.9})
    assert run_fingerprint.of(plain, "a", "b") != run_fingerprint.of(conditioned, "a", "b")


@pytest.mark.parametrize("where", ["memory", "shards"])
def test_changed_conditioning_is_another_training(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shards are the same, but the network is shown something else."""
    root = workspace(tmp_path)
    config = load(root / "params.yaml").pictures
    train_split = ShardDataset(root / "data/shards", "train")
    dataset = ExampleDataset(train_split, config, ["calm", "wild"])

    def identity() -> str:
        return (in_memory(dataset, False, False) if where == "memory" else from_shards(dataset, False)).digest

    before = identity()
    assert identity() == before
    monkeypatch.setattr(conditioning, "pose_map", lambda *arguments: pose_map(*arguments) ** 2)
    assert identity() != before


def test_the_fingerprint_covers_the_code_that_decides_the_weights() -> None:
    """All that the training stage imports, apart from the checking of parameters and the handling of files and processes."""
    irrelevant = (
        "tasks/config/", "tasks/paths.py", "tasks/common/checkpoint.py", "tasks/common/code_digest.py",
        "tasks/common/errors.py", "tasks/common/files.py", "tasks/common/machine.py", "tasks/common/pool.py",
        "tasks/common/process.py", "tasks/common/text.py", "tasks/common/object_store.py",
        "tasks/dataset/remote_shards.py",
    )  # fmt: skip
    imported = closure(PROJECT / "tasks/train/stage.py", PROJECT, OBSERVERS)
    names = {path.relative_to(PROJECT).as_posix() for path in imported}
    covered = {path.relative_to(PROJECT).as_posix() for path in code_files(run_fingerprint.CODE)}
    assert set(code_files(run_fingerprint.SAMPLING)) < set(code_files(run_fingerprint.CODE))
    assert {"tasks/dataset/pose_map.py", "tasks/dataset/crop.py", "tasks/common/skeleton.py"} <= covered
    assert {name for name in names - covered if not name.startswith((*irrelevant, *OBSERVERS))} == set()


def _files(module: str) -> str:
    return (PROJECT / module).as_posix()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Params:
    return load(write_params(tmp_path_factory.mktemp("tiny")))


@pytest.mark.parametrize("recipe", [name for name, choice in training_choices.RECIPES.items() if not choice.tokens])
def test_code_that_is_left_out_of_the_fingerprint_takes_no_part_in_training(recipe: str, tiny: Params) -> None:
    """The files of the functions that run in a step and an evaluation, for every recipe that needs no codec."""
    name = "pictures" if training_choices.RECIPES[recipe].pictures_only else "poses"
    changes = {
        "recipe": recipe,
        "self_condition": name == "poses" and not training_choices.RECIPES[recipe].mixed,
        "conditions": ["category"],
    }
    config = modality.config_of(tiny, name).model_copy(update=changes)
    shape = (3, 16, 16) if name == "pictures" else (33, 3)
    x0 = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    codec = inputs.fit_codec(x0, name == "poses")
    model = modality.build(name, config, ["calm", "wild"], codec, 0.08)
    cond = model.conditions(["calm", "wild"] * 8)
    examples = {split: Examples(codec.encode(x0), cond) for split in ("train", "val")}
    trainer = Trainer(
        model.denoiser, model.recipe, TrainConfig(images=32, batch=16), lambda i: (x0[i], rows(cond, i)), 16,
        transform=conditioning.transform(config, codec),
    )  # fmt: skip
    evaluator = Evaluator(model, examples, seed=0, samples=0)
    used: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        used.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        trainer.step()
        evaluator.evaluate(trainer.averaged(), trainer.nimg, monitoring.noise_scale(trainer))
    finally:
        sys.setprofile(None)
    left_out = {path.as_posix() for path in code_files(run_fingerprint.SAMPLING)}
    assert {_files("diffusion_core/losses.py"), _files("diffusion_core/training/trainer.py")} <= used
    assert used & left_out == set()


def test_samplers_are_part_of_the_training_only_if_samples_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest of the code in which one file has changed; the loss always counts, the solvers with distances only."""
    plain = load(PROJECT / "params.yaml").poses
    judged = plain.model_copy(update={"distance_samples": 64, "keep": "distance"})
    # `samplers` is set for students, which learn from the steps of a sampler.
    trainings = ((plain, False), (judged, False), (plain, True))
    read_bytes = Path.read_bytes

    def fingerprints(changed: str) -> list[RunFingerprint]:
        path = PROJECT / changed
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", lambda self: read_bytes(self) + (b"#" if self == path else b""))
            return [run_fingerprint.of(config, "a", "b", samplers) for config, samplers in trainings]

    before = fingerprints("README.md")
    for name, expected in (
        ("diffusion_core/sampling/solvers.py", [False, True, True]),
        ("diffusion_core/choices.py", [False, True, True]),  # the table of samplers
        ("diffusion_core/training_choices.py", [True] * 3),
        ("diffusion_core/losses.py", [True] * 3),
        ("diffusion_core/sampling/timesteps.py", [True] * 3),  # recipes make their training levels of them
        ("diffusion_core/guidance.py", [True] * 3),  # self-conditioning is there
        ("diffusion_core/presets.py", [True] * 3),
    ):
        after = fingerprints(name)
        assert [one != other for one, other in zip(before, after, strict=True)] == expected, name


def test_held_out_examples_decide_which_weights_are_kept() -> None:
    config = load(PROJECT / "params.yaml").poses
    assert run_fingerprint.of(config, "a", "b") != run_fingerprint.of(config, "a", "c")
