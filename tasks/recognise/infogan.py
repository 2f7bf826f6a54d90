"""Unsupervised classification with a GAN (InfoGAN): categories without labels.

A generator turns noise and a random category into features; a discriminator tells them from real ones, and a head on its trunk
guesses the category back. What the head learns to tell apart in generated features, it tells apart in real ones.

References:
    Chen et al. 2016, "InfoGAN: Interpretable Representation Learning by Information Maximizing Generative Adversarial Nets".
    Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks".
    Springenberg 2016, "Unsupervised and Semi-supervised Learning with Categorical Generative Adversarial
        Networks" (the entropies).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

NOISE = 16  # numbers beside the category
WIDTH = 128
BATCH = 128
LEARNING_RATE = 5e-4
ENTROPY = 0.5  # weight of: be sure about each real example, and use all categories equally often


def classify(features: np.ndarray, classes: int, steps: int = 1500, seed: int = 0) -> np.ndarray:
    """The category int64 `[n]` that the head gives each row of features `[n, d]`, whose average variance should be about 1."""
    x = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = _perceptron(NOISE + classes, x.shape[1])
        trunk = nn.Sequential(
            spectral_norm(nn.Linear(x.shape[1], WIDTH)), nn.LeakyReLU(0.2),
            spectral_norm(nn.Linear(WIDTH, WIDTH)), nn.LeakyReLU(0.2),
        )  # fmt: skip
        judge, guess = spectral_norm(nn.Linear(WIDTH, 1)), nn.Linear(WIDTH, classes)
        betas = (0.5, 0.999)
        made = torch.optim.Adam([*generator.parameters(), *guess.parameters()], LEARNING_RATE, betas=betas)
        judged = torch.optim.Adam(
            [*trunk.parameters(), *judge.parameters(), *guess.parameters()], LEARNING_RATE, betas=betas
        )
        for _ in range(steps):
            category = torch.randint(classes, (BATCH,))
            code = torch.cat([torch.randn(BATCH, NOISE), functional.one_hot(category, classes).float()], dim=1)
            real, fake = x[torch.randint(len(x), (BATCH,))], generator(code)
            hidden = trunk(torch.cat([real, fake.detach()]))
            verdict = judge(hidden)[:, 0]
            loss = functional.relu(1 - verdict[:BATCH]).mean() + functional.relu(1 + verdict[BATCH:]).mean()
            loss = loss + functional.cross_entropy(guess(hidden[BATCH:]), category)
            loss = loss + ENTROPY * _indecision(guess(hidden[:BATCH]))
            judged.zero_grad()
            loss.backward()
            judged.step()
            hidden = trunk(fake)
            loss = -judge(hidden).mean() + functional.cross_entropy(guess(hidden), category)
            made.zero_grad()
            loss.backward()
            made.step()
        trunk.eval()
        with torch.no_grad():
            return np.asarray(guess(trunk(x)).argmax(dim=1).numpy())


def _indecision(logits: Tensor) -> Tensor:
    """The entropy of each example's categories, less that of all examples together."""
    chances = logits.softmax(dim=1)
    each = -(chances * logits.log_softmax(dim=1)).sum(dim=1).mean()
    together = chances.mean(dim=0)
    return each + (together * together.clamp(min=1e-8).log()).sum()


def _perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs)
    )
