"""Thousands of hostile files: no crash, no hang, nothing outside the output, bounded memory, no good picture lost."""

from __future__ import annotations

import contextlib
import io
import os
import random
import socket
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections import Counter
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks.extraction import workspace
from tasks.extract import pose_bundle
from tasks.extract.findings import Reason
from tasks.extract.poses_table import read_poses, read_rejects
from tasks.synthetic import stage as mannequin
from tests.support.extraction import MODEL, png_bomb
from tests.support.project import PROJECT

GOOD = 8
MEMORY = 3e9  # bytes, of one process: the largest picture that is decoded has 89 million pixels
BVH = """HIERARCHY
ROOT Hips {{ OFFSET 0 0 0 CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
{bones} }}
MOTION
Frames: 3
Frame Time: 0.1
"""


def seeds(folder: Path) -> dict[str, bytes]:
    """One small valid file of each kind, none with a person, by extension."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (80, 96, 3), dtype=np.uint8))
    kinds = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "heic": "HEIF", "gif": "GIF", "bmp": "BMP", "tif": "TIFF"}
    found = {}
    for extension, kind in kinds.items():
        stream = io.BytesIO()
        noise.save(stream, kind)
        found[extension] = stream.getvalue()
    for extension, codec in (("mp4", "h264"), ("avi", "mpeg4"), ("mkv", "h264"), ("webm", "libvpx")):
        path = folder / f"seed.{extension}"
        with av.open(str(path), "w") as container:
            track = container.add_stream(codec, rate=10)
            assert isinstance(track, av.VideoStream)
            track.width, track.height, track.pix_fmt = 96, 80, "yuv420p"
            for _ in range(6):
                picture = rng.integers(0, 256, (80, 96, 3), dtype=np.uint8)
                container.mux(track.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(track.encode(None))
        found[extension] = path.read_bytes()
        path.unlink()
    found["bvh"] = (BVH.format(bones="End Site { OFFSET 0 1 0 }") + "0 0 0 0 0 0\n" * 3).encode()
    return found


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content truncated, with flipped bits, an overwritten or moved block, or huge numbers."""
    data = bytearray(content)
    at = rng.randrange(len(data))
    match rng.randrange(6):
        case 0:
            return bytes(data[:at])
        case 1:
            for _ in range(rng.choice([1, 4, 64])):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 2:
            data[at : at + rng.randrange(1, 64)] = rng.randbytes(rng.randrange(64))
        case 3:
            data = data[:at] + data[rng.randrange(len(data)) :]
        case 4:  # somewhere in the header, where sizes are
            data[min(at, 64) : min(at, 64) + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"])
        case _:
            return bytes(len(data))
    return bytes(data)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        content += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return content


def crafted(folder: Path) -> None:
    """Attacks that random mutations do not find."""
    grey = struct.pack(">IIBBBBB", 80, 80, 8, 0, 0, 0, 0)
    flood = zlib.compress(bytes(200_000_000), 9)  # 200 MB of samples for a picture of 6,400
    long_text = b"Comment\0\0" + flood
    files = {
        "bomb.png": png_bomb(),
        "flood.png": png((b"IHDR", grey), (b"IDAT", flood), (b"IEND", b"")),
        "text.png": png((b"IHDR", grey), (b"zTXt", long_text), (b"IEND", b"")),
        "wide.bmp": b"BM"
        + struct.pack("<IHHI", 100, 0, 0, 54)
        + struct.pack("<IiiHH", 40, 50_000, 50_000, 1, 24)
        + bytes(24),
        "wide.gif": b"GIF89a"
        + struct.pack("<HH3s", 50_000, 50_000, b"")
        + b","
        + struct.pack("<4H", 0, 0, 50_000, 50_000)
        + b"\0\x02\x02\x4c\x01\0;",
        "list.mp4": b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n",
        "concat.mkv": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "deep.bvh": b"HIERARCHY\nROOT a\n" + b"{ OFFSET 0 0 0 JOINT b " * 5000,
        "many.bvh": b"HIERARCHY ROOT a { OFFSET 0 0 0 } MOTION Frames: 99999999999 Frame Time: 1\n1 2 3",
        "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n(/tmp/x) (w) file",
        "line\nbreak.jpg": b"x",
        "ünïcödé \u202e gnp.png": b"",
        "n" * 251 + ".png": b"\x89PNG",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("../../escaped.png")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    (folder / "archive.tar").write_bytes(archive.getvalue())
    (folder / "archive.png").write_bytes(archive.getvalue())
    (folder / "loop").symlink_to(folder)
    (folder / "self").symlink_to("self")
    (folder / "passwd.png").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.png")
    # A socket's path may not be longer than about 100 bytes: a bare name from within the folder always fits.
    with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")


def heap(folder: Path, count: int) -> list[str]:
    """Write `count` hostile files and GOOD pictures among them; returns the names of the good ones."""
    hostile = folder / "hostile"
    hostile.mkdir(parents=True)
    crafted(hostile)
    rng = random.Random(0)
    valid = list(seeds(folder).items())
    other = [extension for extension, _ in valid]
    for i in range(count - len(list(hostile.iterdir()))):
        extension, content = valid[i % len(valid)]
        name = rng.choice(other) if rng.random() < 0.2 else extension
        (hostile / f"{i:05d}.{name}").write_bytes(mutated(content, rng))
    names = []
    for i in range(GOOD):
        drawn = Image.fromarray(mannequin.picture(seed=1, index=i, size=160).image)
        names.append(f"{'hostile' if i % 2 else 'good'}/{i}.{('png', 'webp', 'tif', 'bmp')[i % 4]}")
        (folder / names[-1]).parent.mkdir(exist_ok=True)
        drawn.save(folder / names[-1], lossless=True)  # only WebP has this option
    (folder / "hostile/unreadable.png").write_bytes(b"x")
    (folder / "hostile/unreadable.png").chmod(0)
    return names


def large(folder: Path) -> None:
    """Write the largest pictures that are decoded, in the modes that need most memory per pixel."""
    for name, mode in (("large.png", "RGBA"), ("large.tif", "F"), ("large.webp", "RGB")):
        side = 16_000 if mode == "RGB" else 9_400
        options = {"compression": "tiff_deflate"} if mode == "F" else {}
        Image.new(mode, (side, 5_500) if mode == "RGB" else (side, side)).save(folder / name, **options)


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_relative_to(root / "work")}


def memory(process: psutil.Process) -> int:
    """Resident bytes; 0 if the process has ended."""
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


@pytest.mark.parametrize(
    ("count", "seconds"), [(120, 400), pytest.param(10_000, 900, marks=pytest.mark.slow)], ids=["120", "10000"]
)
def test_hostile_files_are_refused_and_the_good_ones_kept(tmp_path: Path, count: int, seconds: float) -> None:
    pose_bundle.ensure(MODEL)
    raw = tmp_path / "raw/heap"
    good = heap(raw, count)
    if count > 1000:
        large(raw / "hostile")
    before = tree(tmp_path)
    workspace(tmp_path / "work", raw)
    began, peak = time.monotonic(), 0
    log = tmp_path / "work/log"  # a file, because nobody would read a pipe
    with log.open("wb") as file:
        command = [sys.executable, "-m", "tasks", "extract", "raw", "--root", str(tmp_path / "work")]
        process = subprocess.Popen(command, cwd=PROJECT, stderr=file)
    stage = psutil.Process(process.pid)
    try:
        while process.poll() is None:
            peak = max(peak, *(memory(each) for each in (stage, *stage.children(recursive=True))))
            assert time.monotonic() - began < seconds, "it hangs"
            time.sleep(0.05)
    except psutil.NoSuchProcess:
        process.wait()  # it ended while it was being measured
    finally:
        process.kill()
    assert process.wait() == 0, log.read_text()[-2000:]
    poses, rejects = read_poses(tmp_path / "work/data/poses/raw"), read_rejects(tmp_path / "work/data/poses/raw")
    assert set(good) <= set(poses.source)
    files = {str(path.relative_to(raw)) for path in raw.rglob("*") if path.is_symlink() or not path.is_dir()}
    assert files == set(poses.source) | {reject.source for reject in rejects}
    # A damaged file may still be a picture in which the landmarker finds somebody.
    assert len(set(poses.source) - set(good)) <= count / 200
    assert all(reject.detail for reject in rejects)
    reasons = Counter(reject.reason for reject in rejects)
    print(f"{count} files, {time.monotonic() - began:.0f} s, peak {peak / 1e6:.0f} MB, {dict(reasons)}")
    assert reasons[Reason.CRASHED] + reasons[Reason.TOO_SLOW] <= count / 100
    assert peak < MEMORY
    assert tree(tmp_path) == before
    by_name = {reject.source.removeprefix("hostile/"): reject.reason for reject in rejects}
    assert by_name["bomb.png"] == by_name["wide.bmp"] == by_name["wide.gif"] == Reason.TOO_LARGE
    assert by_name["pipe.png"] == by_name["socket.png"] == by_name["loop"] == by_name["passwd.png"] == Reason.UNREADABLE
    for name in ("list.mp4", "concat.mkv", "svg.png", "script.jpg", "archive.tar", "archive.png"):
        assert by_name[name] == Reason.NOT_A_PICTURE
