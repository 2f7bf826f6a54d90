"""The generated pictures at the top of the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.config.params import Params, load
from tasks.dataset.shards import ShardDataset
from tasks.evaluate import stored_poses
from tasks.plots import drawing
from tasks.report import generated
from tests.support.evaluation_workspace import make
from tests.support.workspaces import write_params


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated")
    make(root, 12, 4, 2, 4, 6)
    return root


@pytest.fixture(scope="module")
def params(root: Path) -> Params:
    return load(write_params(root))


@pytest.fixture
def captions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The captions of the sheets that are drawn."""
    drawn: list[str] = []
    sheet = drawing.sheet

    def spy(pictures, columns, captions=None, caption_size=10):
        drawn.extend(captions)
        return sheet(pictures, columns, captions, caption_size)

    monkeypatch.setattr(drawing, "sheet", spy)
    return drawn


def test_each_picture_is_beside_its_pose_with_what_was_read(
    root: Path, params: Params, tmp_path: Path, captions: list[str]
) -> None:
    keys, poses = stored_poses.read(root)
    moved = poses.copy()
    moved[1, [13, 14, 15]] += 0.5  # three limb joints
    stored_poses.write(root / "reports/pose_accuracy", keys, moved)
    figure = generated.opening(params, root, tmp_path)
    stored_poses.write(root / "reports/pose_accuracy", keys, poses)
    assert figure is not None
    assert captions[::2] == ["asked for: stand"] * 6
    assert captions[1::2] == ["12 of 12 joints within 0.2 torso", "9 of 12 joints within 0.2 torso",
                              *["12 of 12 joints within 0.2 torso"] * 3, "nobody found"]  # fmt: skip
    with Image.open(tmp_path / "generated.png") as image:
        sheet = np.asarray(image)
    first = ShardDataset(root / "samples/pictures", "samples").picture(0)
    second = sheet[4 : 4 + generated.LARGE, 8 + generated.LARGE : 8 + 2 * generated.LARGE]
    assert np.array_equal(second, drawing.smooth(first, generated.LARGE))


def test_without_samples_there_is_no_opening(root: Path, params: Params, tmp_path: Path) -> None:
    keys, poses = stored_poses.read(root)
    stored_poses.write(root / "reports/pose_accuracy", [], poses[:0])
    assert generated.opening(params, root, tmp_path) is None
    stored_poses.write(root / "reports/pose_accuracy", keys, poses)


def test_real_and_generated_pictures_of_a_category_are_in_one_row(
    root: Path, tmp_path: Path, captions: list[str]
) -> None:
    assert len(generated.by_category(root, tmp_path)) == 1
    assert captions == ["stand, real"] * 5 + ["stand, generated"] * 5
