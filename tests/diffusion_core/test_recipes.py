"""Every recipe learns a known mixture and samples it; VDM, likelihood bounds and distillation against closed forms."""

import math

import pytest
import torch

from benchmarks import mixture
from diffusion_core import losses as objective
from diffusion_core import presets, rng, schedules
from diffusion_core.extras import closed_form
from diffusion_core.extras.vdm import LearnedSchedule, bits_per_dim
from diffusion_core.importance_sampling import Importance
from diffusion_core.nets.mlp import MLP
from diffusion_core.sampling.loop import generate, sample
from diffusion_core.sampling.solvers import FLOW_ODE, consistency_step, ddim, heun
from diffusion_core.sampling.transition import transition
from diffusion_core.schedules import Level, sigma_level
from diffusion_core.training.distillation import Consistency, direct, implied_x0, progressive
from diffusion_core.training.trainer import TrainConfig, Trainer, evaluate

BATCH, STEPS = 256, 160
LEVELS = sigma_level(torch.tensor([0.2, 0.5, 1.0, 2.0], dtype=torch.float64))

RECIPES = {
    "ddpm": lambda: presets.ddpm(mixture.SD),
    "iddpm": lambda: presets.iddpm(mixture.SD),
    "ncsn": lambda: presets.ncsn(mixture.SD),
    "score vp": lambda: presets.score_sde(schedules.vp(), mixture.SD),
    "score sub-vp": lambda: presets.score_sde(schedules.sub_vp(), mixture.SD),
    "score ve": lambda: presets.score_ve(mixture.SD),
    "vdm": lambda: presets.vdm(LearnedSchedule(10, -5), mixture.SD),
    "edm": lambda: presets.edm(mixture.SD),
    "edm2": lambda: presets.edm2(mixture.SD),
    "rectified flow": lambda: presets.rectified_flow(mixture.SD),
    "sd3": lambda: presets.sd3(mixture.SD),
    "simple diffusion": lambda: presets.simple_diffusion(mixture.SD),
    "trigflow": lambda: presets.trigflow(mixture.SD),
    "edm, importance": lambda: presets.edm(mixture.SD).replace(importance=Importance()),
    "gamma noise": lambda: presets.edm(mixture.SD).replace(noise=rng.gamma(9)),
}


def train(recipe, steps=STEPS, out=None, data=None, net=None):
    torch.manual_seed(0)
    net = net or MLP(2, width=96, depth=2, out=out)
    config = TrainConfig(
        images=steps * BATCH, batch=BATCH, learning_rate=4e-3, warmup_images=2000, ema_halflife_images=4000
    )
    source = data or (lambda i: (mixture.draw(1, i), {}))
    trainer = Trainer(recipe.denoiser(net), recipe, config, source, 1_000_000)
    while not trainer.done:
        trainer.step()
    return trainer


SLOW = ("score sub-vp", "score ve", "sd3", "simple diffusion", "trigflow", "ncsn")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in RECIPES]
)
def test_recipe_learns_the_mixture_and_samples_it(name):
    recipe = RECIPES[name]()
    model = train(recipe, out=4 if name == "iddpm" else None).averaged()
    if name != "gamma noise":  # its Bayes loss is not that of normal noise
        test = mixture.draw(99, torch.arange(2000))
        excess = evaluate(model, test, {}, LEVELS) / evaluate(mixture.denoiser(), test, {}, LEVELS) - 1
        assert float(excess.min()) > -0.02 and float(excess[1:].max()) < 0.15, excess
    samples = generate(
        model.posterior if name == "iddpm" else model,
        recipe.timesteps(24), recipe.step, (2,), 0, torch.arange(1000), noise=recipe.noise,
    )  # fmt: skip
    distance = mixture.sliced_w2(samples, mixture.draw(5, torch.arange(1000)))
    assert distance < 0.12, distance  # two samples of the data: about 0.04; a normal of the same width: 0.16


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_learns_digits(name):
    """At sigma 0.6 the loss on held-out digits comes close to that of the best linear denoiser."""
    digits = torch.from_numpy(pytest.importorskip("sklearn.datasets").load_digits().data).float() / 8 - 1
    digits = digits[torch.argsort(rng.bits(0, torch.arange(len(digits)), 1)[:, 0])]
    known, held = digits[:1400], digits[1400:]
    net = MLP(64, width=256, depth=3, out=128 if name == "iddpm" else None)
    model = train(RECIPES[name](), 300, data=lambda i: (known[i % 1400], {}), net=net).averaged()
    here = sigma_level(torch.tensor([0.6], dtype=torch.float64))
    linear = closed_form.gaussian(known.mean(0), torch.cov(known.T) + 1e-4 * torch.eye(64))
    ours, best, zero = (float(evaluate(d, held, {}, here)) for d in (model, linear, lambda x, at, cond: 0 * x))
    assert ours < 1.4 * best < 0.3 * zero, (ours, best, zero)


