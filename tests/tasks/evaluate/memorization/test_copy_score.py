import numpy as np
import pytest

from tasks.common.errors import DataError
from tasks.evaluate.memorization.invariances import POSES, Bank, Invariance, identity
from tasks.evaluate.memorization.scorers import score

PLAIN = Bank("plain", (Invariance("as is", identity),), lambda x: x.astype(np.float32), identity)
BOTH_SIGNS = Bank(
    "signs",
    (Invariance("as is", identity), Invariance("negated", np.negative)),
    lambda x: x.astype(np.float32),
    identity,
)


def test_the_second_neighbour_is_of_another_group() -> None:
    train = np.array([[0.0], [0.1], [0.2], [5.0], [9.0]])
    groups = np.array([0, 0, 0, 1, 2])
    scores = score(PLAIN, np.array([[-1.0]]), train, groups)
    assert scores.first_distance[0] == pytest.approx(1.0)
    assert scores.second_distance[0] == pytest.approx(6.0)
    assert (scores.first[0], scores.second[0]) == (0, 3)
    plain = score(PLAIN, np.array([[-1.0]]), train, np.arange(5))
    assert plain.ratio[0] == pytest.approx(1 / 1.1)


def test_the_items_own_group_is_excluded() -> None:
    train = np.array([[0.0], [0.1], [1.0], [3.0]])
    groups = np.array([7, 7, 8, 9])
    left_out = score(PLAIN, train, train, groups, own=groups)
    assert left_out.first.tolist() == [2, 2, 1, 2]
    assert left_out.second.tolist() == [3, 3, 3, 1]


def test_scores_agree_with_brute_force_over_transformations_and_groups() -> None:
    rng = np.random.default_rng(0)
    train, items = rng.normal(size=(80, 3)), rng.normal(size=(40, 3))
    groups = rng.integers(0, 6, 80)  # large groups: the search has to widen
    own = rng.integers(0, 6, 40)
    scores = score(BOTH_SIGNS, items, train, groups, own=own)
    for i, item in enumerate(items):
        distance = np.minimum(
            np.linalg.norm(train.astype(np.float32) - item.astype(np.float32), axis=1),
            np.linalg.norm(train.astype(np.float32) + item.astype(np.float32), axis=1),
        )
        distance[groups == own[i]] = np.inf
        first = distance.argmin()
        assert scores.first[i] == first
        assert scores.first_distance[i] == pytest.approx(distance[first], rel=1e-5)
        assert scores.second_distance[i] == pytest.approx(distance[groups != groups[first]].min(), rel=1e-5)


def test_an_exact_copy_has_the_smallest_ratio() -> None:
    poses = np.random.default_rng(0).normal(size=(30, 33, 3)).astype(np.float32)
    scores = score(POSES, poses[4:5], poses, np.arange(30))
    assert scores.first_distance[0] == 0.0
    assert scores.first[0] == 4
    assert 0 < scores.ratio[0] < 1e-8


def test_fewer_than_two_groups_are_refused() -> None:
    with pytest.raises(DataError, match="needs 2 groups"):
        score(PLAIN, np.zeros((1, 1)), np.ones((5, 1)), np.zeros(5, int))
