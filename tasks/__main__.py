"""`python -m tasks STAGE [ARGUMENT ...] [--root DIR] [--folds K]`: what every stage of dvc.yaml runs, by way of stage.sh.

It calls the function of the stage as `run(params, root, *arguments)`. A problem that the user can fix ends as one line
`contrapposto: <sentence>` on stderr and an exit code (2: parameters or command line, 3: data); a bug keeps its traceback.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from tasks import paths
from tasks.common import command
from tasks.common.errors import UserError

if TYPE_CHECKING:
    from tasks.config.params import Params

# DVC runs these: the stages of dvc.yaml.
STAGES = {
    "mannequin": "tasks.synthetic.stage",
    "list_parts": "tasks.extract.listing",
    "extract": "tasks.extract.stage",
    "curate": "tasks.dataset.curate",
    "shard": "tasks.dataset.shard",
    "dataset_card": "tasks.report.dataset_card",
    "train": "tasks.train.stage",
    "distill": "tasks.train.distill",
    "train_classifier": "tasks.train.classifier",
    "adapt": "tasks.adapt.stage",
    "train_upscaler": "tasks.train.upscaler_stage",
    "train_recogniser": "tasks.recognise.stage",
    "sample": "tasks.sample.stage",
    "memorization": "tasks.evaluate.memorization.stage",
    "membership_inference": "tasks.evaluate.membership_inference",
    "pose_accuracy": "tasks.evaluate.pose_accuracy",
    "codec_quality": "tasks.evaluate.codec_quality",
    "fidelity": "tasks.evaluate.fidelity",
    "promote": "tasks.registry.promote",
    "report": "tasks.report.stage",
    "animate": "tasks.synthetic.animate",
    "clips": "tasks.dataset.clips",
    "clips_card": "tasks.report.clips_card",
    "sample_motion": "tasks.sample.motion",
    "motion_quality": "tasks.evaluate.motion_quality",
    "promote_motion": "tasks.registry.promote_motion",
    "motion_page": "tasks.report.motion_page",
    "film": "tasks.synthetic.film",
    "video_clips": "tasks.dataset.video_clips",
    "sample_video": "tasks.sample.video",
    "video_quality": "tasks.evaluate.video_quality",
    "promote_video": "tasks.registry.promote_video",
    "video_page": "tasks.report.video_page",
}

# People run these.
COMMANDS = {
    "compare": "tasks.registry.compare",
    "explain": "tasks.report.explain",
    "export": "tasks.sample.export",
    "export_adapter": "tasks.adapt.export",
    "export_motion": "tasks.sample.export_motion",
    "extract_slice": "tasks.extract.slices",
    "forget": "tasks.registry.forget",
    "generate": "tasks.sample.generate",
    "promote_adapter": "tasks.registry.promote_adapter",
    "recognise": "tasks.recognise.recognise",
    "rollback": "tasks.registry.rollback",
    "stage_slice": "tasks.stage_slice",
    "stream_shards": "tasks.dataset.remote_shards",
    "video_distance": "tasks.evaluate.video_distance",
}

# Stages that do something else with `--folds K`, which is then their last argument.
FOLDED = {"train": "tasks.folds.stage"}


def body(name: str, folded: bool = False) -> Callable[..., None]:
    """The function of a stage or command: `run` of its module. Raises UserError if there is none.

    `folded`: its form with `--folds`.
    """
    if folded and name not in FOLDED:
        raise UserError(f"Only {', '.join(FOLDED)} has --folds.")
    module = FOLDED[name] if folded else (STAGES | COMMANDS).get(name)
    if module is None:
        raise UserError(
            f"There is no stage {name!r}; the stages are {', '.join(STAGES)}, the commands are {', '.join(COMMANDS)}."
        )
    run: Callable[..., None] = importlib.import_module(module).run
    return run


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)  # unlike the default, this runs every `finally`


def main(argv: list[str] | None = None) -> int:
    """Run one stage or command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks",
        description=f"Run one stage ({', '.join(STAGES)}) or command ({', '.join(COMMANDS)}).",
        epilog="`contrapposto --help` describes each of them and its arguments.",
    )
    parser.add_argument("stage", help="the stage or command")
    parser.add_argument("arguments", nargs="*", help="its own arguments, such as a model's name")
    parser.add_argument("--root", type=Path, help="the workspace (default: the current folder)")
    parser.add_argument("--folds", metavar="K", help="of train: on everything, see docs/training.md")
    options = parser.parse_args(argv)
    return call(options.stage, options.arguments, options.root, options.folds)


def call(stage: str, arguments: Sequence[str], root: Path | None, folds: str | None = None) -> int:
    """Run one stage or command in this process; returns the exit code.

    `root`: the workspace; None: the current folder. `folds`: the value of `--folds`, if it was given.
    """

    def work(params: Params, workspace: Path) -> None:
        run = body(stage) if folds is None else body(stage, folded=True)
        given = [*arguments, *([] if folds is None else [folds])]
        try:
            inspect.signature(run).bind(params, workspace, *given)
        except TypeError as error:
            raise UserError(f"Stage {stage}: {error}.") from error
        run(params, workspace, *given)

    return in_workspace(work, root)


def in_workspace(function: Callable[[Params, Path], None], root: Path | None = None) -> int:
    """Call a function with the parameters and the folder of a workspace; returns the exit code.

    `root`: the workspace; None: the current folder.
    """
    os.environ.setdefault("WDS_SECURE", "1")  # webdataset must never unpickle
    os.environ.setdefault("DO_NOT_TRACK", "true")
    # torch's threads spin while they wait: with the default count training is ten times slower on a busy machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    signal.signal(signal.SIGTERM, _terminate)
    from tasks.config.params import load  # not above: the worker processes of a stage import this module, too

    def work() -> int:
        workspace = command.current_folder() if root is None else root
        function(load(workspace / paths.PARAMS), workspace)
        return 0

    return command.run(work, root)


if __name__ == "__main__":
    sys.exit(main())
