"""The stages and commands of `tasks` as parts of the command `contrapposto`.

The arguments are declared here and not read from the functions, because importing those takes seconds: `--help` and shell
completion have to be quick. A test compares both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tasks.__main__ import call

PANEL = "Tools"

Model = Annotated[Literal["poses", "pictures"], typer.Argument(help="Which model.")]
Trainable = Annotated[Literal["poses", "pictures", "codec", "motion", "video"], typer.Argument(help="Which model.")]
Checkpoint = Annotated[Path | None, typer.Argument(help="Resume from this checkpoint.", show_default=False)]
Folds = Annotated[
    int | None,
    typer.Option(
        "--folds",
        metavar="K",
        min=3,
        max=10,
        show_default=False,
        help="Train on everything, for as long as short trainings on K folds say is safe; nothing is held out.",
    ),
]
Alias = Annotated[
    Literal["champion", "challenger", "previous"], typer.Argument(help="Alias of the models in MLflow's registry.")
]
Part = Annotated[str, typer.Argument(help="Name of a part, as in raw.parts of params.yaml.")]

stages = typer.Typer(
    help="Run one stage of dvc.yaml by itself, without DVC and Prefect.", no_args_is_help=True, rich_markup_mode=None
)
commands = typer.Typer()


def _call(name: str, *arguments: object, folds: int | None = None) -> None:
    given = [str(value) for value in arguments if value is not None]
    raise typer.Exit(call(name, given, Path.cwd(), None if folds is None else str(folds)))


def _call_stage(name: str, *arguments: object, folds: int | None = None) -> None:
    from flows import workspace

    with workspace.alone(Path.cwd()):  # a stage replaces files that a pipeline run may be reading
        _call(name, *arguments, folds=folds)


@stages.command()
def mannequin() -> None:
    """Draw the built-in pictures, with their true joints."""
    _call_stage("mannequin")


@stages.command(name="list_parts")
def list_parts() -> None:
    """List the files of all parts, so that DVC notices changes."""
    _call_stage("list_parts")


@stages.command()
def extract(part: Part) -> None:
    """Find people and their landmarks in the files of one part."""
    _call_stage("extract", part)


@stages.command()
def curate() -> None:
    """Choose persons, group near-copies, split by group, and normalise poses."""
    _call_stage("curate")


@stages.command()
def shard() -> None:
    """Write the dataset as WebDataset tars."""
    _call_stage("shard")


@stages.command(name="dataset_card")
def dataset_card() -> None:
    """Write the page about the dataset."""
    _call_stage("dataset_card")


@stages.command()
def train(model: Trainable, checkpoint: Checkpoint = None, folds: Folds = None) -> None:
    """Train one model; an interrupted training resumes."""
    _call_stage("train", model, checkpoint, folds=folds)


Nodes = Annotated[int, typer.Option(min=2, help="How many machines train together.")]


@commands.command(name="train", rich_help_panel=PANEL)
def train_anywhere(
    model: Trainable,
    checkpoint: Checkpoint = None,
    folds: Folds = None,
    nodes: Annotated[int, typer.Option(min=1, help="How many machines train together, each with this command.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="The number of this machine, from 0.")] = 0,
    rendezvous: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Address of machine 0, the same on each.")
    ] = None,
    show: Annotated[bool, typer.Option("--print", help="Print the torchrun command of this machine and end.")] = False,
) -> None:
    """Train one model, on one machine or several; an interrupted training resumes. Exit code 75 means: run it again."""
    if nodes == 1 and not show:
        _call_stage("train", model, checkpoint, folds=folds)  # does not return
    if folds is not None:
        raise typer.BadParameter("--folds trains on one machine.")
    if rendezvous is None:
        raise typer.BadParameter("--nodes and --print need --rendezvous HOST:PORT.")
    from flows import several_nodes

    raise typer.Exit(several_nodes.train(model, nodes, node_rank, rendezvous, checkpoint, show))


@commands.command(name="launch-file", rich_help_panel=PANEL)
def launch_file(
    kind: Annotated[Literal["slurm", "skypilot"], typer.Argument(help="For which scheduler.")],
    model: Trainable,
    nodes: Nodes,
    hours: Annotated[int, typer.Option(min=1, help="Time limit of one attempt (Slurm).")] = 24,
    gpu: Annotated[str, typer.Option(help="The kind of GPU, in SkyPilot's words.")] = "H100",
    bucket: Annotated[
        str, typer.Option(help="Bucket that keeps checkpoints and models (SkyPilot).")
    ] = "contrapposto-training",
) -> None:
    """Print a Slurm batch script or a SkyPilot job that trains on several machines, as `ranks` in params.yaml says."""
    from flows import several_nodes

    raise typer.Exit(several_nodes.launch_file(kind, model, nodes, hours, gpu, bucket))


@stages.command(name="train_upscaler")
def train_upscaler(checkpoint: Checkpoint = None) -> None:
    """Train the model that enlarges pictures, if upscaler.size is set; an interrupted training resumes."""
    _call_stage("train_upscaler", checkpoint)


@stages.command()
def distill(model: Model) -> None:
    """Train a student of a trained model, which samples in fewer steps."""
    _call_stage("distill", model)


@stages.command()
def adapt(
    method: Annotated[
        Literal["lora", "dreambooth", "textual_inversion", "controlnet", "poses_adapted", "pictures_adapted"],
        typer.Argument(help="An entry of adapt in params.yaml."),
    ],
    checkpoint: Annotated[Path | None, typer.Argument(help="Resume from this checkpoint.", show_default=False)] = None,
) -> None:
    """Train a small change of a model on your pictures, such as a LoRA; an interrupted training resumes."""
    _call_stage("adapt", method, checkpoint)


@stages.command(name="train_classifier")
def train_classifier(model: Model) -> None:
    """Train the classifier of noisy examples that guides a trained model."""
    _call_stage("train_classifier", model)


@stages.command(name="train_recogniser")
def train_recogniser() -> None:
    """Train the classifiers that name a person's category, and judge them on held-out people."""
    _call_stage("train_recogniser")


