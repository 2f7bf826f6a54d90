"""Procedural pictures with detail at all scales, of any proportions, for the tests of alignment and of certificates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def photo(seed: int, width: int = 96, height: int = 72) -> np.ndarray:
    """A picture uint8 `[height, width, 3]`: coloured noise with a spectrum like that of photographs."""
    rng = np.random.default_rng([seed, 77])
    layers = np.zeros((height, width, 3))
    for cells in (3, 6, 12, 24):
        coarse = rng.normal(size=(cells, cells, 3)).astype(np.float32)
        bands = [Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
        layers += np.stack([np.asarray(band) for band in bands], axis=-1) / cells**0.5
    layers = (layers - layers.mean()) / layers.std()
    return np.clip(128 + 48 * layers, 0, 255).astype(np.uint8)


def write(folder: Path, pictures: dict[str, np.ndarray]) -> None:
    """Save pictures under their names, relative to the folder."""
    for name, picture in pictures.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
