"""Image quality of a detected person: sharpness and exposure."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tasks.extract.perceptual_hash import grey

_SIDE = 128  # pixels to which a person's longer side is reduced before sharpness is measured


def scores(picture: np.ndarray, landmarks: np.ndarray) -> dict[str, float]:
    """Sharpness and exposure of the person's box in a picture, RGB or grey, uint8 `[height, width(, 3)]`.

    `landmarks`: `[33, >= 2]`, x and y as fractions of the picture's width and height. The box around them, clipped to the
    picture, is converted to grey and reduced so that its longer side is at most 128 pixels, which makes pictures of all
    sizes comparable.

    sharpness   variance of the 4-neighbour Laplacian, in squared grey levels of 0..255 (Pech-Pacheco et al. 2000);
                low for out-of-focus and motion-blurred persons
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