@stages.command()
def sample(model: Model) -> None:
    """Draw the samples of one trained model."""
    _call_stage("sample", model)


@stages.command()
def memorization() -> None:
    """Test whether samples are closer to training examples than unseen examples are."""
    _call_stage("memorization")


@stages.command(name="membership_inference")
def membership_inference() -> None:
    """Test whether training examples are denoised better than held-out ones."""
    _call_stage("membership_inference")


@stages.command(name="pose_accuracy")
def pose_accuracy() -> None:
    """Compare the poses in sampled pictures with the requested ones."""
    _call_stage("pose_accuracy")


@stages.command(name="codec_quality")
def codec_quality() -> None:
    """Measure what is lost when pictures become latents and come back."""
    _call_stage("codec_quality")


@stages.command()
def fidelity() -> None:
    """Measure the distances between samples and held-out data."""
    _call_stage("fidelity")


@stages.command()
def promote() -> None:
    """Register the models, and make them the champion if they pass the gate."""
    _call_stage("promote")


@stages.command()
def report() -> None:
    """Write the report."""
    _call_stage("report")


@stages.command()
def animate() -> None:
    """Animate the built-in motion."""
    _call_stage("animate")


@stages.command()
def clips() -> None:
    """Cut motion into clips of one length, and write them as WebDataset tars."""
    _call_stage("clips")


@stages.command(name="clips_card")
def clips_card() -> None:
    """Describe the clips of motion on one page."""
    _call_stage("clips_card")


@stages.command(name="sample_motion")
def sample_motion() -> None:
    """Draw new motion, and motion that continues or follows what is given."""
    _call_stage("sample_motion")


@stages.command(name="motion_quality")
def motion_quality() -> None:
    """Measure how good the new motion is, and whether it is copied."""
    _call_stage("motion_quality")


@stages.command(name="promote_motion")
def promote_motion() -> None:
    """Register the motion model, and make it the champion if it passes the gate."""
    _call_stage("promote_motion")


@stages.command()
def film() -> None:
    """Draw the built-in motion frame by frame."""
    _call_stage("film")


@stages.command(name="video_clips")
def video_clips() -> None:
    """Cut moving pictures into clips of one length, and write them as WebDataset tars."""
    _call_stage("video_clips")


@stages.command(name="sample_video")
def sample_video() -> None:
    """Draw clips of people in the poses of held-out clips and of generated motion."""
    _call_stage("sample_video")


@stages.command(name="video_quality")
def video_quality() -> None:
    """Measure whether generated clips show the poses asked for, whether they flicker, and whether they are copied."""
    _call_stage("video_quality")


@stages.command(name="promote_video")
def promote_video() -> None:
    """Register the video model, and make it the champion if it passes the gate."""
    _call_stage("promote_video")


@stages.command(name="video_page")
def video_page() -> None:
    """Write the page about clips of pictures."""
    _call_stage("video_page")


@stages.command(name="motion_page")
def motion_page() -> None:
    """Write the page about motion."""
    _call_stage("motion_page")


@commands.command(rich_help_panel=PANEL)
def compare(runs: Annotated[list[str], typer.Argument(help="Two or more: run ids, names or aliases.")]) -> None:
    """Compare runs side by side: a table, compare.md and compare.png."""
    _call("compare", *runs)


@commands.command(rich_help_panel=PANEL)
def explain(key: Annotated[str, typer.Argument(help="Key of a sample, as in the reports.")]) -> None:
    """Show one sample with its nearest neighbours and what the memorization test says about it."""
    _call("explain", key)


