"""What is measured of a person found in a picture: how sharp and how bright."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tasks.extract.perceptual_hash import grey

_SIDE = 128  # pixels to which a person's longer side is reduced before sharpness is measured


def scores(picture: np.ndarray, landmarks: np.ndarray) -> dict[str, float]:
    """Sharpness and exposure of the person's box in a picture, RGB or grey, uint8 `[height, width(, 3)]`.

    `landmarks`: `[33, >= 2]`, in parts of the picture's width and height. The box around them, cut at the borders, is
    turned grey and its longer side reduced to 128 pixels (never enlarged), so that pictures of all sizes compare.

    sharpness   variance of the 4-neighbour Laplacian, in squared grey levels of 0..255 (Pech-Pacheco et al. 2000);
                an out-of-focus or shaken person has little of it
    exposure    mean grey level, 0 (black) .. 1 (white)
    """
    height, width = picture.shape[:2]
    x = np.clip(landmarks[:, 0] * width, 0, width - 3)
    y = np.clip(landmarks[:, 1] * height, 0, height - 3)
    region = picture[int(y.min()) : int(y.max()) + 3, int(x.min()) : int(x.max()) + 3]
    image = Image.fromarray(np.ascontiguousarray(grey(region)))
    scale = _SIDE / max(image.size)
    if scale < 1:
        side = max(3, round(image.width * scale)), max(3, round(image.height * scale))
        image = image.resize(side, Image.Resampling.BOX)
    levels = np.asarray(image, dtype=np.float32)
    inner = levels[1:-1, 1:-1]
    laplacian = levels[:-2, 1:-1] + levels[2:, 1:-1] + levels[1:-1, :-2] + levels[1:-1, 2:] - 4 * inner
    return {"sharpness": float(laplacian.var()), "exposure": float(levels.mean() / 255)}
