import numpy as np
import pytest

from benchmarks.synthetic_law import Law, with_copies
from tasks.common.errors import DataError
from tasks.evaluate.memorization.certificate import Certificate, certify, score_samples
from tasks.evaluate.memorization.copy_test import Enough, Verdict
from tasks.evaluate.memorization.invariances import Bank, Invariance, identity
from tasks.evaluate.memorization.missed_copies import Cause
from tasks.evaluate.memorization.positive_control import Planted, Planter
from tasks.evaluate.memorization.reference import Items, Reference, make_reference

LAW = Law(latent=12, width=64)
VECTORS = Bank("vectors", (Invariance("as is", identity),), lambda x: x, identity)


def moved(train: np.ndarray, eta: float = 0.0) -> Planter:
    """Plants copies at this distance, in parts of the median distance between nearest training items, or very near ones."""

    def plant(count: int, rng: np.random.Generator) -> Planted:
        rows = rng.choice(len(train), count)
        if not eta:
            return Planted(train[rows] + np.float32(0.001), rows, ["moved"] * count)
        between = np.linalg.norm(train[:100, None] - train[None], axis=-1)
        between[between == 0] = np.inf
        directions = rng.normal(size=(count, train.shape[1]))
        directions *= eta * np.median(between.min(axis=1)) / np.linalg.norm(directions, axis=1, keepdims=True)
        return Planted((train[rows] + directions).astype(np.float32), rows, ["far"] * count)

    return plant


def judged(
    generated: np.ndarray, compared: Reference, rng: np.random.Generator, plant: Planter | None = None
) -> Certificate:
    scored = score_samples("samples", generated, compared)
    return certify("samples", scored, compared, plant or moved(compared.train.data), rng)


def outcome(generated: np.ndarray, train: np.ndarray, heldout: np.ndarray) -> Certificate:
    groups = np.arange(len(train) + len(heldout))
    apart = Items(train, groups[: len(train)]), Items(heldout, groups[len(train) :])
    return judged(generated, make_reference((VECTORS,), *apart), np.random.default_rng(0))


