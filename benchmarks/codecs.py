"""How good the codecs' reconstructions of held-out mannequins are, and what their training costs.

    python -m benchmarks.codecs [--data DIR] [--kinds kl vq ...] [--minutes 3]

DIR is a workspace whose data/shards and models are used; without it, mannequins are drawn, extracted and sharded first.
Each codec is trained and judged by the stages train_codec and codec_quality with the parameters of params.yaml and the changes
in KINDS. `within` is the share of limb joints that MediaPipe reads within 0.2 torso lengths of where they are.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import finish, table
from tasks import paths
from tasks.common.files import read_json
from tasks.config.params import Params, load
from tasks.evaluate import codec_quality
from tasks.models import codec
from tasks.train import stage

ROOT = Path(__file__).resolve().parents[1]
PSNR, WITHIN, USED = 33.0, 0.73, 0.5
QUICK = {"adversarial": {"from_images": 9600}}
KINDS: dict[str, dict[str, Any]] = {
    "pca": {"kind": "pca"},
    "kl": {"kind": "kl"},
    "vq": {"kind": "vq", "factor": 4, "widths": [32, 64], "latents": 16, "codes": 2048},
    "kl_gan": {"kind": "kl", **QUICK},
    "vqgan": {"kind": "vq", "factor": 4, "widths": [32, 64], "latents": 16, "codes": 2048, **QUICK},
    "kl_pose": {"kind": "kl", "pose": True},
}


def measure(data: Path, changes: dict[str, Any]) -> dict[str, float]:
    """The figures of one codec: those of codec_quality, and the CPU seconds of its training."""
    params = load(ROOT / paths.PARAMS)
    config = type(params.codec).model_validate({**params.codec.model_dump(), **changes, "ranks": 1})
    changed = params.model_copy(update={"codec": config})
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "data").mkdir()
        (root / paths.SHARDS).symlink_to((data / paths.SHARDS).resolve())
        (root / "models").symlink_to((data / "models").resolve())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        stage.run(changed, root, codec.NAME)
        seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
        codec_quality.run(changed, root)
        figures = dict(read_json(root / paths.CODEC_QUALITY / "codec_quality.json")["metrics"])
    return {**figures, "seconds": seconds}


def _draw(root: Path) -> None:
    """Mannequins of params.yaml as shards, in a new workspace."""
    from tasks.dataset import curate, shard
    from tasks.extract import listing
    from tasks.extract import stage as extract
    from tasks.synthetic import stage as mannequin

    shutil.copyfile(ROOT / paths.PARAMS, root / paths.PARAMS)
    (root / "models").symlink_to(ROOT / "models")
    params: Params = load(root / paths.PARAMS)
    mannequin.run(params, root)
    listing.run(params, root)
    extract.run(params, root, "mannequin")
    curate.run(params, root)
    shard.run(params, root)


def main(arguments: list[str]) -> int:
    """Measure the codecs, print a table and the line of figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["pca", "kl", "vq"])
    parser.add_argument(
        "--minutes", type=float, default=3.0, help="CPU minutes of a core that a training may take, times cores"
    )
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        data = given.data or Path(name)
        if given.data is None:
            _draw(data)
        rows = {kind: measure(data, KINDS[kind]) for kind in given.kinds}
    limit = 60 * given.minutes * max(2, torch.get_num_threads())
    shown = [("codec", "CPU s", "PSNR", "SSIM", "found", "within", "codes used")]
    goals: dict[str, bool] = {}
    figures: dict[str, float] = {}
    for kind, row in rows.items():
        used = row["codec.perplexity"] / row["codec.codes"] if "codec.codes" in row else None
        shown.append((
            kind, f"{row['seconds']:.0f}", f"{row['codec.psnr_heldout']:.1f}", f"{row['codec.ssim_heldout']:.3f}",
            f"{row['codec.found']:.2f}", f"{row['codec.within_0.2']:.3f}", "" if used is None else f"{used:.2f}",
        ))  # fmt: skip
        figures |= {f"{kind}.{key.removeprefix('codec.')}": round(value, 4) for key, value in row.items()}
        if kind != "pca":
            goals[f"{kind}: PSNR at least {PSNR:g}"] = row["codec.psnr_heldout"] >= PSNR
            goals[f"{kind}: within at least {WITHIN:g}"] = row["codec.within_0.2"] >= WITHIN
            goals[f"{kind}: at most {limit:.0f} CPU seconds"] = row["seconds"] <= limit
        if used is not None:
            goals[f"{kind}: codes used above {USED:g}"] = used > USED
    print(table(shown))
    return finish("codecs", figures, goals)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
