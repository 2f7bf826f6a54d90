"""Stage `train_upscaler [CHECKPOINT]`: the model that doubles the size of pictures, in `artifacts/upscaler/`.

Without `upscaler.size` there is none: the stage then writes a folder without a model, and imports nothing that takes time.
"""

from __future__ import annotations

from pathlib import Path

from tasks import paths
from tasks.common import files
from tasks.config.params import Params


def run(params: Params, root: Path, checkpoint: str | None = None) -> None:
    """Train the upscaler, if there is to be one. Raises DataError if nobody has the pixels that it needs."""
    if params.upscaler.size is None:
        with files.new_folder(paths.model_folder(root, paths.UPSCALER)) as folder:
            files.write_json(folder / "upscaler.json", {"size": None})
        return
    from tasks.train import stage

    stage.run(params, root, paths.UPSCALER, checkpoint)
