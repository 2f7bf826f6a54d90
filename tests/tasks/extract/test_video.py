"""Videos: which frames are sampled, how they are rotated, and how damaged videos end."""

from __future__ import annotations

import io
import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.extract import pose_bundle, video
from tasks.extract.extractor import Subject, extractor
from tasks.extract.findings import Findings, Kind, Reason, Settings
from tasks.extract.source_files import Refusal, open_regular
from tasks.synthetic import stage as mannequin
from tests.support.extraction import CODECS, MODEL, write_video

SETTINGS = Settings(min_confidence=0.5, min_side=64, max_people=4, video_rate=4.0, pose_change=0.15)


def numbered_pictures(count: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """Grey pictures that get brighter, with a corner that is white."""
    pictures = []
    for i in range(count):
        picture = np.full((height, width, 3), 20 + 4 * i, np.uint8)
        picture[: height // 4, : width // 4] = 255
        pictures.append(picture)
    return pictures


@pytest.mark.parametrize("extension", CODECS)
def test_every_container_gives_the_frames_due_at_the_rate(tmp_path: Path, extension: str) -> None:
    rate = 25 if CODECS[extension] == "mpeg2video" else 10  # MPEG-2 knows only some rates
    path = write_video(tmp_path / f"a.{extension}", numbered_pictures(30), rate=rate)
    with open_regular(path) as file:
        frames = list(video.sampled(file, 4.0, 64))
    assert [frame.number for frame in frames] == [round(i * rate / 4 + 0.499) for i in range(len(frames))]
    assert len(frames) == math.ceil(30 / rate * 4)
    for frame in frames:
        assert frame.time == pytest.approx(frame.number / rate, abs=0.002)
        assert frame.picture.shape == (64, 96, 3)
        assert frame.picture[40:, 40:].mean() == pytest.approx(20 + 4 * frame.number, abs=3)
        assert frame.picture[:12, :20].mean() > 230


def test_a_frame_can_be_read_by_its_number(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_pictures(30))
    with open_regular(path) as file:
        sampled = {frame.number: frame.picture for frame in video.sampled(file, 4.0, 64)}
        again = list(video.numbered(file, [3, 10, 28]))
        assert [frame.number for frame in again] == [3, 10, 28]
        assert all(np.array_equal(frame.picture, sampled[frame.number]) for frame in again)
        with pytest.raises(Refusal, match="no frame 30"):
            list(video.numbered(file, [28, 30]))


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_a_rotated_video_is_turned_upright(tmp_path: Path, degrees: int) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_pictures(3, 96, 64), rotation=degrees)
    with open_regular(path) as file:
        frame = next(video.sampled(file, 4.0, 64))
    upright = np.rot90(numbered_pictures(1, 96, 64)[0], degrees // 90)
    assert frame.picture.shape == upright.shape
    assert np.abs(frame.picture.astype(int) - upright).mean() < 6


def test_pixels_that_are_not_square_become_square(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", numbered_pictures(3), aspect=2)
    with open_regular(path) as file:
        assert next(video.sampled(file, 4.0, 64)).picture.shape == (64, 192, 3)


def test_packets_with_arrival_times_are_read_as_those_without(tmp_path: Path) -> None:
    """Cameras put four bytes before each packet of 188 (M2TS)."""
    plain = write_video(tmp_path / "a.ts", numbered_pictures(15))
    content = plain.read_bytes()
    packets = [content[i : i + 188] for i in range(0, len(content), 188)]
    (tmp_path / "a.m2ts").write_bytes(b"".join(struct.pack(">I", i) + packet for i, packet in enumerate(packets)))
    read = []
    for path in (plain, tmp_path / "a.m2ts"):
        with open_regular(path) as file:
            read.append([(frame.number, frame.picture.tobytes()) for frame in video.sampled(file, 4.0, 64)])
    assert len(read[0]) == 6 and read[0] == read[1]


def test_what_is_no_video_never_reaches_ffmpeg(tmp_path: Path) -> None:
    """Left to itself it would open other files and the network for a playlist."""
    (tmp_path / "a.mp4").write_text("#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n")
    with open_regular(tmp_path / "a.mp4") as file, pytest.raises(Refusal) as caught:
        next(video.sampled(file, 4.0, 64))
    assert caught.value.reason is Reason.NOT_A_PICTURE


def test_containers_are_recognised_by_their_first_bytes(tmp_path: Path) -> None:
    assert video.container(b"\0\0\0\x18ftypmp42\0\0\0\0") == "mov"
    assert video.container(b"RIFF\0\0\0\0AVI LIST") == "avi"
    assert video.container(b"\x1a\x45\xdf\xa3" + bytes(12)) == "matroska"
    heic = io.BytesIO()
    Image.new("RGB", (64, 64)).save(heic, "HEIF")
    for head in (heic.getvalue()[:16], b"#EXTM3U\n#EXTINF:", b"ffconcat version", b"RIFF\0\0\0\0WEBPVP8 ", b""):
        assert video.container(head) is None


def test_a_small_or_huge_video_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    with open_regular(write_video(tmp_path / "a.mp4", numbered_pictures(2))) as file:
        with pytest.raises(Refusal, match="96 x 64 pixels") as caught:
            next(video.sampled(file, 4.0, 65))
    assert caught.value.reason is Reason.TOO_SMALL


def find(path: Path) -> Findings:
    pose_bundle.ensure(MODEL)
    with extractor(path.parent, MODEL, SETTINGS, known=lambda key: False) as steps:
        value: Any = path.name
        for step in steps:
            value = step(value)
        assert isinstance(value, Subject)
        return value.findings


@pytest.fixture(scope="module")
def figures() -> list[np.ndarray]:
    return [mannequin.picture(seed=0, index=i, size=192).image for i in (0, 1)]


def test_frames_without_movement_are_refused(tmp_path: Path, figures: list[np.ndarray]) -> None:
    grey = np.full((192, 192, 3), 90, np.uint8)
    findings = find(write_video(tmp_path / "a.mp4", [figures[0]] * 20 + [figures[1]] * 20 + [grey] * 10, rate=10))
    assert findings.kind is Kind.VIDEO
    kept = [found.frame for found in findings.persons]
    refused = {row.frame: row.reason for row in findings.refused if row.frame is not None}
    looked_at = [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28, 30, 33, 35, 38, 40, 43, 45, 48]
    assert sorted([*kept, *refused]) == looked_at
    assert kept[0] == 0 and any(20 <= frame < 40 for frame in kept) and len(kept) < 10
    assert set(refused.values()) == {Reason.SAME_POSE, Reason.NO_PERSON}
    assert refused[48] is Reason.NO_PERSON
    assert all(found.timestamp_s == pytest.approx(found.frame / 10, abs=0.01) for found in findings.persons)
    assert {found.track for found in findings.persons} <= {0, 1}


def test_a_video_that_breaks_off_keeps_what_came_before(tmp_path: Path, figures: list[np.ndarray]) -> None:
    path = write_video(tmp_path / "a.avi", [figures[0]] * 10 + [figures[1]] * 30, rate=10)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 4] + bytes(len(whole) // 2))
    findings = find(path)
    assert findings.persons and findings.persons[0].frame == 0
    frames = [found.frame for found in findings.persons] + [row.frame or 0 for row in findings.refused]
    assert len(frames) == len(set(frames)) and max(frames) < 39


@pytest.mark.skipif("CONTRAPPOSTO_PHOTOS" not in os.environ, reason="CONTRAPPOSTO_PHOTOS names no folder of photos")
@pytest.mark.parametrize(
    ("clip", "found", "kept"),
    [
        ("tfjs/pose_1.mp4", 0.95, None),
        ("tfjs/pose_squats.mp4", 0.95, None),
        ("felix/exercise.avi", 0.95, None),
        ("intel/car-detection.mp4", 0.0, 0.02),  # nobody is in these two: the false rate after the gate
        ("intel/bottle-detection.mp4", 0.0, 0.02),
        ("mmaction2_tests/test.avi", 0.0, None),
        ("mmaction2_tests/test.mp4", 0.0, None),
        ("mmaction2_tests/part_0.mp4", 0.0, None),
        ("mmpose/demo.mp4", 0.95, None),
    ],
)
def test_real_videos(clip: str, found: float, kept: float | None) -> None:
    findings = find(Path(os.environ["CONTRAPPOSTO_PHOTOS"]) / "videos" / clip)
    reasons = [row.reason for row in findings.refused]
    assert set(reasons) <= {Reason.NO_PERSON, Reason.SAME_POSE}
    frames = {row.frame for row in findings.persons}
    looked_at = len(frames) + len(reasons)
    assert 1 - reasons.count(Reason.NO_PERSON) / looked_at >= found
    if kept is not None:
        visible = [
            row for row in findings.persons if row.landmarks[[11, 12, 13, 14, 15, 16, *range(23, 29)], 3].mean() >= 0.7
        ]
        assert len(visible) <= kept * looked_at


def test_a_lost_index_is_told_in_words(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_pictures(10))
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"moov") - 4])
    with open_regular(path) as file, pytest.raises(Refusal, match=r"moov atom.*missing") as caught:
        next(video.sampled(file, 4.0, 64))
    assert caught.value.reason is Reason.DAMAGED