def test_a_normal_fails_the_distance_test():
    normal = mixture.SD * rng.normal((2,), 0, torch.arange(1000))
    assert mixture.sliced_w2(normal, mixture.draw(5, torch.arange(1000))) > 0.15


def test_importance_and_schedule_survive_a_restart():
    for make in (
        lambda: presets.edm(0.5).replace(importance=Importance()),
        lambda: presets.vdm(LearnedSchedule(), 0.5),
    ):
        trainer = train(make(), steps=5)
        tensors, info = trainer.state()
        recipe = make()
        fresh = Trainer(recipe.denoiser(MLP(2, width=96, depth=2)), recipe, trainer.config, trainer.data, trainer.n)
        fresh.load_state(tensors, info)
        assert [trainer.step().loss for _ in range(3)] == [fresh.step().loss for _ in range(3)]


def test_learned_schedule_reduces_the_variance_of_the_bound():
    """Training keeps the schedule's ends and monotonicity, and the loss depends less on u than with the initial schedule."""
    schedule = LearnedSchedule(10.0, -5.0)
    recipe = presets.vdm(schedule, mixture.SD)
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    x0, noise = mixture.draw(4, torch.arange(4000)), rng.normal((2,), 5, torch.arange(4000))

    def losses():
        return recipe.loss(mixture.denoiser(), x0, schedule(u), noise, recipe.weight, {})

    before = losses().detach().reshape(40, 100).mean(1)
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        losses().mean().backward()
        optimizer.step()
    after = losses().detach().reshape(40, 100).mean(1)
    assert float(after.mean()) == pytest.approx(float(before.mean()), rel=0.05)  # the bound is unchanged
    assert float(after.std()) < 0.7 * float(before.std())
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    g = schedule.logsnr(t).detach()
    assert (g.diff() < 0).all() and float(g[0]) == pytest.approx(10) and float(g[-1]) == pytest.approx(-5)
    torch.testing.assert_close(schedule.invert(g), t, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [schedules.logsnr(13.3, -9), schedules.vp(), schedules.sub_vp(), schedules.linear(), schedules.trig()],
    ids=["logsnr", "vp", "sub-vp", "linear", "trig"],
)
def test_bound_on_the_likelihood_is_tight_for_the_exact_denoiser(schedule):
    """Bits per dimension against the mixture's entropy, with a small standard error on every schedule."""
    x0 = mixture.draw(7, torch.arange(4000)).double()
    clean = sigma_level(torch.tensor(0.0, dtype=torch.float64))
    logp = closed_form.mixture_logp(x0, clean, mixture.WEIGHTS, mixture.MEANS, mixture.SDS)
    exact = -logp / 2 / math.log(2)
    excess = bits_per_dim(mixture.denoiser(), x0, schedule, draws=32) - exact
    assert float(excess.std() / len(x0) ** 0.5) < 0.03
    assert abs(float(excess.mean())) < 0.06


@pytest.mark.slow
def test_reflow_straightens():
    """One Euler step of the reflowed model is closer to the data than one step of its teacher."""
    recipe = presets.rectified_flow(mixture.SD)
    teacher = train(recipe, 300).averaged()
    ids = torch.arange(4000)
    start = rng.normal((2,), 8, ids)
    ends = sample(teacher, start.double(), recipe.timesteps(16), heun(FLOW_ODE), iter(())).float().detach()
    pairs = recipe.replace(loss=objective.paired_loss)
    student = train(pairs, 300, data=lambda i: (ends[i % 4000], {"pair:noise": start[i % 4000]})).averaged()
    goal = mixture.draw(5, torch.arange(2000))
    one = [
        mixture.sliced_w2(generate(m, recipe.timesteps(1), ddim(), (2,), 3, torch.arange(2000)), goal)
        for m in (teacher, student)
    ]
    assert one[1] < 0.4 * one[0]


