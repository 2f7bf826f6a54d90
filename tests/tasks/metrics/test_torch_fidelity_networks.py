import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms.functional import normalize, resize

from tasks import paths
from tasks.common.errors import UserError
from tasks.common.files import read_json
from tasks.config.params import Params, Weights
from tasks.config.params import load as load_params
from tasks.dataset.shards import ShardDataset
from tasks.evaluate import fidelity
from tasks.metrics import torch_fidelity_networks
from tasks.metrics.dinov2 import Dinov2
from tasks.metrics.picture_metrics import inception_score
from tasks.metrics.torch_fidelity_networks import load
from tests.support.evaluation_workspace import make
from tests.support.project import PROJECT


def write(root: Path, name: str, tensors: Mapping[str, Tensor]) -> Weights:
    path = root / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return Weights(source=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def random_dinov2() -> Dinov2:
    torch.manual_seed(0)
    network = Dinov2(128, 2, 9, 14)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
    return network.eval()


def random_clip() -> dict[str, Tensor]:
    """Weights in the form of OpenAI's files: the picture side, and of the text side what tells its width."""
    from torch_fidelity.feature_extractor_clip import CLIPVisual

    torch.manual_seed(1)
    network = CLIPVisual(24, 32, 1, 64, 16)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
    return {**network.state_dict(), "text_projection": torch.zeros(8, 24), "logit_scale": torch.ones(())}


def pictures(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 20, 20, 3)).astype(np.uint8)


