"""`python -m tasks STAGE [ARGUMENT ...] [--root DIR]`: the one command that every DVC stage uses.

It calls `run(params, root, *arguments)` of `tasks/STAGE.py`. What the user can mend ends as one line
`contrapposto: <sentence>` on stderr and an exit code (2: parameters or command line, 3: data); a bug keeps its trace.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tasks.errors import FULL, UserError

BODY = "\ndef run(params: Params, root: Path"  # how a stage's function begins


def stages() -> list[str]:
    """The modules that are a stage's body."""
    folder = Path(__file__).parent
    return sorted(path.stem for path in folder.glob("*.py") if BODY in path.read_text(encoding="utf-8"))


def body(stage: str) -> Callable[..., None]:
    """The function `run` of a stage. Raises UserError that names the stages if there is no such one."""
    if stage not in stages():
        raise UserError(f"There is no stage {stage!r}; the stages are {', '.join(stages())}.")
    run: Callable[..., None] = importlib.import_module(f"tasks.{stage}").run
    return run


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)  # unlike the default, this runs every `finally`


def main(argv: list[str] | None = None) -> int:
    """Run one stage; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tasks", description="Run one stage of the pipeline.")
    parser.add_argument("stage", help="module in tasks/ with the stage's body")
    parser.add_argument("arguments", nargs="*", help="what the stage itself takes, such as a model's name")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the workspace (default: here)")
    options = parser.parse_args(argv)
    os.environ.setdefault("WDS_SECURE", "1")  # webdataset must never unpickle
    os.environ.setdefault("DO_NOT_TRACK", "true")
    # torch's threads spin while they wait: with the default count training is ten times slower on a busy machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    signal.signal(signal.SIGTERM, _terminate)
    from tasks.params import load  # here, since processes that a stage starts import this module too

    try:
        params = load(options.root / "params.yaml")
        run = body(options.stage)
        try:
            inspect.signature(run).bind(params, options.root, *options.arguments)
        except TypeError as error:
            raise UserError(f"Stage {options.stage}: {error}.") from error
        run(params, options.root, *options.arguments)
    except UserError as error:
        print(f"contrapposto: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"contrapposto: The disk is full{where}; make room and run again: what was finished is kept.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
