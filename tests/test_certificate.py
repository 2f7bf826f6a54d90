import numpy as np
import pytest

from benchmarks.synthetic_law import Law, with_copies
from tasks.copies.certificate import Certificate, Items, certify
from tasks.copies.copy_test import Verdict
from tasks.copies.views import Bank, View, identity
from tasks.errors import DataError

LAW = Law(latent=12, width=64)
VECTORS = Bank("vectors", (View("as is", identity),), lambda x: x, identity)


def plant(train: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    return train[rng.choice(len(train), count)] + np.float32(0.001)


def outcome(generated: np.ndarray, train: np.ndarray, heldout: np.ndarray) -> Certificate:
    groups = np.arange(len(train) + len(heldout))
    return certify(
        "samples",
        (VECTORS,),
        generated,
        Items(train, groups[: len(train)]),
        Items(heldout, groups[len(train) :]),
        plant,
        np.random.default_rng(0),
    )


def draws(n: int, m: int, g: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return LAW.draw(n, rng), LAW.draw(m, rng), LAW.draw(g, rng), rng


def test_fresh_samples_are_clean_and_the_control_is_found() -> None:
    alarms = 0
    for seed in range(25):
        train, heldout, generated, _ = draws(300, 80, 300, seed)
        certificate = outcome(generated, train, heldout)
        alarms += certificate.verdict is not Verdict.CLEAN
        assert certificate.planted_found == certificate.planted == 3
    assert alarms <= 1


@pytest.mark.parametrize("generator", [LAW.blurred, LAW.shrunk, LAW.half_the_modes])
def test_generators_that_are_bad_but_copy_nothing_are_not_accused(generator) -> None:
    verdicts = []
    for seed in range(8):
        train, heldout, _, rng = draws(300, 80, 1, seed)
        verdicts.append(outcome(generator(300, rng), train, heldout).verdict)
    assert verdicts.count(Verdict.COPIES) <= 1


def test_two_near_copies_among_five_hundred_are_found_and_named() -> None:
    for seed in range(5):
        train, heldout, generated, rng = draws(300, 80, 500, seed)
        generated = with_copies(generated, train, heldout, 2, 0.1, rng)
        certificate = outcome(generated, train, heldout)
        assert certificate.verdict is Verdict.COPIES
        assert certificate.copies[:2].all()
        assert certificate.copies[2:].sum() <= 1
        assert "of 500 generated samples" in certificate.sentence


def test_a_model_that_repeats_a_tiny_training_set_is_caught_by_the_split() -> None:
    train, heldout, _, rng = draws(21, 9, 1, 0)
    generated = train[rng.integers(0, 21, 200)] + rng.normal(0, 0.05, (200, 64)).astype(np.float32)
    certificate = outcome(generated, train, heldout)
    assert certificate.verdict is Verdict.COPIES
    assert certificate.split.p < 1e-4
    assert "0 held out" in certificate.sentence


def test_frames_of_one_scene_hide_a_copy_unless_grouped() -> None:
    rng = np.random.default_rng(0)
    scene = np.repeat(np.arange(200), 5)
    latent = LAW.latents(200, rng)[scene]
    x = LAW.features(latent + rng.normal(0, 0.05, latent.shape))
    outside = scene % 5 == 0
    generated = LAW.draw(400, rng)
    # As far from a training frame as its scene's other frames are.
    generated[:8] = LAW.features(latent[~outside][:40:5] + rng.normal(0, 0.05, (8, 12)))

    def by(group: np.ndarray) -> Certificate:
        train, heldout = Items(x[~outside], group[~outside]), Items(x[outside], group[outside])
        return certify("samples", (VECTORS,), generated, train, heldout, plant, rng)

    grouped = by(scene)
    assert grouped.verdict is Verdict.COPIES
    assert grouped.copies[:8].all()
    apart = by(np.arange(len(x)))
    assert not apart.copies.any()
    assert apart.verdict is Verdict.SPLIT_UNRELIABLE
    assert "put near-duplicates into one group" in apart.sentence


def test_a_split_through_scenes_is_unreliable() -> None:
    rng = np.random.default_rng(1)
    latent = np.repeat(LAW.latents(200, rng), 5, axis=0)
    x = LAW.features(latent + rng.normal(0, 0.05, latent.shape))
    outside = rng.uniform(size=len(x)) < 0.2
    certificate = outcome(LAW.draw(300, rng), x[~outside], x[outside])
    assert certificate.verdict is Verdict.SPLIT_UNRELIABLE
    assert "split by scene" in certificate.sentence


def test_metrics_are_flat_finite_numbers() -> None:
    train, heldout, generated, _ = draws(120, 40, 100, 0)
    metrics = outcome(generated, train, heldout).metrics()
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["planted_found"] == 1
    assert 3 < metrics["vectors.intrinsic_dimension"] < 40
    assert 0 < metrics["vectors.smallest_copy"] < 1


def test_nothing_held_out_is_refused() -> None:
    train, _, generated, _ = draws(50, 1, 10, 0)
    with pytest.raises(DataError, match="nothing is held out"):
        outcome(generated, train, train[:0])
