"""Unsupervised classification with a GAN finds clusters that are there."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from tasks.recognise import infogan


def test_clusters_are_found_without_labels_and_again_with_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 100)
    centres = np.array([[2.0, 0, 0], [0, 2, 0], [0, 0, 2]])
    x = (centres[labels] + rng.normal(0, 0.2, (300, 3))).astype(np.float32)
    x = (x - x.mean(axis=0)) / x.std()
    found = infogan.classify(x, 3, steps=150)
    assert normalized_mutual_info_score(labels, found) > 0.6
    assert (infogan.classify(x, 3, steps=5) == infogan.classify(x, 3, steps=5)).all()
