"""Autoencoders: the linear start is principal component analysis, and training improves on it; codebooks are used."""

import copy

import pytest
import torch
from torch import Tensor

from diffusion_core import codecs
from diffusion_core.nets.autoencoder import Autoencoder, Codebook, perplexity
from diffusion_core.training import reconstruction
from diffusion_core.training.lr_schedule import TrainConfig
from diffusion_core.training.trainer import Trainer


def pictures(count: int, size: int = 16, seed: int = 0) -> Tensor:
    """Soft discs of random places, sizes and colours: `[count, 3, size, size]` in -1 ... 1."""
    generator = torch.Generator().manual_seed(seed)
    where, colour = torch.rand(count, 3, generator=generator), torch.rand(count, 3, generator=generator) * 2 - 1
    axis = (torch.arange(size) + 0.5) / size
    distance = (axis[None, :, None] - where[:, :1, None]) ** 2 + (axis[None, None] - where[:, 1:2, None]) ** 2
    disc = torch.sigmoid(80 * (0.02 + 0.06 * where[:, 2:, None] - distance))
    return disc[:, None] * colour[:, :, None, None]


def trainer(net: Autoencoder, x: Tensor, steps: int, batch: int = 16) -> Trainer:
    recipe = reconstruction.recipe(0.05)
    config = TrainConfig(
        images=steps * batch, batch=batch, optimiser="muon", learning_rate=2e-3, cooldown_images=steps * batch // 2,
        ema_halflife_images=64, condition_dropout=0.1, seed=1,
    )  # fmt: skip
    return Trainer(recipe.denoiser(net), recipe, config, lambda index: (x[index], {}), len(x))


def test_without_convolutions_it_is_pca() -> None:
    x = pictures(64)
    net = Autoencoder(4, 10, widths=())
    net.start_from_pca(x)
    patches = torch.nn.functional.pixel_unshuffle(x, 4).permute(0, 2, 3, 1).reshape(-1, 48)
    _, values, _ = torch.linalg.svd(patches - patches.mean(0), full_matrices=False)
    best = values[10:].square().sum() / patches.numel()  # Eckart and Young 1936
    assert (net.decode(net.encode(x)) - x).square().mean().item() == pytest.approx(best.item(), rel=1e-3)
    assert net.encode(x).square().mean().item() == pytest.approx(1, rel=1e-3)


def test_the_start_is_that_of_pca_and_training_improves_it_on_held_out_pictures() -> None:
    x, unseen = pictures(256), pictures(64, seed=9)
    net = Autoencoder(4, 8, widths=(16, 32))
    net.start_from_pca(x)
    before = reconstruction.psnr(net.decode(net.encode(unseen)), unseen).mean()
    training = trainer(net, x, 80)
    while not training.done:
        training.step()
    trained = reconstruction.autoencoder(training.averaged())
    assert reconstruction.psnr(trained.decode(trained.encode(unseen)), unseen).mean() > before + 1


@pytest.mark.parametrize("codes", [0, 32])
def test_a_killed_training_goes_on_to_the_same_bits(codes: int) -> None:
    x = pictures(48)

    def fresh() -> Trainer:
        torch.manual_seed(3)
        net = Autoencoder(4, 8, widths=(8, 16), codes=codes)
        net.start_from_pca(x)
        return trainer(net, x, 6)

    whole, first, second = fresh(), fresh(), fresh()
    for _ in range(6):
        whole.step()
    for _ in range(3):
        first.step()
    second.load_state(*copy.deepcopy(first.state()))
    for _ in range(3):
        second.step()
    ended, resumed = whole.state()[0], second.state()[0]
    assert ended.keys() == resumed.keys() and (codes == 0) == (not any("codebook" in name for name in ended))
    assert all(torch.equal(value, resumed[name]) for name, value in ended.items())


def test_latents_are_the_nearest_vectors_and_dead_ones_come_back() -> None:
    book = Codebook(8, 4).train()
    z = torch.randn(16, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    book.vectors[:7] = 100.0  # nothing is near these
    book.counts[:7] = 0.01
    book.sums.copy_(book.vectors * book.counts[:, None])
    book.straight_through(z)
    book.end_step()
    distances = (z.permute(0, 2, 3, 1)[..., None, :] - book.vectors).square().sum(-1)
    assert torch.equal(book.nearest(z), distances.argmin(-1))
    assert perplexity(book.nearest(z), 8) > 4


def test_the_gradient_passes_the_codebook() -> None:
    book = Codebook(8, 4).eval()
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    quantised, _ = book.straight_through(z)
    quantised.sum().backward()
    assert z.grad is not None and torch.equal(z.grad, torch.ones_like(z))
    torch.testing.assert_close(quantised, book(z))


def test_perplexity_is_the_number_of_codes_used_alike() -> None:
    assert perplexity(torch.tensor([0, 1, 2, 3]), 16) == pytest.approx(4)
    assert perplexity(torch.tensor([5, 5, 5]), 16) == pytest.approx(1)


def test_the_codec_centres_channels_and_scales_them_alike() -> None:
    x = pictures(64)
    net = Autoencoder(4, 6, widths=())
    net.start_from_pca(x, power=0)
    codec = codecs.Latent.fit(net, x, 0.5)
    z = codec.encode(x)
    assert z.square().mean().sqrt().item() == pytest.approx(0.5, abs=0.01)
    torch.testing.assert_close(z.std((0, 2, 3)) * codec.scale, net.encode(x).std((0, 2, 3)), atol=0.02, rtol=0)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(6), atol=0.02, rtol=0)
    assert reconstruction.psnr(codec.decode(z), x).mean() > 20


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="power of two"):
        Autoencoder(6)
    with pytest.raises(ValueError, match="widths"):
        Autoencoder(8, widths=(16, 32))
    with pytest.raises(ValueError, match="latents"):
        Autoencoder(2, 13, widths=())
