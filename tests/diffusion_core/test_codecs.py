"""The affine codecs: statistics, round trip and errors."""

import pytest
import torch

from diffusion_core.codecs import Affine, Sharpened
from tasks.common.errors import DataError
from tasks.models import inputs

X0 = torch.randn(500, 3, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 3, 4]) + 7


@pytest.mark.parametrize("per_coordinate", [True, False])
def test_encoding_normalises_and_decoding_inverts_it(per_coordinate):
    codec = Affine.fit(X0, 0.5, per_coordinate)
    z = codec.encode(X0)
    assert float(z.square().mean().sqrt()) == pytest.approx(0.5)
    assert float((z.mean(0) if per_coordinate else z.mean()).abs().max()) < 1e-5
    torch.testing.assert_close(codec.decode(z), X0)


def test_all_distances_are_scaled_alike():
    """Coordinates keep their different standard deviations."""
    z = Affine.fit(X0, 0.5, True).encode(X0).flatten(1)
    ratio = torch.pdist(z[:20]) / torch.pdist(X0[:20].flatten(1))
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


def test_equal_examples_raise():
    with pytest.raises(ValueError, match="no scale"):
        Affine.fit(torch.ones(5, 3), 0.5, True)
    with pytest.raises(DataError, match="nothing to learn"):
        inputs.fit_codec(torch.ones(5, 3), True)


def test_sharpened_clips_weigh_velocities_and_keep_constants():
    clips = torch.randn(50, 9, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).cumsum(1)
    codec = Sharpened.of(clips, 0.5, gain=4.0)
    z = codec.encode(clips)
    assert float(z.square().mean().sqrt()) == pytest.approx(0.5)
    torch.testing.assert_close(codec.decode(z), clips)
    error = torch.randn(1, 9, 3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + clips[:1]
    apart = (codec.encode(error) - z[:1]) * codec.scale
    step = error - clips[:1]
    assert float(apart.square().sum()) == pytest.approx(
        float(step.square().sum() + 16 * step.diff(dim=1).square().sum())
    )
    still = clips[:, 0]
    constant = still[:, None].expand(-1, 9, -1, -1)
    torch.testing.assert_close(codec.encode(constant), codec.encode(still)[:, None].expand(-1, 9, -1, -1))
    with pytest.raises(ValueError, match="no scale"):
        Sharpened.of(torch.ones(5, 4, 3, 2), 0.5, 1.0)
