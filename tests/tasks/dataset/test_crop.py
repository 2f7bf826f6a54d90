"""The square around a person: it contains everything, is not stretched, and is reflected at borders."""

import numpy as np

from tasks.dataset.crop import crop, square


def test_square_holds_every_landmark_with_its_margin() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        landmarks = rng.uniform(-50, 300, (33, 2))
        x0, y0, side = square(landmarks, 0.15)
        extent = (landmarks.max(axis=0) - landmarks.min(axis=0)).max()
        assert side >= 1.3 * extent - 1
        assert landmarks.min() >= min(x0, y0) and (landmarks.max(axis=0) <= np.array([x0, y0]) + side).all()


def test_inside_the_picture_a_crop_is_the_region() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)
    assert np.array_equal(crop(picture, 30, 20, 40, 40), picture[20:60, 30:70])


def test_a_circle_stays_round_at_the_border() -> None:
    y, x = np.mgrid[:100, :200]
    picture = np.repeat((((x - 20) ** 2 + (y - 50) ** 2 < 15**2) * 255).astype(np.uint8)[..., None], 3, axis=2)
    out = crop(picture, -60, -30, 160, 80)[..., 0] > 127
    columns, rows = np.flatnonzero(out[:, 30:].any(axis=0)), np.flatnonzero(out.any(axis=1))
    disc = out[35:46]
    assert abs(disc[:, 40].sum() - 11) <= 1  # x = 20 lies at column 40, the middle of the disc
    assert len(columns) <= 26 and len(rows) <= 80


def test_the_outside_is_smooth_and_the_inside_unchanged() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (40, 40, 3), np.uint8)
    out = crop(picture, -20, 0, 60, 60)
    assert np.array_equal(out[:40, 20:], picture)
    flat = np.full((40, 40, 3), 77, np.uint8)
    assert (crop(flat, -20, -20, 80, 80) == 77).all()
    assert out[:, :20].std() < 0.3 * picture.std()
    assert crop(picture[:1, :1], -5, -5, 30, 30).shape == (30, 30, 3)
