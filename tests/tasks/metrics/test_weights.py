import functools
import hashlib
import http.server
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tasks.common.errors import UserError
from tasks.config.params import Weights
from tasks.metrics.weights import locate, read

TENSORS = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}


def given(path: Path, source: str | None = None) -> Weights:
    return Weights(source=source or path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_tensors_are_read_from_safetensors_and_pth(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    save_file(TENSORS, path) if suffix == "safetensors" else torch.save(TENSORS, path)
    found = read(locate(given(path), tmp_path), "w")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


class Intruder:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_files_that_hold_code_are_refused_and_not_executed(tmp_path: Path) -> None:
    path, mark = tmp_path / "w.pth", tmp_path / "mark"
    for content in (pickle.dumps(Intruder(mark)), b"not even a pickle", b"", b"\x10" + b"\0" * 7 + b"{ not a header"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"w\.pth is neither a safetensors file nor a \.pth file that holds"):
            read(path, "w.pth")
    for content in ({"weights": Intruder(mark)}, torch.nn.Linear(2, 2)):
        torch.save(content, path)
        with pytest.raises(UserError, match="neither a safetensors file nor"):
            read(path, "w.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)  # a program, too
    with pytest.raises(UserError, match="neither a safetensors file nor"):
        read(path, "w.pth")
    for content in ({"state_dict": {"a": torch.ones(2)}}, [torch.ones(2)]):
        torch.save(content, path)
        with pytest.raises(UserError, match="does not hold tensors by name"):
            read(path, "w.pth")
    assert not mark.exists()


def test_missing_files_and_files_with_another_digest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing.pth does not exist\."):
        locate(Weights(source="nothing.pth", sha256="0" * 64), tmp_path)
    (tmp_path / "w.pth").write_bytes(b"abc")
    with pytest.raises(UserError, match=r"w\.pth: sha256 mismatch, expected 0000.*, got ba7816bf"):
        locate(Weights(source="w.pth", sha256="0" * 64), tmp_path)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """A folder, the address at which it is served, and the paths that were asked for."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None:
            asked.append(self.path)

        def log_error(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_is_downloaded_once_and_only_the_right_file_is_kept(
    tmp_path: Path, served: tuple[Path, str, list[str]]
) -> None:
    folder, address, asked = served
    save_file(TENSORS, folder / "w.safetensors")
    weights = given(folder / "w.safetensors", f"{address}/w.safetensors")
    for _ in range(2):
        assert read(locate(weights, tmp_path), "w").keys() == TENSORS.keys()
    assert asked == ["/w.safetensors"]
    kept = tmp_path / ".contrapposto/weights"
    with pytest.raises(UserError, match="sha256 mismatch"):
        locate(Weights(source=weights.source, sha256="1" * 64), tmp_path)
    with pytest.raises(UserError, match=f"{address}/none could not be downloaded: HTTP Error 404"):
        locate(Weights(source=f"{address}/none", sha256="2" * 64), tmp_path)
    assert [path.name for path in kept.iterdir()] == [weights.sha256]
