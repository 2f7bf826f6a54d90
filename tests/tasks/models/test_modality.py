"""From params.yaml to networks, conditions and what training does to them."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diffusion_core import conditioning as conds
from diffusion_core import presets
from diffusion_core.codecs import Affine
from diffusion_core.extras.learned_variance import LearnedVariance
from diffusion_core.guidance import cfg
from diffusion_core.losses import SelfConditioned
from diffusion_core.nets import motion_transformer, pose_transformer
from diffusion_core.nets.cost import count_parameters
from diffusion_core.nets.mlp import MLP
from diffusion_core.nets.motion_transformer import MotionTransformer
from diffusion_core.nets.pose_transformer import graph_distances
from diffusion_core.recipe import Recipe
from diffusion_core.schedules import sigma_level
from diffusion_core.targets import FLOW
from diffusion_core.training.trainer import TrainConfig, Trainer
from tasks.common.errors import UserError
from tasks.common.motion import PARTS
from tasks.common.skeleton import BONES, mirror
from tasks.config.nets import SHAPES
from tasks.config.params import Pictures, load
from tasks.config.sampling import SamplingChoices
from tasks.dataset.pose_map import pose_map
from tasks.models import modality, model_file
from tasks.models.build import PICTURE_NETS, network
from tasks.models.conditioning import conditions, transform, widths
from tasks.models.guiding import guided
from tasks.models.inputs import Examples
from tasks.models.modality import Model
from tasks.models.sampler import draw
from tasks.train import evaluation
from tasks.train.evaluation import Evaluator
from tests.support.project import PROJECT
from tests.support.workspaces import figure, write_params

CATEGORIES = ["calm", "wild"]
EVERYTHING = ["category", "pose_map", "pose_vector", "pose_tokens"]
MARGIN = 0.1
PAGE = PROJECT / "docs/nets.md"


def _poses(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([figure(rng, i % 2) for i in range(count)])


def _params(folder: Path, **changes: Any) -> Pictures:
    return load(write_params(folder, **{f"pictures__{key}": value for key, value in changes.items()})).pictures


def _model(config: Pictures) -> Model:
    return modality.build("pictures", config, CATEGORIES, Affine(torch.zeros([]), torch.ones([])), MARGIN)


def _data(config: Pictures, count: int = 8) -> tuple[torch.Tensor, conds.Cond]:
    poses = _poses(count)
    x0 = torch.nn.functional.interpolate(pose_map(poses, 16, MARGIN)[:, :3], config.size) - 0.5
    return x0, conditions(config, CATEGORIES, MARGIN, [CATEGORIES[i % 2] for i in range(count)], poses)


@pytest.mark.parametrize("net", PICTURE_NETS)
def test_every_network_trains_with_every_condition_and_option(net: str, tmp_path: Path) -> None:
    # The Efficient U-Net has no attention, so it takes no tokens.
    conditions = [name for name in EVERYTHING if name != "pose_tokens"] if net == "efficient_unet" else EVERYTHING
    config = _params(
        tmp_path, net=net, width=32, depth=1, heads=2, conditions=conditions, self_condition=True, augment=0.5,
        condition_noise=0.3, condition_dropout_each=0.2, mirror=False,
    )  # fmt: skip
    model = _model(config)
    x0, cond = _data(config)
    assert {key: value.shape[2 if key.startswith("tok") else 1] for key, value in cond.items()} == {
        key: width for key, width in widths(config, 2).items() if key != "map:self"
    }
    trainer = Trainer(
        model.denoiser, model.recipe, TrainConfig(images=64, batch=8, learning_rate=1e-2, condition_dropout=0.1),
        data=lambda i: (x0[i], conds.rows(cond, i)), n=8, transform=transform(config, model.codec),
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in model.denoiser.named_parameters()}
    for _ in range(3):
        trainer.step()
    changed = [name for name, p in model.denoiser.named_parameters() if not torch.equal(p, before[name])]
    assert len(changed) > 0.9 * len(before)
    denoised = guided(model, 2.0)(x0, sigma_level(torch.tensor(1.0)), cond)
    assert denoised.shape == x0.shape and bool(denoised.isfinite().all())


def test_names_and_numbers_say_the_size(tmp_path: Path) -> None:
    named = {"width": None, "depth": None, "heads": None}
    assert _params(tmp_path, **named, net="dit", preset="S").shape == SHAPES["dit"]["S"]
    with pytest.raises(UserError, match="preset sets the size of the network: remove width, depth, heads, or preset"):
        _params(tmp_path, preset="S")
    with pytest.raises(UserError, match="give width, depth and heads, or a preset"):
        _params(tmp_path, width=None)
    with pytest.raises(UserError, match="condition_noise needs a condition on the pose"):
        _params(tmp_path, condition_noise=0.1, conditions=["category"])
    with pytest.raises(UserError, match="net"):
        _params(tmp_path, net="resnet")


def test_a_network_that_cannot_be_built_says_so_in_one_sentence(tmp_path: Path) -> None:
    config = _params(tmp_path, net="mmdit")
    with pytest.raises(UserError, match=r"pictures \(mmdit\): the MM-DiT needs a tok:\* condition.*\.$"):
        network(config, widths(config, 2))
    config = _params(tmp_path, net="dit", width=20)
    with pytest.raises(UserError, match=r"pictures \(dit\): rotary positions need a head width"):
        network(config, widths(config, 2))


def test_latent_self_conditioning_is_trained_stored_and_sampled_with(tmp_path: Path) -> None:
    config = _params(
        tmp_path, net="rin", width=32, depth=1, heads=2, conditions=["category"], latent_self_conditioning=0.5
    )
    model = _model(config)
    x0, cond = _data(config)
    trainer = Trainer(
        model.denoiser, model.recipe, TrainConfig(images=64, batch=8, learning_rate=1e-2),
        data=lambda i: (x0[i], conds.rows(cond, i)), n=8,
    )  # fmt: skip
    while not trainer.done:
        trainer.step()
    model_file.save(tmp_path, model, trainer.averaged().state_dict(), {"digest": "0"})
    stored = model_file.load(tmp_path, torch.device("cpu"))
    assert stored.config == config
    update = [p for name, p in stored.denoiser.named_parameters() if "from_first_pass.norm" in name]
    assert len(update) == 2 and all(bool(p.any()) for p in update)  # they start at zero

    def samples() -> torch.Tensor:
        return draw(stored, stored.conditions(["calm", "wild"]), SamplingChoices(steps=2), 0, torch.arange(2))

    twice = samples()
    for parameter in update:
        parameter.zero_()  # now the second pass starts where the first one did
    assert not torch.allclose(samples(), twice, atol=1e-4)

    plain = _model(_params(tmp_path, net="rin", width=32, depth=1, heads=2, conditions=["category"]))
    assert not [name for name, _ in plain.denoiser.named_parameters() if "from_first_pass" in name]
    with pytest.raises(UserError, match="latent_self_conditioning needs net rin, got dit"):
        _params(tmp_path, net="dit", latent_self_conditioning=0.5)
    for nonsense in (-0.1, 1.0, True, "half"):
        with pytest.raises(UserError, match=r"pictures\.latent_self_conditioning"):
            _params(tmp_path, net="rin", latent_self_conditioning=nonsense)


@pytest.mark.parametrize("net", SHAPES)
def test_sizes_grow_with_their_names_and_are_what_the_page_says(net: str, tmp_path: Path) -> None:
    params = load(write_params(tmp_path))
    own: dict[str, Any] = {"pose": params.poses, "motion": params.motion.model}
    config: Any = own.get(net, params.pictures)
    extra: dict[str, Any] = {}
    if net not in own:
        tokens = ["pose_tokens"] if net == "mmdit" else []
        patch = 2 if net == "hourglass" else 4
        extra = {"net": net, "size": 64, "patch": patch, "conditions": ["category", "pose_map", *tokens]}
    counts = []
    for preset in SHAPES[net]:
        named = {"width": None, "depth": None, "heads": None, "preset": preset}
        counts.append(_size(type(config)(**{**config.model_dump(), **named, **extra})))
    assert all(2 * small < large for small, large in pairwise(counts)), counts
    (line,) = (line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{net}` | ") and " M, " in line)
    told = [cell.strip() for cell in line.split("|")[2:-1]]
    for (preset, shape), count, cell in zip(SHAPES[net].items(), counts, told, strict=True):
        assert cell.startswith(f"{shape.width} x {shape.depth} x {shape.heads}: {count / 1e6:.1f} M"), preset


def _size(config: Any) -> int:
    """Parameters of the network, built without being filled with numbers."""
    distances = graph_distances(33, BONES)
    parts = MotionTransformer(33, BONES, PARTS, width=16, depth=1).distances
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pose_transformer, "graph_distances", lambda *_: distances)  # whose size is read from its numbers
        patch.setattr(motion_transformer, "graph_distances", lambda *_: parts)
        return count_parameters(network(config, widths(config, 8)))


def _flipped(config: Pictures, p: float = 0.9) -> tuple[torch.Tensor, conds.Cond, torch.Tensor, conds.Cond]:
    """Those rows of a batch, before and after, that the transform flips and does nothing else to."""
    x0, cond = _data(config, 8)
    x0, cond = x0.repeat(200, 1, 1, 1), {key: value.repeat(200, *[1] * (value.ndim - 1)) for key, value in cond.items()}
    change = transform(config.model_copy(update={"augment": p}), Affine(torch.zeros([]), torch.ones([])))
    assert change is not None
    moved, told = change(x0, cond, 3, torch.arange(1600))
    chosen = told["vec:augment"]
    rows = ((chosen[:, 0] == 1) & (chosen[:, 1:] == 0).all(1)).nonzero()[:, 0]
    assert len(rows) > 2
    return x0[rows], conds.rows(cond, rows), moved[rows], conds.rows(told, rows)


def test_a_flip_exchanges_left_and_right_in_every_condition(tmp_path: Path) -> None:
    config = _params(tmp_path, conditions=EVERYTHING, mirror=False, augment=0.3).model_copy(update={"size": 32})
    x0, cond, moved, told = _flipped(config, 0.4)
    torch.testing.assert_close(moved, x0.flip(-1), rtol=1e-4, atol=1e-4)
    poses = cond["vec:pose"].reshape(-1, 33, 3).numpy()
    names = [CATEGORIES[i] for i in cond["vec:category"].argmax(1).tolist()]
    expected = conditions(config, CATEGORIES, MARGIN, names, mirror(poses))
    torch.testing.assert_close(told["vec:pose"], expected["vec:pose"])
    torch.testing.assert_close(told["tok:pose"], expected["tok:pose"])
    assert float((told["map:pose"] - expected["map:pose"]).abs().max()) < 0.06  # the square is found in whole pixels
    assert float((cond["map:pose"] - expected["map:pose"]).abs().max()) > 0.5


def test_what_is_not_transformed_stays_and_is_told_so(tmp_path: Path) -> None:
    config = _params(tmp_path, conditions=EVERYTHING, augment=0.1)
    x0, cond = _data(config, 8)
    assert not cond["vec:augment"].any()  # in sampling
    change = transform(config, Affine(torch.tensor(0.2), torch.tensor(1.7)))
    assert change is not None
    moved, told = change(x0, cond, 0, torch.arange(8))
    untouched = (told["vec:augment"] == 0).all(1)
    assert 0 < int(untouched.sum()) < 8
    for a, b in ((moved, x0), (told["map:pose"], cond["map:pose"]), (told["tok:pose"], cond["tok:pose"])):
        torch.testing.assert_close(a[untouched], b[untouched])
    assert not told["vec:augment"][:, 0].any()  # mirror images are examples of their own already


def test_poses_are_augmented_in_data_units(tmp_path: Path) -> None:
    config = load(write_params(tmp_path, poses__augment=0.9, poses__mirror=False)).poses
    x0 = torch.from_numpy(_poses(8)).repeat(50, 1, 1)
    codec = Affine.fit(x0, 0.5, per_coordinate=True)
    change = transform(config, codec)
    assert change is not None
    moved, told = change(codec.encode(x0), conditions(config, CATEGORIES, MARGIN, ["calm"] * 400), 0, torch.arange(400))
    moved, chosen = codec.decode(moved), told["vec:augment"]

    def bone(pose: torch.Tensor, a: int, b: int) -> torch.Tensor:
        return (pose[:, a] - pose[:, b]).norm(dim=-1)

    grown = chosen[:, 1].exp()
    flip = chosen[:, 0].bool()
    left, right = bone(x0, 11, 13), bone(x0, 12, 14)
    torch.testing.assert_close(bone(moved, 11, 13), torch.where(flip, right, left) * grown, rtol=1e-3, atol=1e-4)
    assert 0.3 < float(flip.float().mean()) < 0.6


def test_noise_on_the_pose_is_of_the_size_that_the_network_is_told(tmp_path: Path) -> None:
    config = _params(tmp_path, conditions=EVERYTHING, condition_noise=2.0)
    x0, cond = _data(config, 8)
    assert not cond["vec:pose_level"].any()
    change = transform(config, Affine(torch.zeros([]), torch.ones([])))
    assert change is not None
    ids = torch.arange(8)
    _, told = change(x0, cond, 0, ids)
    size = (told["map:pose"] - cond["map:pose"]).flatten(1).std(1)
    torch.testing.assert_close(told["vec:pose_level"][:, 0].tan(), size, rtol=0.1, atol=0.01)
    assert float(size.max()) < 2.1 and float(size.std()) > 0.1
    for key in ("vec:pose", "tok:pose"):
        assert not torch.equal(told[key], cond[key])
    assert torch.equal(told["tok:pose"][..., 3:], cond["tok:pose"][..., 3:])  # which joint a token is stays certain
    assert torch.equal(told["vec:category"], cond["vec:category"])


def test_a_condition_can_be_guided_by_itself_and_a_category_withheld(tmp_path: Path) -> None:
    config = _params(tmp_path, conditions=EVERYTHING, augment=0.1)
    model = _model(config)
    asked: list[set[str]] = []

    def denoiser(x: torch.Tensor, level: object, cond: conds.Cond) -> torch.Tensor:
        asked.append(set(cond))
        return x

    x0, cond = _data(config, 2)
    level = sigma_level(torch.tensor(1.0))
    cfg(denoiser, 2.0)(x0, level, cond)
    cfg(cfg(denoiser, 2.0, "map:pose"), 1.5, "vec:category")(x0, level, cond)
    everything = set(cond)
    without_both = everything - {"map:pose", "vec:category"}
    assert asked[:2] == [{"vec:augment"}, everything]
    assert asked[2:] == [without_both, everything - {"vec:category"}, everything - {"map:pose"}, everything]
    some = model.conditions(["calm", None, "unheard of"], _poses(3))
    assert some["keep:vec:category"].tolist() == [True, False, False]
    assert "keep:map:pose" not in some


def test_a_self_conditioned_model_asks_twice(tmp_path: Path) -> None:
    config = _params(tmp_path, self_condition=True)
    model = _model(config)
    shown: list[bool] = []
    model.denoiser.net.register_forward_hook(lambda m, given, out: shown.append("map:self" in given[2]))
    x0, cond = _data(config, 2)
    guided(model, 1.0)(x0, sigma_level(torch.tensor(1.0)), cond)
    assert shown == [False, True]
    shown.clear()
    guided(model, 2.0)(x0, sigma_level(torch.tensor(1.0)), cond)
    assert shown == [False, True, False, True]


def test_evaluation_while_training_judges_the_self_conditioned_sampler(tmp_path: Path) -> None:
    model = _model(_params(tmp_path, self_condition=True))
    with torch.no_grad():
        for parameter in model.denoiser.parameters():  # the output of a new network is zero whatever its conditions
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    model.denoiser.eval()
    x0, cond = _data(model.config, 4)
    evaluator = Evaluator(model, {"train": Examples(x0, cond)}, seed=3, samples=0)
    shown: list[bool] = []
    model.denoiser.net.register_forward_hook(lambda m, given, out: shown.append("map:self" in given[2]))
    how = SamplingChoices(steps=evaluation.STEPS)
    assert torch.equal(
        evaluator.draw(model.denoiser, 2),
        draw(model, conds.rows(cond, slice(2)), how, evaluator.seed, torch.arange(2)),
    )
    shown.clear()
    evaluator.evaluate(model.denoiser, 0, None)
    assert shown == [False, True] * len(evaluation.SIGMAS)


@pytest.mark.parametrize(
    "recipe", [presets.edm2(), presets.rectified_flow(), presets.iddpm()], ids=["edm2", "rf", "iddpm"]
)
def test_self_conditioning_goes_with_every_recipe_and_what_it_learns(recipe: Recipe) -> None:
    recipe = recipe.replace(loss=SelfConditioned("map:self", recipe.loss))
    torch.manual_seed(0)
    out = 2 if recipe.form is LearnedVariance else 1
    denoiser = recipe.denoiser(MLP(4, width=32, conds={"map:self": 4}, out=4 * out))
    x0 = torch.randn(64, 4)
    trainer = Trainer(
        denoiser, recipe, TrainConfig(images=10**4, batch=32, learning_rate=3e-3), lambda i: (x0[i], {}), 64
    )
    before = {name: value.clone() for name, value in trainer.learned.state_dict().items()}
    for _ in range(3):
        trainer.step()
    moved = [name for name, value in trainer.learned.state_dict().items() if not torch.equal(value, before[name])]
    assert any("net.first" in name for name in moved)
    # EDM2 learns its uncertainty
    learns = [name for name, _ in recipe.loss.named_parameters()] if isinstance(recipe.loss, nn.Module) else []
    assert all(f"loss.{name}" in moved for name in learns)
    assert bool(learns) == (recipe.target is not FLOW and out == 1)
