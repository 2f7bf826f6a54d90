"""The words of the report about memorization, and the key figures."""

import numpy as np
import pytest

from benchmarks.synthetic_law import Law, with_copies
from tasks.evaluate.memorization.certificate import certify, score_samples
from tasks.evaluate.memorization.invariances import Bank, Invariance, identity
from tasks.evaluate.memorization.positive_control import Planted
from tasks.evaluate.memorization.reference import Items, make_reference
from tasks.report import page

VECTORS = Bank("law vectors", (Invariance("as is", identity),), lambda x: x, identity)


def evidence(copied: int) -> dict[str, str]:
    law, rng = Law(latent=12, width=64), np.random.default_rng(0)
    train, heldout, generated = law.draw(150, rng), law.draw(50, rng), law.draw(100, rng)
    if copied:
        generated = with_copies(generated, train, heldout, copied, 0.05, rng)
    apart = Items(train, np.arange(150)), Items(heldout, 150 + np.arange(50))
    compared = make_reference((VECTORS,), *apart)
    scored = score_samples("samples", generated, compared)

    def plant(count: int, rng: np.random.Generator) -> Planted:
        rows = np.arange(count) % len(train)
        return Planted(train[rows] + np.float32(1e-3), rows, ["moved"] * count)

    certificate = certify("samples", scored, compared, plant, rng)
    return dict(page._evidence(certificate.metrics()))


def test_evidence_has_the_copies_and_the_detection_limit() -> None:
    clean, copied = evidence(0), evidence(7)
    assert clean["samples; training items; held-out items"] == "100; 150; 50"
    assert clean["samples on the list of copies"].startswith("0 (0.0%, 95% interval 0.0% to 3.6%)")
    assert copied["samples on the list of copies"].startswith(("7 (7.0%", "8 (8.0%", "9 (9.0%"))  # 10% may be false
    assert float(copied["p-value: some samples are nearer to training items than held-out items are"]) < 1e-4
    assert clean["copies planted as a control, recognised"] == "180 of 180 (100%, 95% interval 98% to 100%)"
    assert float(clean["largest share of copies among the samples, at 95% confidence"].rstrip("%")) == pytest.approx(
        3.7, abs=0.1
    )
    dimension, size = next(value for words, value in clean.items() if words.startswith("law vectors")).split("; ")
    assert 5 < float(dimension) < 20
    assert 0.05 < float(size.split()[0]) < 1


def test_without_a_test_there_is_no_evidence() -> None:
    assert page._evidence({}) == []
    assert page._train_conditions({"pictures.copies_fraction": 0.1}) == ""
    both = {"pictures.copies_fraction": 0.01, "train_conditions.copies_fraction": 0.25}
    sentence = page._train_conditions(both)
    assert sentence.index("25.0%") < sentence.index("1.0%")  # training conditions come first


def test_the_opening_sentence_gives_the_shares_beside_real_pictures() -> None:
    metrics = {"pictures.found": 0.875, "pictures.within_0.2": 0.5, "floor.found": 0.996, "floor.within_0.2": 0.75}
    sentence = page._pictures(metrics)
    assert [sentence.index(share) for share in ("87.5%", "99.6%", "50.0%", "75.0%")] == sorted(
        sentence.index(share) for share in ("87.5%", "99.6%", "50.0%", "75.0%")
    )
    assert "torso" not in page._pictures({"pictures.found": 0.0}) and page._pictures({}) == ""
