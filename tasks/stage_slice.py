"""`python -m tasks stage_slice FOLDER RANK WORLD FIRST LAST CORES TASK [ARGUMENT ...]`: some blocks of a task.

It is every WORLD-th, from the RANK-th, of the blocks (`common.blocks`) from FIRST to LAST - 1, or with LAST 0
of all that the task expects to need. CORES processes read pictures, or with 0 as many as `extract.workers` says.
The workspace should be a copy (see `flows.stage_inputs`), because a task without blocks runs to its end. Writes into FOLDER,
which is replaced:

    000000.npz, ...   the results of the blocks
    slice.json        {"total": number of blocks that there are, "blocks": {file: sha256}}; written last, it marks a whole slice
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from tasks.common import blocks, files
from tasks.common.errors import UserError
from tasks.config.params import Params

log = logging.getLogger(__name__)

GENERATE = "generate"  # the command that has blocks


def run(
    params: Params, root: Path, folder: str, rank: str, world: str, first: str, last: str, cores: str, *task: str
) -> None:
    """Compute one slice; the arguments are those above. Raises UserError if there is no such slice."""
    from tasks.__main__ import STAGES, body  # not above: __main__ names this module

    given = rank, world, first, last, cores
    share = _share(given)
    if share is None:
        raise UserError(f"A slice is RANK WORLD FIRST LAST CORES, such as 0 3 0 0 0; got {' '.join(given)}.")
    name, *arguments = task or ("",)
    if name not in (*STAGES, GENERATE):
        raise UserError(f"There are no slices of {name!r}; there are of {', '.join(STAGES)} and {GENERATE}.")
    if int(cores):
        params = params.model_copy(update={"extract": params.extract.model_copy(update={"workers": int(cores)})})
    result = root / folder
    with files.alone(result), files.new_folder(result) as output:
        total = 0  # if the stage has nothing to compute
        try:
            with blocks.slice_of(*share[:2], output, *share[2:]):
                body(name)(params, root, *arguments)
        except blocks.ShareDone as done:
            total = done.total
        sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.glob("*.npz"))}
        files.write_json(output / blocks.MARK, {"total": total, "blocks": sums})
    log.info(f"{name}, slice {rank} of {world}: {len(sums)} of {total} blocks")


def _share(given: Sequence[str]) -> tuple[int, int, int, int | None] | None:
    """Rank, world, first and last as `slice_of` takes them; None if the arguments are no numbers, or no slice has them."""
    if not all(number.isdecimal() for number in given):
        return None
    rank, world, first, last, _ = map(int, given)
    return (rank, world, first, last or None) if rank < world and (last == 0 or first < last) else None
