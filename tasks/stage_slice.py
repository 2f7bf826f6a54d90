"""`python -m tasks stage_slice FOLDER RANK WORLD STAGE [ARGUMENT ...]`: a share of the blocks of a stage (see `common.blocks`).

The workspace should be a copy (see `flows.stage_inputs`), because a stage without blocks runs to its end. Writes into FOLDER,
which is replaced:

    000000.npz, ...   the results of the blocks
    slice.json        {"total": number of blocks of all slices, "blocks": {file: sha256}}; written last, it marks a whole slice
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from tasks.common import blocks, files
from tasks.common.errors import UserError
from tasks.config.params import Params

log = logging.getLogger(__name__)


def run(params: Params, root: Path, folder: str, rank: str, world: str, *task: str) -> None:
    """Compute one slice of a stage; `task`: its name and arguments. Raises UserError if there is no such slice."""
    from tasks.__main__ import STAGES, body  # not above: __main__ names this module

    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise UserError(f"A slice is a RANK below WORLD, such as 0 3; got {rank} {world}.")
    stage, *arguments = task
    if stage not in STAGES:
        raise UserError(f"There is no stage {stage!r}; the stages are {', '.join(STAGES)}.")
    result = root / folder
    with files.alone(result), files.new_folder(result) as output:
        total = 0  # if the stage has nothing to compute
        try:
            with blocks.slice_of(int(rank), int(world), output):
                body(stage)(params, root, *arguments)
        except blocks.ShareDone as done:
            total = done.total
        sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.glob("*.npz"))}
        files.write_json(output / blocks.MARK, {"total": total, "blocks": sums})
    log.info(f"{stage}, slice {rank} of {world}: {len(sums)} of {total} blocks")