def test_dinov2_is_loaded_and_its_pictures_are_prepared_as_in_torch_fidelity(tmp_path: Path) -> None:
    network = random_dinov2()
    weights = write(tmp_path, "dinov2", network.state_dict())
    found = load("dinov2", weights, tmp_path)(pictures(35))["features"]
    assert found.shape == (35, 128) and found.dtype == np.float32
    smooth = np.full((1, 20, 20, 3), (10, 120, 250), np.uint8)  # the same after any resizing
    prepared = resize(torch.from_numpy(smooth).permute(0, 3, 1, 2).float() / 255, [224, 224])
    with torch.no_grad():
        expected = network(normalize(prepared, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    ours = load("dinov2", weights, tmp_path)(smooth)["features"]
    np.testing.assert_allclose(ours, expected.numpy(), atol=2e-5)


def test_positions_of_dinov2_are_interpolated_only_at_other_sizes() -> None:
    network = random_dinov2()
    with torch.no_grad():
        assert torch.equal(network._positions(3, 3), network.pos_embed)
        ramp = torch.arange(3.0).repeat_interleave(3)[:, None].expand(9, 128)  # counts the rows of patches
        network.pos_embed[0, 1:] = ramp
        grid = network._positions(6, 9)[0, 1:, 0].unflatten(0, (6, 9))
    assert torch.equal(network._positions(6, 9)[:, 0], network.pos_embed[:, 0])
    torch.testing.assert_close(grid, grid[:, :1].expand(6, 9))
    assert (grid[:, 0].diff() > 0).all() and grid[2:4, 0].mean() == pytest.approx(1, abs=0.05)


def test_the_size_of_clip_follows_from_its_weights(tmp_path: Path) -> None:
    weights = write(tmp_path, "clip", random_clip())
    network = load("clip", weights, tmp_path)
    found = network(pictures(3))["features"]
    assert found.shape == (3, 24) and np.isfinite(found).all()
    assert np.abs(found[0] - found[1]).max() > 1e-3
    np.testing.assert_allclose(network(pictures(3)[2:])["features"], found[2:], atol=1e-5)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    clip = write(tmp_path, "clip", random_clip())
    for name in ("dinov2", "inception"):
        with pytest.raises(UserError, match=rf"fidelity\.{name}: clip\.safetensors does not hold the weights of"):
            load(name, clip, tmp_path)
    with pytest.raises(UserError, match=r"fidelity\.clip: dinov2\.safetensors does not hold the weights of CLIP"):
        load("clip", write(tmp_path, "dinov2", random_dinov2().state_dict()), tmp_path)


def params(**weights: Weights) -> Params:
    ours = load_params(PROJECT / "params.yaml")
    return ours.model_copy(update={"fidelity": ours.fidelity.model_copy(update=weights)})


def test_the_stage_measures_in_the_networks_that_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, 24, 12, 10, 24, 24)
    ours = params(clip=write(tmp_path, "clip", random_clip()))
    fidelity.run(ours, tmp_path)
    found = read_json(tmp_path / "reports/fidelity/fidelity.json")
    assert {"pictures.clip_kernel_distance", "pictures.clip_kernel_distance_floor", "pictures.clip.precision"} <= set(
        found["metrics"]
    )
    assert "needs at least 48 samples on each side" in found["absent"]["pictures.clip_frechet_distance_corrected"]
    assert (
        found["metrics"]["pictures.clip_frechet_distance"]
        > 0
        < found["metrics"]["pictures.clip_frechet_distance_floor"]
    )
    assert found["notes"]["pictures.clip_frechet_distance"].startswith("plain value of 24 and 22 pictures")
    assert "fidelity.dinov2 is not given" in found["absent"]["pictures.dinov2_frechet_distance"]
    kept = sorted(path.name for path in (tmp_path / paths.FEATURES).iterdir())
    assert len(kept) == 3
    monkeypatch.setattr("torch_fidelity.feature_extractor_clip.FeatureExtractorCLIP.forward", None)
    fidelity.run(ours, tmp_path)  # nothing is computed again
    assert read_json(tmp_path / "reports/fidelity/fidelity.json") == found
    assert sorted(path.name for path in (tmp_path / paths.FEATURES).iterdir()) == kept


def test_wrong_weights_leave_the_last_report_alone(tmp_path: Path) -> None:
    make(tmp_path, 24, 12, 10, 24, 24)
    given = write(tmp_path, "clip", random_clip())
    with pytest.raises(UserError, match="sha256 mismatch"):
        fidelity.run(params(clip=Weights(source=given.source, sha256="0" * 64)), tmp_path)
    assert not (tmp_path / "reports/fidelity").exists()


def test_inception_score_is_the_number_of_classes_that_are_told_apart() -> None:
    assert inception_score(np.eye(8) * 50) == pytest.approx(8, rel=1e-6)
    assert inception_score(np.zeros((8, 5))) == pytest.approx(1)


class SmallInception(nn.Module):
    """Random features and logits of pictures `[n, 3, h, w]`, the outputs of Inception-v3 in small."""

    def __init__(self) -> None:
        super().__init__()
        self.project = torch.randn(48, 20, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = (nn.functional.adaptive_avg_pool2d(x / 255, 4).flatten(1) @ self.project).relu()
        return features, features[:, :5]


def torch_fidelity_fid(x: np.ndarray, y: np.ndarray) -> float:
    """torch-fidelity's own number for these features."""
    from torch_fidelity import metric_fid

    statistics = [metric_fid.fid_features_to_statistics(torch.from_numpy(features)) for features in (x, y)]
    return float(metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"])


def test_the_plain_fid_equals_torch_fidelity_and_is_reported_with_the_corrected_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(torch_fidelity_networks.BUILDERS, "inception", lambda tensors: SmallInception())
    given = write(tmp_path, "inception", {"any": torch.zeros(1)})
    make(tmp_path, 60, 20, 20, 24, 48)
    fidelity.run(params(inception=given), tmp_path)
    report = read_json(tmp_path / "reports/fidelity/fidelity.json")
    metrics = report["metrics"]
    network = load("inception", given, tmp_path)
    generated = network(ShardDataset(tmp_path / "samples/pictures", "samples").pictures_uint8(64))["features"]
    train, val, test = (
        network(ShardDataset(tmp_path / "data/shards", split).pictures_uint8(64))["features"]
        for split in ("train", "val", "test")
    )
    heldout = np.concatenate([val, test])
    assert metrics["pictures.fid"] == pytest.approx(torch_fidelity_fid(generated, heldout), rel=1e-6)
    assert metrics["pictures.fid_floor"] == pytest.approx(torch_fidelity_fid(train[:48], heldout), rel=1e-6)
    assert report["notes"]["pictures.fid"].startswith("plain value of 48 and 40 pictures, biased upwards")
    low, value, high = (metrics[f"pictures.fid_corrected{end}"] for end in ("_low", "", "_high"))
    assert low < value < high and value < metrics["pictures.fid"]


def test_with_few_pictures_only_the_plain_fid_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torch_fidelity_networks.BUILDERS, "inception", lambda tensors: SmallInception())
    make(tmp_path, 24, 12, 10, 24, 24)
    fidelity.run(params(inception=write(tmp_path, "inception", {"any": torch.zeros(1)})), tmp_path)
    report = read_json(tmp_path / "reports/fidelity/fidelity.json")
    assert report["metrics"]["pictures.fid"] > 0
    assert "needs at least 40 samples" in report["absent"]["pictures.fid_corrected"]


def random_inception(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Random weights in the file's form, since the real ones are a download."""
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda url, progress: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        return inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).state_dict()


@pytest.mark.slow
def test_inception_metrics_appear_when_weights_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "inception.pth"
    torch.save(random_inception(monkeypatch), path)
    given = Weights(source=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    make(tmp_path, 24, 12, 10, 24, 24)
    fidelity.run(params(inception=given), tmp_path)
    found = read_json(tmp_path / "reports/fidelity/fidelity.json")
    assert {"pictures.kid", "pictures.kid_floor", "pictures.inception_score"} <= found["metrics"].keys()
    assert "needs at least 4096 samples" in found["absent"]["pictures.fid_corrected"]
    assert found["notes"]["pictures.fid"].startswith("plain value of 24 and 22 pictures, biased")


@pytest.mark.slow
def test_our_inception_equals_that_of_torch_fidelity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own constructor, which reads the same file by itself, gives the same features."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path / "inception.pth"
    torch.save(random_inception(monkeypatch), path)
    given = Weights(source=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    rows = torch.from_numpy(pictures(2)).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(load("inception", given, tmp_path)(pictures(2))["features"], theirs(rows)[0].numpy())


@pytest.mark.slow
def test_features_of_vgg_are_its_second_fully_connected_layer(tmp_path: Path) -> None:
    import torchvision

    network = torchvision.models.vgg16(weights=None).eval()
    found = load("vgg", write(tmp_path, "vgg", network.state_dict()), tmp_path)(pictures(2))["features"]
    assert found.shape == (2, 4096) and found.min() >= 0 and found.std() > 0
