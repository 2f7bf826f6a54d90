"""Which pixels of a crop are padding: the map is right for every square, whatever its place and size."""

import numpy as np
import pytest
import torch

from tasks.dataset.crop import crop, real_part
from tasks.dataset.padding import any_padding, padding_maps


def _meta(part: tuple[float, float, float, float] | None) -> dict[str, object]:
    return {} if part is None else {"real": part}


@pytest.mark.parametrize("size", [16, 24])
def test_what_the_map_calls_real_shows_the_picture(size: int) -> None:
    """The picture is cut out of a canvas: where the crop is real, it shows the canvas."""
    rng = np.random.default_rng(0)
    canvas = rng.integers(0, 256, (200, 200, 3), np.uint8)
    top, left, height, width = 60, 70, 60, 50
    picture = canvas[top : top + height, left : left + width]
    for _ in range(30):
        side = int(rng.integers(30, 80))
        x0, y0 = (int(value) for value in rng.integers(-20, 20, 2))
        padding = padding_maps([_meta(real_part(height, width, x0, y0, side))], size)[0, 0].bool().numpy()
        shown = crop(picture, x0, y0, side, size).astype(int)
        whole = crop(canvas, x0 + left, y0 + top, side, size).astype(int)
        # Lanczos reaches three pixels of the reduced picture, with little weight beyond the first
        assert np.abs(shown - whole)[~padding].max(initial=0) <= 30
        inside = np.zeros((200, 200))
        inside[top : top + height, left : left + width] = 1
        share = 1 - inside[y0 + top : y0 + top + side, x0 + left : x0 + left + side].mean()
        assert share - 0.02 <= padding.mean() <= share + 4 * 1.5 / size


def test_a_crop_inside_its_picture_has_no_padding() -> None:
    assert real_part(100, 100, 0, 0, 100) is None and real_part(100, 100, 10, 20, 30) is None
    assert not any_padding([{}, {}]) and any_padding([{}, {"real": [0, 0.1, 1, 1]}])
    assert not padding_maps([{}], 8).any()
    band = padding_maps([{"real": [0.0, 0.25, 1.0, 1.0]}], 8)[0, 0]
    assert torch.equal(band[:, 0], torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0])) and torch.equal(
        band, band[:, :1] * torch.ones(1, 8)
    )