@commands.command(rich_help_panel=PANEL)
def export(alias: Alias = "champion") -> None:
    """Export registered models for serving, in MLflow's and Hugging Face's layouts."""
    _call("export", alias)


@commands.command(name="export-adapter", rich_help_panel=PANEL)
def export_adapter(
    method: Annotated[str, typer.Argument(help="A registered adapter of a published model, such as lora.")],
    alias: Alias = "champion",
) -> None:
    """Export a registered adapter with its published model for serving, in MLflow's layout."""
    _call("export_adapter", method, alias)


@commands.command(name="export-motion", rich_help_panel=PANEL)
def export_motion(
    split: Annotated[str, typer.Argument(help="Which samples: samples, followed, continued, ...")] = "samples",
    count: Annotated[int, typer.Argument(min=1, help="How many.")] = 15,
) -> None:
    """Export motion as BVH, joint angles (CSV), looping pictures and videos."""
    _call("export_motion", split, count)


@commands.command(name="extract-slice", rich_help_panel=PANEL)
def extract_slice(
    part: Part,
    rank: Annotated[int, typer.Argument(min=0, help="Number of the slice.")],
    world: Annotated[int, typer.Argument(min=1, help="Number of slices.")],
    folder: Annotated[
        Path | None, typer.Argument(help="Folder with the files of the slice, if the part is not on this machine.")
    ] = None,
    workers: Annotated[
        int | None, typer.Argument(min=0, help="Processes that extract; without it, as extract.workers says.")
    ] = None,
) -> None:
    """Extract one slice of a part, as a worker does."""
    _call("extract_slice", part, rank, world, folder if workers is None else folder or "", workers)


@commands.command(name="stage-slice", rich_help_panel=PANEL)
def stage_slice(
    folder: Annotated[Path, typer.Argument(help="Folder for the results of the slice; what is there is replaced.")],
    rank: Annotated[int, typer.Argument(min=0, help="Number of the slice.")],
    world: Annotated[int, typer.Argument(min=1, help="Number of slices.")],
    first: Annotated[int, typer.Argument(min=0, help="Number of the first block that is divided.")],
    last: Annotated[int, typer.Argument(min=0, help="One more than that of the last; 0: as many as are needed.")],
    cores: Annotated[int, typer.Argument(min=0, help="Processes that read pictures; 0: `extract.workers`.")],
    task: Annotated[list[str], typer.Argument(help="The stage and its arguments, as in `python -m tasks`.")],
) -> None:
    """Compute one slice of the blocks of a stage, as a worker does."""
    _call("stage_slice", folder, rank, world, first, last, cores, *task)


@commands.command(name="stream-shards", rich_help_panel=PANEL)
def stream_shards(
    url: Annotated[str, typer.Argument(help="s3://BUCKET/PREFIX or a folder with a copy of data/shards.")],
    endpoint: Annotated[str | None, typer.Argument(help="Of stores other than Amazon's.")] = None,
) -> None:
    """Use shards in an object store: their index now, each tar when it is read."""
    _call("stream_shards", url, endpoint)


@commands.command(rich_help_panel=PANEL)
def forget(keys: Annotated[list[str], typer.Argument(help="Keys of persons, as in tables and shards.")]) -> None:
    """Exclude persons from all later datasets, and list the models that were trained on them."""
    _call("forget", *keys)


@commands.command(rich_help_panel=PANEL)
def recognise(
    pictures: Annotated[Path, typer.Argument(help="A picture, or a folder of pictures.")],
) -> None:
    """Name the category of each person in pictures, from landmarks and from pixels."""
    _call("recognise", pictures)


@commands.command(name="promote-adapter", rich_help_panel=PANEL)
def promote_adapter(
    method: Annotated[str, typer.Argument(help="An adapter in artifacts/, such as lora.")],
    accept: Annotated[
        str | None, typer.Argument(help="Verdict to accept nevertheless, such as TOO-FEW.", show_default=False)
    ] = None,
) -> None:
    """Register an adapter of a published model; it becomes champion unless its certificate forbids that."""
    _call("promote_adapter", method, accept)


@commands.command(rich_help_panel=PANEL)
def rollback(
    model: Annotated[
        Literal["motion", "video"] | None,
        typer.Argument(help="The model of motion or of clips; without it those of poses and pictures."),
    ] = None,
) -> None:
    """Exchange the champion and the previous champion."""
    _call("rollback", model)


@commands.command(name="video-distance", rich_help_panel=PANEL)
def video_distance(
    generated: Annotated[Path, typer.Argument(help="Folder of generated videos or pose sequences.")],
    real: Annotated[Path, typer.Argument(help="Folder of real ones.")],
) -> None:
    """Measure the Frechet distance between two folders of videos or pose sequences."""
    _call("video_distance", generated, real)
