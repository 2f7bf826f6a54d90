"""Opening users' files: links and special files are refused, links that DVC made are followed."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.extract.decode import decode, open_picture
from tasks.extract.findings import Reason
from tasks.extract.scan import scan
from tasks.extract.source_files import Refusal, behind_dvc_link, content_key, dvc_cache, open_regular


@pytest.fixture
def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def test_links_and_special_files_are_counted_and_refused(tmp_path: Path, colours: np.ndarray) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.fromarray(colours).save(outside / "private.png")
    part = tmp_path / "part"
    part.mkdir()
    Image.fromarray(colours).save(part / "good.png")
    (part / "link.png").symlink_to(outside / "private.png")
    (part / "folder").symlink_to(outside)
    (part / "loop").symlink_to(part)
    (part / "self.png").symlink_to(part / "self.png")
    os.mkfifo(part / "pipe.png")
    with contextlib.chdir(part), socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s.png")
        sources = scan(part).sources
        reasons = {}
        opened = []
        for source in sources:
            try:
                open_picture(part / source.path)
                opened.append(source.path)
            except Refusal as caught:
                reasons[source.path] = caught.reason
    assert opened == ["good.png"]
    assert set(reasons) == {"link.png", "folder", "loop", "self.png", "pipe.png", "s.png"}
    assert set(reasons.values()) == {Reason.UNREADABLE}


def test_a_name_that_is_not_utf8_is_refused_and_printable(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff.png"
    try:
        os.close(os.open(raw, os.O_CREAT | os.O_WRONLY))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    (source,) = scan(tmp_path).sources
    assert source.name == "\\xff.png"
    with pytest.raises(Refusal, match="not valid UTF-8"):
        open_picture(tmp_path / source.path)


def test_equal_contents_have_equal_keys_and_hashing_rewinds_the_file(tmp_path: Path, colours: np.ndarray) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(colours).save(tmp_path / name)
    with open_regular(tmp_path / "a.png") as a, open_regular(tmp_path / "b.png") as b:
        assert content_key(a) == content_key(b)
        assert len(content_key(a)) == 16
        assert np.array_equal(decode(a), colours)


def linked(root: Path, cache: Path) -> Path:
    """A picture that DVC has replaced by a link into its cache."""
    target = cache / "files/md5/ab/cdef0123456789abcdef0123456789"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"picture")
    link = root / "data/raw/x/a.png"
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    return link


@pytest.mark.parametrize("configured", [None, "config", "config.local"])
def test_links_that_dvc_made_are_followed(tmp_path: Path, configured: str | None) -> None:
    root = tmp_path / "workspace"
    (root / ".dvc").mkdir(parents=True)
    cache = root / ".dvc/cache"
    if configured is not None:
        cache = tmp_path / "shared"
        settings = f"[core]\nremote = local\n['remote \"local\"']\nurl = x\n[cache]\n dir = {cache}\n"
        (root / ".dvc" / configured).write_text(settings)
    link = linked(root, cache)
    with open_regular(behind_dvc_link(link, dvc_cache(root))) as file:
        assert file.read() == b"picture"


def test_links_to_anything_else_are_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    root.mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    link = linked(root, tmp_path / "other workspace/.dvc/cache")
    inside = root / ".dvc/cache/files/md5/00/outward"
    inside.parent.mkdir(parents=True)
    inside.symlink_to(secret)
    second = root / "data/raw/x/b.png"
    second.symlink_to(inside)
    for path in (link, second):
        with pytest.raises(Refusal, match="symbolic link"):
            open_regular(behind_dvc_link(path, dvc_cache(root)))
