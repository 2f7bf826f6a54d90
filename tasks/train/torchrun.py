"""torchrun without its report of a failed rank, which has told by itself what was wrong: `python -m tasks.train.torchrun`."""

from __future__ import annotations

import logging
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> int:
    """Run torchrun with the arguments of this process; returns the exit code of the first rank that failed, or 0."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run.main()
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    return 0


if __name__ == "__main__":
    sys.exit(main())
