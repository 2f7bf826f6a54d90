import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_workspace import make, poses

from tasks import fidelity
from tasks.copies.views import joints
from tasks.distances import torch_fidelity_bridge as bridge
from tasks.distances.distance import frechet_of, kid
from tasks.distances.precision_recall import precision_recall_density_coverage
from tasks.errors import UserError
from tasks.files import read_json
from tasks.params import load


def test_our_frechet_distance_is_torch_fidelitys_with_many_samples_and_with_few() -> None:
    for n, m, tolerance in ((400, 300, 1e-6), (60, 50, 1e-5)):
        x, y = poses(n, 0), poses(m, 1)
        assert frechet_of(joints(x), joints(y)) == pytest.approx(bridge.frechet_pose_distance(x, y), rel=tolerance)


def test_our_kernel_distance_and_precision_are_torch_fidelitys() -> None:
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


class Intruder:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_weights_that_are_not_weights_are_refused_and_never_executed(tmp_path: Path) -> None:
    weights, mark = tmp_path / "weights.pth", tmp_path / "mark"
    with pytest.raises(UserError, match=r"weights.pth does not exist"):
        bridge.load_inception(weights, "0" * 64)
    for intruder in (pickle.dumps(Intruder(mark)), b"not even a pickle", b""):
        weights.write_bytes(intruder)
        with pytest.raises(UserError, match="does not hold the tensors"):
            bridge.load_inception(weights, sha256(weights))
    torch.save({"weights": Intruder(mark)}, weights)
    with pytest.raises(UserError, match="does not hold the tensors"):
        bridge.load_inception(weights, sha256(weights))
    torch.save({"fc.bias": torch.zeros(3)}, weights)
    with pytest.raises(UserError, match="does not hold the tensors"):
        bridge.load_inception(weights, sha256(weights))
    with pytest.raises(UserError, match=r"has sha256 .* and inception_sha256 says"):
        bridge.load_inception(weights, "0" * 64)
    assert not mark.exists()


@pytest.mark.slow
def test_inception_metrics_appear_when_weights_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    with monkeypatch.context() as patch:  # random weights in the file's form, since the real ones are a download
        patch.setattr(inception, "load_state_dict_from_url", lambda url, progress: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        random = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    weights = tmp_path / "inception.pth"
    torch.save(random.state_dict(), weights)
    params = load(Path(__file__).parents[1] / "params.yaml")
    given = {"inception_weights": "inception.pth", "inception_sha256": sha256(weights)}
    params = params.model_copy(update={"fidelity": params.fidelity.model_copy(update=given)})
    make(tmp_path, 24, 12, 10, 24, 24)
    fidelity.run(params, tmp_path)
    found = read_json(tmp_path / "reports/fidelity/fidelity.json")
    assert "pictures.kid" in found["metrics"] and "pictures.inception_score" in found["metrics"]
    assert "needs at least 4096 samples" in found["absent"]["pictures.fid"]
