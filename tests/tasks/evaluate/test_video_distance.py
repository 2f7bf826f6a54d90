import hashlib
from pathlib import Path

import av
import numpy as np
import pytest
from safetensors.torch import save_file

from tasks.common.errors import DataError, UserError
from tasks.common.files import read_json
from tasks.config.params import Params, Weights, load
from tasks.evaluate import video_distance
from tasks.evaluate.video_distance import ClipFeatures, compare
from tasks.extract.findings import Kind
from tasks.extract.perceptual_hash import LENGTH
from tasks.extract.poses_table import Pose, Writer
from tasks.metrics.frechet import frechet_estimate
from tasks.metrics.trajectories import FEATURES
from tasks.metrics.video_networks import I3d
from tests.support.extraction import write_video
from tests.support.project import PROJECT

STANDING = np.random.default_rng(1).normal(0, 0.3, (33, 3))
STANDING[[23, 24]] = [[0.1, 0, 0], [-0.1, 0, 0]]
STANDING[[11, 12]] = [[0.2, -0.5, 0], [-0.2, -0.5, 0]]


@pytest.fixture(scope="module")
def params() -> Params:
    return load(PROJECT / "params.yaml")


def part(folder: Path, videos: int, seed: int, speed: float) -> None:
    """Poses of people in videos of just over 2 s, who wave, some faster than others."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    with Writer(folder) as writer:
        for number in range(videos):
            phase, pace, reach = rng.uniform(0, 6), speed * rng.uniform(0.8, 1.2), rng.uniform(0.1, 0.3, (33, 3))
            for frame in range(22):
                world = STANDING + reach * np.sin(phase + pace * frame / 10)
                world[[11, 12, 23, 24]] = STANDING[[11, 12, 23, 24]]
                writer.add_pose(
                    Pose(
                        key=f"{seed:08x}{number:08x}-f{frame:05d}",
                        source=f"{number:03d}.bvh",
                        source_kind=Kind.MOCAP,
                        category="any",
                        frame=frame,
                        timestamp_s=frame / 10,
                        person=0,
                        track=0,
                        width=0,
                        height=0,
                        landmarks=np.zeros((33, 5), np.float32),
                        world=world.astype(np.float32),
                        sharpness=float("nan"),
                        exposure=float("nan"),
                        fingerprint=np.zeros(LENGTH, np.int8),
                        thumbnail=np.zeros((48, 48), np.uint8),
                    )
                )


def test_motions_of_the_same_law_are_nearer_than_those_of_another(
    tmp_path: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    part(tmp_path / "data/poses/real", 370, 0, 2.0)
    part(tmp_path / "data/poses/good", 370, 1, 2.0)
    part(tmp_path / "data/poses/hasty", 370, 2, 4.0)
    found = {}
    for name in ("good", "hasty"):
        video_distance.run(params, tmp_path, f"data/poses/{name}", "data/poses/real")
        found[name] = read_json(tmp_path / "reports/video_distance/video_distance.json")
        assert found[name]["clips"] == {"generated": 370, "real": 370}
    good, hasty = (found[name]["metrics"] for name in found)
    assert good["frechet_video_distance_low"] < 0.01 < 1 < hasty["frechet_video_distance_low"]
    assert good["kernel_video_distance_low"] < 0 < hasty["kernel_video_distance_low"]
    assert good["clips.coverage"] > 0.9 > 0.1 > hasty["clips.coverage"]
    assert f"needs at least {2 * FEATURES} samples" in found["good"]["absent"]["frechet_video_distance_floor"]
    assert abs(good["kernel_video_distance_floor"]) < 0.1 * hasty["kernel_video_distance"]
    assert "frechet_video_distance: " in capsys.readouterr().out


def test_the_floor_compares_different_sources_only() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 1, (60, 6))
    real = ClipFeatures(
        np.repeat(centres, 5, axis=0) + rng.normal(0, 0.01, (300, 6)), [f"{i // 5}" for i in range(300)]
    )
    first, second = video_distance._halves(real)
    assert len(first.source) == len(second.source) == 150 and not set(first.source) & set(second.source)
    gaps = np.linalg.norm(first.features[:, None] - second.features[None], axis=-1).min(axis=1)
    assert gaps.min() > 0.1
    found = compare(real, real)
    assert found.metrics["frechet_video_distance_floor_low"] < 0 < found.metrics["frechet_video_distance_floor_high"]
    assert found.metrics["kernel_video_distance_floor_low"] < 0 < found.metrics["kernel_video_distance_floor_high"]


def clips(sources: int, each: int, alike: float, shift: float, rng: np.random.Generator) -> ClipFeatures:
    """Clips of a normal law in four dimensions, of which those of a source have a correlation of `alike`."""
    own, source = rng.normal(size=(sources, 4)), np.repeat(np.arange(sources), each)
    x = np.sqrt(alike) * own[source] + np.sqrt(1 - alike) * rng.normal(size=(len(source), 4))
    return ClipFeatures(x + shift, [f"{i:03d}.mp4" for i in source])


def test_intervals_contain_the_truth_if_clips_of_a_video_are_alike() -> None:
    """What takes the same clips for independent is mostly wrong, and on the far side of it."""
    truth = 4 * 0.4**2
    inside, naively = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        generated, real = (clips(40, 10, 0.8, shift, rng) for shift in (0.0, 0.4))
        found = compare(generated, real).metrics
        inside.append(found["frechet_video_distance_low"] <= truth <= found["frechet_video_distance_high"])
        naive = frechet_estimate(generated.features, real.features, rng)
        naively.append(naive.low <= truth <= naive.high)
    assert np.mean(inside) >= 0.85 and np.mean(naively) <= 0.6


def test_distances_that_need_more_sources_are_absent_with_the_reason() -> None:
    rng = np.random.default_rng(0)
    absent = compare(clips(10, 30, 0.5, 0, rng), clips(50, 10, 0.5, 0, rng)).absent
    assert "needs at least 20 sources on each side, and there are 10" in absent["frechet_video_distance"]
    assert "needs at least 20 sources on each side, and there are 10" in absent["kernel_video_distance"]
    generated, real = clips(30, 20, 0.999, 0, rng), clips(200, 1, 0, 0, rng)
    wide = [np.hstack([some.features] * 8) + rng.normal(0, 1e-3, (len(some.source), 32)) for some in (generated, real)]
    absent = compare(ClipFeatures(wide[0], generated.source), ClipFeatures(wide[1], real.source)).absent
    assert "needs at least 64 independent samples on each side, and there are 3" in absent["frechet_video_distance"]


def test_distances_that_need_more_clips_are_absent_with_the_reason(tmp_path: Path, params: Params) -> None:
    part(tmp_path / "a", 8, 0, 2.0)
    part(tmp_path / "b", 0, 1, 2.0)
    video_distance.run(params, tmp_path, "a", "a")
    absent = read_json(tmp_path / "reports/video_distance/video_distance.json")["absent"]
    assert f"needs at least {2 * FEATURES} samples on each side, and there are 8" in absent["frechet_video_distance"]
    assert "needs at least 20 samples" in absent["kernel_video_distance"]
    video_distance.run(params, tmp_path, "a", "b")
    absent = read_json(tmp_path / "reports/video_distance/video_distance.json")["absent"]
    assert set(absent.values()) == {"there are no clips on one of the two sides."} and "clips.recall" in absent


def video(path: Path, seconds: float, seed: int) -> None:
    """A square that wanders over grey, 24 px, 16 frames a second."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=16)
        stream.width = stream.height = 24
        for _ in range(round(16 * seconds)):
            picture = np.full((24, 24, 3), 128, np.uint8)
            x, y = rng.integers(0, 18, 2)
            picture[y : y + 6, x : x + 6] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def with_i3d(root: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.setattr(I3d, "size", 32)  # what takes seconds at 224 is done in a moment
    save_file(I3d(5).state_dict(), root / "i3d.safetensors")
    sha256 = hashlib.sha256((root / "i3d.safetensors").read_bytes()).hexdigest()
    given = {"video": Weights(source="i3d.safetensors", sha256=sha256)}
    return params.model_copy(update={"fidelity": params.fidelity.model_copy(update=given)})


def test_videos_are_cut_into_clips_and_compared_by_the_given_network(
    tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        video(tmp_path / f"new/{number}.mp4", 4.2, number)
        video(tmp_path / f"old/{number}.mp4", 2.2, 10 + number)
    video(tmp_path / "old/short.mp4", 1, 0)
    (tmp_path / "old/notes.txt").write_text("no video")
    ours = with_i3d(tmp_path, params, monkeypatch)
    video_distance.run(ours, tmp_path, "new", "old")
    found = read_json(tmp_path / "reports/video_distance/video_distance.json")
    assert found["clips"] == {"generated": 4, "real": 2}
    assert "needs at least 10 samples on each side, and there are 2" in found["absent"]["frechet_video_distance"]

    damaged = tmp_path / "old/1.mp4"
    damaged.write_bytes(damaged.read_bytes()[:900])
    with pytest.raises(DataError, match=r"1\.mp4 cannot be read"):
        video_distance.run(ours, tmp_path, "new", "old")
    assert read_json(tmp_path / "reports/video_distance/video_distance.json") == found  # the last one stands


def test_clips_are_frames_in_order_eight_a_second_in_red_green_blue(tmp_path: Path) -> None:
    """Every frame of 16 a second has a colour of its own; a clip takes every other one."""
    with av.open(tmp_path / "a.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=16)
        stream.width, stream.height, stream.pix_fmt = 24, 32, "bgr0"
        for number in range(70):
            picture = np.zeros((32, 24, 3), np.uint8)
            picture[:, :] = (2 * number, 200 - number, 40)
            picture[:8] = 250  # above
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    first, second = video_distance._clips(tmp_path / "a.mkv")
    assert first.shape == second.shape == (16, 32, 24, 3)
    assert (first[:, :8] == 250).all()
    shown = np.concatenate([first, second])[:, 20, 10]
    assert shown.tolist() == [[4 * i, 200 - 2 * i, 40] for i in range(32)]


def test_videos_of_every_container_are_found(tmp_path: Path) -> None:
    pictures = [np.full((64, 96, 3), 9 * i, np.uint8) for i in range(25)]
    for name in ("a.mp4", "b.ts", "c.mts", "d.mpg"):
        write_video(tmp_path / name, pictures, rate=25)
    (tmp_path / "notes.txt").write_text("no video")
    assert [path.name for path in video_distance._videos(tmp_path)] == ["a.mp4", "b.ts", "c.mts", "d.mpg"]


def test_folders_that_cannot_be_compared_are_refused(tmp_path: Path, params: Params) -> None:
    part(tmp_path / "poses", 1, 0, 1.0)
    video(tmp_path / "videos/0.mp4", 1, 0)
    with pytest.raises(UserError, match="nowhere does not exist"):
        video_distance.run(params, tmp_path, "videos", "nowhere")
    with pytest.raises(UserError, match=r"poses holds no videos and no poses\.parquet, or the other folder"):
        video_distance.run(params, tmp_path, "videos", "poses")
    with pytest.raises(UserError, match=r"fidelity\.video is not given: a distance between videos needs"):
        video_distance.run(params, tmp_path, "videos", "videos")
