"""The latents of the training pictures, encoded once and kept on disk: `.contrapposto/latents/<digest>.npy`.

The digest covers the codec, the pictures, and what they are encoded with, so the file never has to be checked against them. The
pictures are always encoded in the same blocks. So the bits are the same whether the file was there or not.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_core.codecs import Latent
from diffusion_core.training import parallel
from tasks.common import files
from tasks.models import codec as stored_codec

KEPT = 2  # files; older ones are deleted

log = logging.getLogger(__name__)


def latents(
    folder: Path, codec: Latent, pictures: Callable[[Tensor], Tensor], count: int, identity: str, device: torch.device
) -> Tensor:
    """The latents `[count, channels, h, w]` of `pictures(indices)`, mapped from the file; changing them does not change it.

    identity: what says which pictures these are. Rank 0 writes the file; a rank that does not see it writes its own.
    """
    rank, _ = parallel.ranks()
    path = folder / f"{_digest(codec, identity, count, device)}.npy"
    if rank == 0:
        _write(path, codec, pictures, count, device)
        for old in sorted(folder.glob("*.npy"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
            old.unlink()
    parallel.broadcast(None)  # wait for it
    if not path.is_file():
        path = path.with_name(f"{path.stem}-rank{rank}.npy")
        _write(path, codec, pictures, count, device)
    with files.reading(path):
        return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))


def _write(path: Path, codec: Latent, pictures: Callable[[Tensor], Tensor], count: int, device: torch.device) -> None:
    if path.is_file():
        path.touch()  # the latest one that was used
        return
    stored: np.memmap | None = None
    with files.new_file(path) as temporary:
        for indices in tqdm(torch.arange(count).split(codec.BATCH), desc="encode", unit="batch", mininterval=2):
            z = codec.encode(pictures(indices).to(device)).cpu().numpy()
            if stored is None:
                stored = np.lib.format.open_memmap(temporary, "w+", z.dtype, (count, *z.shape[1:]))
            stored[indices[0] : indices[-1] + 1] = z
        if stored is not None:
            stored.flush()


def _digest(codec: Latent, identity: str, count: int, device: torch.device) -> str:
    h = hashlib.sha256()
    about = {
        "codec": stored_codec.description(codec), "identity": identity, "count": count, "torch": torch.__version__,
        "kind": type(codec).__name__, "device": device.type, "bf16": codec.computes_bf16(device), "batch": codec.BATCH,
    }  # fmt: skip
    h.update(json.dumps(about, sort_keys=True).encode())
    for name, value in sorted(stored_codec.tensors(codec).items()):
        h.update(name.encode())
        h.update(value.detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()[:32]
