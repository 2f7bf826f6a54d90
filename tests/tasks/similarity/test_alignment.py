"""Alignment: known transforms are recovered, copies are near whatever was done to them, other pictures are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from tasks.similarity.alignment import align, nearest
from tasks.similarity.candidates import candidates
from tasks.similarity.gallery import Gallery, descriptors, gallery
from tasks.synthetic import stage as mannequin

COUNT = 16
NEAR = 0.15  # distance that disguised copies of figures stay below; other figures are above 0.25


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [Image.fromarray(mannequin.picture(5, i, 128).image) for i in range(COUNT)]


@pytest.fixture(scope="module")
def originals(pictures: list[Image.Image]) -> Gallery:
    return made_ready(pictures)


def made_ready(pictures: list[Image.Image]) -> Gallery:
    return gallery(np.asarray(picture) for picture in pictures)


def jpeg(picture: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=20)
    return Image.open(stream).convert("RGB")


def turned(picture: Image.Image, degrees: float) -> Image.Image:
    """Turned, and the largest centred part that has no empty corners (of a square)."""
    radians = np.radians(abs(degrees))
    part = picture.width / (np.cos(radians) + np.sin(radians))
    low, high = round((picture.width - part) / 2), round((picture.width + part) / 2)
    return picture.rotate(degrees, Image.Resampling.BICUBIC).crop((low, low, high, high))


def noisy(picture: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 10, (picture.height, picture.width, 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def balanced(picture: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(picture) * [0.8, 1.0, 1.2]).clip(0, 255).astype(np.uint8))


DISGUISES = {
    "mirrored": ImageOps.mirror,
    "encoded": jpeg,
    "cut by 10 % at one corner": lambda one: one.crop((0, 0, 115, 115)),
    "a part of another shape": lambda one: one.crop((0, 6, 128, 110)),
    "turned": lambda one: turned(one, 5),
    "turned far": lambda one: turned(one, -12),
    "darker": lambda one: ImageEnhance.Brightness(one).enhance(0.7),
    "brighter": lambda one: ImageEnhance.Brightness(one).enhance(1.4),
    "white balance": balanced,
    "grey": lambda one: one.convert("L"),
    "noise": noisy,
    "blurred": lambda one: one.filter(ImageFilter.GaussianBlur(2)),
    "mirrored, cut, turned, encoded": lambda one: jpeg(turned(ImageOps.mirror(one).crop((8, 0, 128, 120)), 4)),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_disguised_copy_is_nearest_to_its_original(disguise: str, pictures: list[Image.Image], originals: Gallery):
    found = nearest(made_ready([DISGUISES[disguise](one) for one in pictures]), originals)
    assert found.index[:, 0].tolist() == list(range(COUNT))
    assert float(found.distance[:, 0].max()) < NEAR
    assert float(found.distance[:, 1].min()) > 0.25
    assert found.alignments.mirrored[:, 0].all() == ("mirrored" in disguise)


def test_figures_in_similar_rooms_are_not_near(originals: Gallery) -> None:
    own = torch.arange(COUNT)
    found = nearest(originals, originals, groups=(own, own))
    assert (found.index != own[:, None]).all()
    assert float(found.distance.min()) > 0.25


def test_a_picture_has_no_distance_to_itself(originals: Gallery) -> None:
    found = nearest(originals, originals, k=1)
    assert found.index[:, 0].tolist() == list(range(COUNT))
    assert float(found.distance.abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("zoom", "degrees", "dx", "dy"), [(1.0, 0.0, 0.08, -0.05), (0.9, 6.0, 0.0, 0.06), (1.0, -10, 0, 0)]
)
def test_a_known_transform_is_recovered(zoom: float, degrees: float, dx: float, dy: float) -> None:
    # A smooth random pattern, large enough that its part has no empty corners.
    pattern = np.random.default_rng(1).normal(size=(48, 48)) * 40 + 128
    large = Image.fromarray(pattern.clip(0, 255).astype(np.uint8)).resize((768, 768), Image.Resampling.BICUBIC)
    side, middle = 480, 768 / 2
    reference = large.crop((144, 144, 144 + side, 144 + side))
    # The query's pixel at z, in halves of its side from its middle, shows the reference at zoom e^(i angle) z + shift.
    c = zoom * np.exp(1j * np.radians(degrees))
    x0, y0 = (middle + side / 2 * v for v in (dx, dy))
    half = side / 2
    matrix = (c.real, -c.imag, x0 - half * (c.real - c.imag), c.imag, c.real, y0 - half * (c.imag + c.real))
    query = large.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    found = nearest(made_ready([query]), made_ready([reference]), k=1).alignments
    assert float(found.distance) < 0.03
    assert float(found.scale) == pytest.approx(zoom, abs=0.01)
    assert float(found.angle) == pytest.approx(degrees, abs=0.5)
    assert found.shift.flatten().tolist() == pytest.approx([dx, dy], abs=0.01)


@pytest.mark.parametrize(("zoom", "shift"), [(0.96, -0.04), (0.94, -0.05), (0.92, -0.08)])
def test_a_view_that_undoes_half_of_a_cut_is_like_the_original(
    zoom: float, shift: float, pictures: list[Image.Image], originals: Gallery
) -> None:
    # Cut by 10 % at two sides, a picture lies in its original with a zoom of 0.9 and a shift of -0.1 in both directions.
    cut = made_ready([picture.crop((0, 0, 115, 115)) for picture in pictures])
    own = descriptors(originals.luma, originals.extent)
    cosine = (descriptors(cut.luma, cut.extent, torch.tensor([zoom, 0, shift, shift])) * own).sum(1)
    as_it_is = (descriptors(cut.luma, cut.extent) * own).sum(1)
    assert float(cosine.min()) > 0.75
    assert (cosine > as_it_is).all()


def test_candidates_are_of_other_groups_and_fewer_than_asked_where_there_are_no_more(originals: Gallery) -> None:
    groups = torch.arange(COUNT) % 4
    also = torch.stack([groups, (groups + 1) % 4], dim=1)
    index, _ = candidates(originals, originals, k=12, groups=(also, groups))
    there = index >= 0
    assert there.sum(1).tolist() == [8] * COUNT
    assert ((groups[index] - groups[:, None]) % 4 >= 2)[there].all()
    everywhere = torch.zeros(COUNT, dtype=torch.int64)
    found = nearest(originals, originals, groups=(everywhere, everywhere))
    assert (found.index == -1).all()
    assert (found.distance == 2).all()


def test_a_pair_does_not_depend_on_the_pairs_beside_it(originals: Gallery) -> None:
    rows, columns = torch.arange(COUNT), (torch.arange(COUNT) + 3) % COUNT
    flipped = rows % 2 == 0
    together = align(originals, originals, rows, columns, flipped)
    for i in (0, 7):
        alone = align(originals, originals, rows[i : i + 1], columns[i : i + 1], flipped[i : i + 1])
        assert float(alone[0]) == pytest.approx(float(together[0][i]), abs=1e-4)
    again = align(originals, originals, rows, columns, flipped)
    assert torch.equal(again[0], together[0])


def test_a_picture_of_one_colour_is_near_nothing(originals: Gallery) -> None:
    plain = gallery([np.full((64, 64, 3), 90, np.uint8)])
    found = nearest(plain, originals)
    assert float(found.distance.min()) > 0.5
    assert np.isfinite(found.distance).all()


def test_no_pictures_at_all(originals: Gallery) -> None:
    nobody = gallery([])
    assert nearest(nobody, originals).index.shape == (0, 2)
    assert (nearest(originals, nobody).index == -1).all()
    assert align(nobody, nobody, *(torch.zeros(0, dtype=torch.int64),) * 2, torch.zeros(0) > 0)[0].shape == (0,)