def draws(n: int, m: int, g: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return LAW.draw(n, rng), LAW.draw(m, rng), LAW.draw(g, rng), rng


def test_fresh_samples_are_clean_and_the_control_is_found() -> None:
    alarms = 0
    for seed in range(25):
        train, heldout, generated, _ = draws(300, 80, 300, seed)
        certificate = outcome(generated, train, heldout)
        alarms += certificate.verdict is not Verdict.CLEAN
        assert certificate.power.found == certificate.power.planted == 180
    assert alarms <= 1


@pytest.mark.parametrize("generator", [LAW.blurred, LAW.shrunk, LAW.half_the_modes])
def test_generators_that_are_bad_but_copy_nothing_are_not_accused(generator) -> None:
    verdicts = []
    for seed in range(8):
        train, heldout, _, rng = draws(300, 80, 1, seed)
        verdicts.append(outcome(generator(300, rng), train, heldout).verdict)
    assert verdicts.count(Verdict.COPIES) <= 1


def test_two_near_copies_among_five_hundred_are_listed() -> None:
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


def test_samples_that_are_copies_throughout_are_not_called_unbounded() -> None:
    train, heldout, _, rng = draws(150, 50, 1, 0)
    certificate = judged(moved(train, 0.05)(100, rng).items, reference_of(train, heldout), rng)
    assert certificate.verdict is Verdict.COPIES and certificate.share_bound == 1.0
    assert "All of the generated samples may be copies" in certificate.sentence


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
        return judged(generated, make_reference((VECTORS,), train, heldout), rng)

    grouped = by(scene)
    assert grouped.verdict is Verdict.COPIES
    assert grouped.copies[:8].all()
    apart = by(np.arange(len(x)))
    assert not apart.copies.any()
    assert apart.verdict is Verdict.SPLIT_UNRELIABLE
    assert "Put near-duplicates into one group" in apart.sentence


def test_a_split_through_scenes_is_unreliable() -> None:
    rng = np.random.default_rng(1)
    latent = np.repeat(LAW.latents(200, rng), 5, axis=0)
    x = LAW.features(latent + rng.normal(0, 0.05, latent.shape))
    outside = rng.uniform(size=len(x)) < 0.2
    certificate = outcome(LAW.draw(300, rng), x[~outside], x[outside])
    assert certificate.verdict is Verdict.SPLIT_UNRELIABLE
    assert "Split by scene" in certificate.sentence


def test_metrics_are_flat_finite_numbers() -> None:
    train, heldout, generated, _ = draws(120, 40, 100, 0)
    metrics = outcome(generated, train, heldout).metrics()
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["planted_found"] == metrics["planted"] == 180
    assert metrics["power_low"] > 0.97 and 0.03 < metrics["share_bound"] < 0.04
    assert 3 < metrics["vectors.intrinsic_dimension"] < 40
    assert 0 < metrics["vectors.smallest_copy"] < 1


def reference_of(train: np.ndarray, heldout: np.ndarray) -> Reference:
    groups = np.arange(len(train) + len(heldout))
    apart = Items(train, groups[: len(train)]), Items(heldout, groups[len(train) :])
    return make_reference((VECTORS,), *apart, without_heldout=True)


def test_the_verdict_is_low_power_if_planted_copies_are_not_recognised() -> None:
    train, heldout, generated, rng = draws(300, 80, 300, 0)
    compared = reference_of(train, heldout)

    def fresh(count: int, rng: np.random.Generator) -> Planted:
        return Planted(LAW.draw(count, rng), np.zeros(count, int), ["fresh"] * count)

    unseen = judged(generated, compared, rng, fresh)
    assert unseen.power.found == 0
    assert unseen.verdict is Verdict.LOW_POWER
    assert unseen.share_bound == 1.0 and "cannot be bounded" in unseen.sentence
    assert [limit.cause for limit in unseen.limits] == [Cause.DISGUISE] and unseen.limits[0].copies == 180
    far = judged(generated, compared, rng, moved(train, 0.35))
    assert far.verdict is Verdict.LOW_POWER and 0 < far.power.share < 0.8
    assert far.share_bound > judged(generated, compared, rng).share_bound


def test_the_bound_does_not_deny_loose_copies_that_are_on_the_list() -> None:
    """Copies that are looser than the planted ones: together they are evidence, alone hardly any of them is."""
    train, heldout, fresh, rng = draws(150, 50, 50, 0)
    loose = moved(train, 0.45)(100, rng).items
    certificate = judged(np.concatenate([loose, fresh]), reference_of(train, heldout), rng)
    assert certificate.verdict is Verdict.COPIES
    assert certificate.recognised < certificate.copies.sum() / 2
    assert certificate.share_bound > certificate.copies.mean() > 0.5


def test_too_few_samples_come_before_low_power() -> None:
    train, heldout, generated, rng = draws(300, 80, 99, 0)
    few = judged(generated, reference_of(train, heldout), rng)
    assert few.verdict is Verdict.TOO_FEW
    assert few.sentence.endswith("this says little: there are only 99 samples (100 are needed).")


def test_near_duplicates_in_other_groups_are_named_as_the_cause_of_low_power() -> None:
    """Half of the training set twice, too far apart for the leak detector to be sure, too near for copies to be seen."""
    train, heldout, generated, rng = draws(200, 80, 300, 1)
    twins = np.concatenate([train, train[:60] + rng.normal(0, 0.02, (60, 64)).astype(np.float32)])
    certificate = judged(generated, reference_of(twins, heldout), rng, moved(twins[:60], 0.2))
    assert certificate.power.share < 0.8
    assert certificate.limits[0].cause is Cause.DUPLICATES


def test_without_held_out_items_training_items_alone_are_the_null() -> None:
    train, heldout, generated, rng = draws(300, 80, 300, 0)
    compared = reference_of(train, heldout[:0])
    fresh = judged(generated, compared, rng)
    assert fresh.verdict is Verdict.TOO_FEW  # held-out groups are needed unless it is said that they are not
    none_needed = Enough(heldout=0)
    scored = score_samples("samples", generated, compared)
    clean = certify("samples", scored, compared, moved(train), rng, needed=none_needed)
    assert clean.verdict is Verdict.CLEAN and clean.split.p == 1 and clean.leak_heldout is None
    assert all(np.isfinite(value) for value in clean.metrics().values())
    copied = with_copies(generated, train, heldout, 3, 0.1, rng)
    caught = certify(
        "samples", score_samples("samples", copied, compared), compared, moved(train), rng, needed=none_needed
    )
    assert caught.verdict is Verdict.COPIES and "held out" not in caught.sentence


def test_a_part_of_the_training_set_calibrates_nearly_as_well_as_all_of_it() -> None:
    train, heldout, generated, rng = draws(600, 80, 300, 2)
    groups = np.arange(680)
    apart = Items(train, groups[:600]), Items(heldout, groups[600:])
    part = make_reference((VECTORS,), *apart, calibration=200)
    assert len(part.nulls[0].left_out.ratio) == 200
    whole = make_reference((VECTORS,), *apart)
    assert set(part.nulls[0].left_out.ratio) <= set(whole.nulls[0].left_out.ratio)
    copied = with_copies(generated, train, heldout, 3, 0.1, rng)
    assert judged(copied, part, rng).copies[:3].all()


def test_a_reference_can_be_used_more_than_once() -> None:
    train, heldout, generated, rng = draws(200, 60, 150, 3)
    groups = np.arange(260)
    compared = make_reference((VECTORS,), Items(train, groups[:200]), Items(heldout, groups[200:]))
    copied = with_copies(generated, train, heldout, 5, 0.05, rng)
    verdicts = [judged(x, compared, rng).verdict for x in (generated, copied, generated)]
    assert verdicts == [Verdict.CLEAN, Verdict.COPIES, Verdict.CLEAN]


def test_a_certificate_without_held_out_items_is_refused() -> None:
    train, _, generated, _ = draws(50, 1, 10, 0)
    with pytest.raises(DataError, match="nothing is held out"):
        outcome(generated, train, train[:0])


@pytest.mark.parametrize(
    ("train", "heldout", "generated", "sentence"),
    [
        (np.zeros((0, 3)), np.ones((4, 3)), np.ones((2, 3)), "there are no training items."),
        (np.full((9, 3), np.nan), np.ones((4, 3)), np.ones((2, 3)), "Training items: 9 of 9 rows are not finite"),
        (np.ones((9, 3)), np.full((4, 3), np.inf), np.ones((2, 3)), "Held-out items: 4 of 4 rows are not finite"),
        (
            np.ones((9, 3)),
            np.ones((4, 2)),
            np.ones((2, 3)),
            "Held-out items are 2 numbers each, and the training items 3.",
        ),
        (np.ones((9, 3)), np.ones((4, 3)), np.ones((2, 5)), "Generated samples are 5 numbers each"),
        (np.ones((9, 3)), np.ones((4, 3)), np.ones((0, 3)), "there are no samples."),
        (np.ones((2, 3)), np.ones((4, 3)), np.ones((2, 3)), "needs 3 groups of training items"),
    ],
)
def test_items_that_do_not_fit_are_refused(
    train: np.ndarray, heldout: np.ndarray, generated: np.ndarray, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        outcome(*(some.astype(np.float32) for some in (generated, train, heldout)))


def test_a_subset_of_scores_gives_the_same_certificate_as_scoring_the_subset() -> None:
    train, heldout, generated, _ = draws(200, 60, 150, 5)
    groups = np.arange(260)
    compared = make_reference((VECTORS,), Items(train, groups[:200]), Items(heldout, groups[200:]))
    some = np.arange(20, 140)
    scored = [scores.rows(some) for scores in score_samples("samples", generated, compared)]
    subset = certify("samples", scored, compared, moved(compared.train.data), np.random.default_rng(0))
    alone = judged(generated[some], compared, np.random.default_rng(0))
    np.testing.assert_allclose(subset.sample_p, alone.sample_p, rtol=1e-12)
    assert (subset.p, subset.sizes, subset.sentence) == (alone.p, alone.sizes, alone.sentence)