def test_the_progressive_target_reproduces_two_steps_of_the_teacher():
    """`implied_x0` inverts `transition`."""
    levels = presets.edm(0.5).timesteps(8)
    x = rng.normal((2,), 0, torch.arange(30)).double() * 80
    oracle = mixture.denoiser()
    for here, middle, end in zip(levels[:-2:2], levels[1:-1:2], levels[2::2], strict=True):
        half = transition(x, oracle(x, here, {}), here, middle)
        two = transition(half, oracle(half, middle, {}), middle, end)
        torch.testing.assert_close(transition(x, implied_x0(x, two, here, end), here, end), two, rtol=1e-12, atol=1e-12)
        x = two


def test_progressive_distillation_halves_the_steps():
    recipe = presets.edm(mixture.SD)
    levels = recipe.timesteps(8)
    student_recipe = recipe.replace(
        loss=progressive(mixture.denoiser(), levels), density=objective.one_of(levels[:-1:2])
    )
    student = train(student_recipe, 400).averaged()
    start = 80 * rng.normal((2,), 3, torch.arange(2000)).double()
    with torch.no_grad():
        goal = sample(mixture.denoiser(), start, levels, ddim(), iter(()))
        ours = sample(student, start, levels[::2], ddim(), iter(()))
        skipped = sample(mixture.denoiser(), start, levels[::2], ddim(), iter(()))
    assert (ours - goal).norm(dim=1).mean() < 0.4 * (skipped - goal).norm(dim=1).mean()
    with pytest.raises(ValueError, match="even number"):
        progressive(mixture.denoiser(), recipe.timesteps(7))


def test_consistency_distillation_samples_in_two_evaluations():
    recipe = presets.edm(mixture.SD)
    levels = recipe.timesteps(18)
    net = MLP(2, width=96, depth=2)
    loss = Consistency(mixture.denoiser(), recipe.denoiser(net), levels)
    student_recipe = recipe.replace(
        loss=loss, density=objective.one_of(levels[:-2]), weight=objective.unit(recipe.target)
    )
    student = train(student_recipe, 600, net=net).averaged()
    goal = mixture.draw(5, torch.arange(2000))
    two = [levels[0], levels[9], levels[-1]]
    ours = generate(student, two, consistency_step, (2,), 3, torch.arange(2000))
    plain = generate(mixture.denoiser(), two, ddim(), (2,), 3, torch.arange(2000))
    assert mixture.sliced_w2(ours, goal) < 0.5 * mixture.sliced_w2(plain, goal)


def test_direct_distillation_needs_one_round():
    """Four steps of the student come closer to sixteen of the teacher than the teacher's own four."""
    recipe = presets.edm(mixture.SD, sigma_min=0.01, sigma_max=20.0)
    levels = recipe.timesteps(16)
    few = levels[::4]
    student_recipe = recipe.replace(loss=direct(mixture.denoiser(), levels, 4), density=objective.one_of(few[:-1]))
    student = train(student_recipe, 300).averaged()
    start = 20 * rng.normal((2,), 3, torch.arange(2000)).double()
    with torch.no_grad():
        goal = sample(mixture.denoiser(), start, levels, heun(), iter(()))
        ours = sample(student, start, few, ddim(), iter(()))
        skipped = sample(mixture.denoiser(), start, few, ddim(), iter(()))
    assert (ours - goal).norm(dim=1).mean() < 0.5 * (skipped - goal).norm(dim=1).mean()
    with pytest.raises(ValueError, match="do not divide"):
        direct(mixture.denoiser(), recipe.timesteps(15), 4)


def test_the_direct_target_is_the_end_of_the_teacher_s_steps():
    """The target is the x0 with which one step goes where the teacher's four Heun steps go."""
    levels = presets.edm(0.5).timesteps(8)
    x0, noise = mixture.draw(3, torch.arange(50)).double(), rng.normal((2,), 0, torch.arange(50)).double()
    for rank in (0, 1):
        here = Level(*(part.expand(50) for part in levels[4 * rank]))
        seen = []

        def student(x, level, cond, seen=seen):
            seen.append(x)
            return torch.zeros_like(x)

        loss = direct(mixture.denoiser(), levels, 4)(student, x0, here, noise, lambda at: torch.ones(50), {})
        steps = levels[4 * rank : 4 * rank + 5]
        goal = sample(mixture.denoiser(), seen[0], steps, heun(), iter(()))
        target = implied_x0(seen[0], goal, steps[0], steps[-1])
        torch.testing.assert_close(loss, target.square().mean(1), rtol=1e-9, atol=1e-9)