@pytest.mark.parametrize("size", [2**60, 2**63, 2**64 - 1, 20])
def test_atoms_of_impossible_size_are_no_index(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.mov").write_bytes(struct.pack(">I4sI4sQ", 8, b"wide", 1, b"mdat", size))
    with open_regular(tmp_path / "a.mov") as file, pytest.raises(Refusal, match="moov atom"):
        next(video.sampled(file, 4.0, 64))


def test_a_damaged_video_is_told_in_words_without_a_number(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", numbered_pictures(10))
    path.write_bytes(path.read_bytes()[:64])
    with open_regular(path) as file, pytest.raises(Refusal) as caught:
        next(video.sampled(file, 4.0, 64))
    assert "Errno" not in caught.value.detail and "1094995529" not in caught.value.detail


def test_a_file_that_is_nothing_known_names_the_supported_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.rm").write_bytes(b".RMF" + bytes(1000))
    (refused,) = find(tmp_path / "a.rm").refused
    assert refused.reason is Reason.NOT_A_PICTURE
    assert all(name in refused.detail for name in ("JPEG", "MTS", "WMV", "3GP", "BVH"))


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ([5.0, 5.1, 5.2, 5.3], [0.0, 0.1, 0.2, 0.3]),
        ([None, None, 0.2, 0.3], [0.0, 0.1, 0.2, 0.3]),
        ([None, None, -0.2, -0.1], [0.0, 0.1, 0.2, 0.3]),
        ([None, None, 7.0, 7.1], [0.0, 0.1, 0.2, 0.3]),
        ([-0.5, -0.4, -0.3, -0.2], [0.0, 0.1, 0.2, 0.3]),
        ([0.0, None, 0.2, None], [0.0, 0.1, 0.2, 0.3]),
        ([3.0, 3.1, 0.0, 0.1], [0.0, 0.1, 0.2, 0.3]),  # the camera's clock was reset
        ([0.0, 0.2, 0.1, 0.3], [0.0, 0.2, 0.2, 0.3]),  # out of order
        ([0.0, 2.0, 2.1, 2.2], [0.0, 2.0, 2.1, 2.2]),  # nothing was recorded for a while
        ([None, None, None, None], [0.0, 0.1, 0.2, 0.3]),
    ],
)
def test_the_clock_goes_on_when_time_stamps_are_missing_or_jump(
    stamps: list[float | None], expected: list[float]
) -> None:
    clock = video.Clock(rate=10)
    assert [clock.seconds(i, stamp) for i, stamp in enumerate(stamps)] == pytest.approx(expected)


def test_two_recordings_in_one_transport_stream_are_sampled_to_the_end(tmp_path: Path) -> None:
    """The time stamps of the second one start again."""
    one = write_video(tmp_path / "a.ts", numbered_pictures(25)).read_bytes()
    (tmp_path / "two.ts").write_bytes(one + one)
    with open_regular(tmp_path / "two.ts") as file:
        frames = list(video.sampled(file, 2.0, 64))
    assert len(frames) == 10 and frames[-1].time > 4
