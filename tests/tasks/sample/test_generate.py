"""Samples on demand: what is kept shows what was asked for, and says so in formats that others read."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks import paths
from tasks.common.errors import DataError, UserError
from tasks.common.skeleton import LANDMARKS
from tasks.config.params import Generate, load
from tasks.dataset.shards import ShardDataset
from tasks.registry import model_registry
from tasks.registry.tracking import Store
from tasks.sample import coco, generate
from tasks.sample.requests import Artist
from tests.support.project import PROJECT
from tests.support.workspaces import write_params, write_shards, write_untrained


def test_a_joint_is_correct_by_its_distance_in_the_image_plane() -> None:
    asked = np.zeros((3, 33, 3), np.float32)
    read = asked.copy()
    read[0, :, 2] = 9  # depth does not count
    read[1, [11, 12, 13], 0] = 0.6  # three of the twelve
    read[2] = np.nan  # nobody was found
    np.testing.assert_allclose(generate.right_joints(read, asked, 0.5), [1, 0.75, 0])


@dataclass
class Registered:
    """A workspace with untrained champions."""

    root: Path
    artist: Artist


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    root = tmp_path_factory.mktemp("registered")
    changes: dict[str, Any] = {
        "extract__model": str(PROJECT / "models/pose_landmarker_full.task"),
        "extract__workers": 1,
    }
    params = load(write_params(root, **changes))
    write_shards(root)
    store = Store(params.tracking, root)
    numbers = {}
    for model in paths.MODELS:
        write_untrained(root, params, model)
        numbers[model] = store.register(model, paths.model_folder(root, model), paths.model_sha256(root, model), "")
    model_registry.make_champions(store, numbers)
    return Registered(root, Artist(*(paths.model_folder(root, model) for model in paths.MODELS)))


class Judge:
    """Reads the pose that was asked for from every `each`-th picture, and nobody from the others."""

    def __init__(self, artist: Artist, wish: Generate, each: int) -> None:
        self.artist, self.wish, self.each, self.seen = artist, wish, each, 0

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        numbers = range(self.seen, self.seen + len(pictures))
        asked = [self.artist.categories[i % 2] for i in numbers]
        poses = generate._drawn(self.artist, self.wish, asked, numbers).poses
        self.seen += len(pictures)
        poses[[i % self.each != 0 for i in numbers]] = np.nan
        return poses


def test_samples_are_drawn_until_enough_are_kept(registered: Registered, monkeypatch: pytest.MonkeyPatch) -> None:
    wish = Generate(count=5, steps=2, guidance=1.0)
    monkeypatch.setattr(generate, "ROUND", 8)
    found = generate.sample(registered.artist, wish, Judge(registered.artist, wish, 4))
    kept = found.kept
    assert [one.number for one in kept] == [0, 4, 8, 12, 16] and found.drawn == 17
    assert found.by_chance < found.acceptance == 5 / 17
    monkeypatch.setattr(generate, "ROUND", 20)
    again = generate.sample(registered.artist, wish, Judge(registered.artist, wish, 4))
    assert again.drawn == 17
    for one, other in zip(kept, again.kept, strict=True):
        assert one.number == other.number
        np.testing.assert_allclose(one.pose, other.pose, atol=1e-5)  # no function of the round
        assert np.abs(one.picture.astype(int) - other.picture).max() <= 1
    assert [one.category for one in kept] == ["calm"] * 5  # the even numbers'


def test_a_low_acceptance_stops_the_command_with_one_sentence(
    registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "ROUND", 10)
    wish = Generate(count=100, steps=2, guidance=1.0, min_acceptance=0.1)
    with pytest.raises(DataError, match=r"Only 2 of 30 samples show .*\(6\.7%\), less than .*\(10\.0%\)"):
        generate.sample(registered.artist, wish, Judge(registered.artist, wish, 20))


def test_the_output_is_read_by_other_tools(registered: Registered, tmp_path: Path) -> None:
    wish = Generate(count=4, steps=2, guidance=1.0)
    found = generate.sample(registered.artist, wish, Judge(registered.artist, wish, 2))
    kept = found.kept
    folder = tmp_path / "generated"
    for _ in range(2):  # a second time it takes the first one's place
        generate.write(folder, found, wish, 0.08, {"models": []})
    stored = ShardDataset(folder, "generated")
    stored.verify()
    assert len(stored) == 4
    np.testing.assert_array_equal(stored.poses()[1], kept[1].pose)
    document = json.loads((folder / "coco.json").read_text())
    assert [len(document[part]) for part in ("images", "annotations", "categories")] == [4, 4, 1]
    first = document["annotations"][0]
    points = np.array(first["keypoints"]).reshape(33, 3)
    assert first["num_keypoints"] == (points[:, 2] == 2).sum() >= 30
    x, y, width, height = first["bbox"]
    there = points[points[:, 2] == 2]
    assert (there[:, :2] >= [x - 1e-2, y - 1e-2]).all() and (
        there[:, :2] <= [x + width + 1e-2, y + height + 1e-2]
    ).all()
    with Image.open(folder / "images" / document["images"][0]["file_name"]) as picture:
        np.testing.assert_array_equal(np.asarray(picture), kept[0].picture)
    with Image.open(io.BytesIO(stored.read(0, "png"))) as picture:
        assert picture.size == (16, 16) == (document["images"][0]["width"], document["images"][0]["height"])
    counts = json.loads((folder / "generated.json").read_text())
    assert counts["acceptance"] == pytest.approx(4 / 7) and counts["acceptance_by_chance"] == found.by_chance


def test_coco_marks_joints_outside_the_picture() -> None:
    points = np.full((1, 33, 2), 5.0)
    points[0, 0] = [-1, 3]
    annotation = coco.document(["a.png"], points, 10, [{}])["annotations"][0]
    assert annotation["keypoints"][:6] == [0, 0, 0, 5.0, 5.0, 2] and annotation["num_keypoints"] == 32
    person = coco.document([], np.zeros((0, 33, 2)), 10, [])["categories"][0]
    assert person["keypoints"] == list(LANDMARKS)
    assert {place for bone in person["skeleton"] for place in bone} <= set(range(1, 34))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"generate__category": "loud"}, "generate.category: the models know calm, wild, not 'loud'"),
        ({"generate__pose": {"tail": [0, 0, 0]}}, "generate: there is no joint 'tail'"),
        ({"generate__alias": "previous"}, "There is no previous of the poses model yet"),
    ],
)
def test_impossible_settings_are_one_sentence(
    registered: Registered, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    written = write_params(tmp_path, generate={}, **changes)
    with pytest.raises(UserError, match=sentence):
        generate.run(load(written), registered.root)


def test_mediapipe_accepts_mannequins_for_their_own_pose_only() -> None:
    from tasks.evaluate import pose_accuracy
    from tests.support.mannequins import MODEL, figures

    pictures, poses = figures(range(6))
    read = pose_accuracy.read_poses(pictures, MODEL, 0.5, workers=1)
    assert (generate.right_joints(read, poses, 0.5) >= 0.6).sum() >= 5
    assert (generate.right_joints(read, np.roll(poses, 1, axis=0), 0.5) >= 0.9).sum() <= 2
