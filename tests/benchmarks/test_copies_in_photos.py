"""How the benchmark of copies among photographs groups and deals them."""

from pathlib import Path

import numpy as np

from benchmarks.copies_in_photos import _dealt, frames, gathered
from tests.support.extraction import write_video
from tests.support.photos import photo, write


def test_a_video_and_a_scene_are_one_group_each(tmp_path: Path) -> None:
    names = ["room/0.png", "room/1.png", "out/2.png", "out/3.png"]
    write(tmp_path / "photos", {name: photo(seed) for seed, name in enumerate(names)})
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/a.mp4", [photo(10 + second // 10, 96, 64) for second in range(25)])
    (tmp_path / "videos/about.txt").write_text("two seconds and a half")
    frames(tmp_path / "videos", tmp_path / "frames")
    assert len(list((tmp_path / "frames").rglob("*.jpg"))) == 2  # at 0 and 2 seconds
    photos = gathered(
        [tmp_path / "photos", tmp_path / "frames"], [tmp_path / "photos/room"], [tmp_path / "frames"], most=None
    )
    group = {
        str(Path(name).relative_to(tmp_path)): number for name, number in zip(photos.names, photos.groups, strict=True)
    }
    assert group["photos/room/0.png"] == group["photos/room/1.png"]
    assert len({number for name, number in group.items() if name.startswith("frames")}) == 1
    assert len(set(group.values())) == 4  # the room, the video, and two photos


def test_a_group_is_dealt_to_one_side_and_shown_once() -> None:
    groups = np.repeat(np.arange(20), 3)
    train, heldout, unseen = _dealt(groups, np.random.default_rng(0))
    sides = [set(groups[rows].tolist()) for rows in (train, heldout, unseen)]
    assert [len(side) for side in sides] == [12, 4, 4] and len(set.union(*sides)) == 20
    assert len(train) == 36 and len(unseen) == 4
