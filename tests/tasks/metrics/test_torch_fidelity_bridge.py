import numpy as np
import pytest

from tasks.metrics import torch_fidelity_bridge as bridge
from tasks.metrics.features import joints
from tasks.metrics.frechet import frechet_of
from tasks.metrics.kid import kid
from tasks.metrics.precision_recall import precision_recall_density_coverage
from tests.support.evaluation_workspace import poses


def test_our_frechet_distance_equals_torch_fidelity_with_many_samples_and_with_few() -> None:
    for n, m, tolerance in ((400, 300, 1e-6), (60, 50, 1e-5)):
        x, y = poses(n, 0), poses(m, 1)
        assert frechet_of(joints(x), joints(y)) == pytest.approx(bridge.frechet_pose_distance(x, y), rel=tolerance)


def test_our_kernel_distance_and_precision_equal_torch_fidelity() -> None:
    from torch_fidelity import calculate_metrics

    x, y = poses(300, 0), poses(300, 1) + np.float32(0.02)
    bridge._register_pose_extractor()
    theirs = calculate_metrics(
        input1=bridge._Rows(x),
        input2=bridge._Rows(y),
        kid=True,
        prc=True,
        kid_subsets=1,
        kid_subset_size=300,
        feature_extractor=bridge.POSE_EXTRACTOR,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert kid(joints(x), joints(y)).value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)
    ours = precision_recall_density_coverage(joints(x), joints(y))
    assert (ours.precision, ours.recall) == pytest.approx((theirs["precision"], theirs["recall"]))
