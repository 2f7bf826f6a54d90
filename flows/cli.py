"""The command `contrapposto`: every flow, stage and command, and the standing services, each with `--help`.

A problem that the user can fix ends as one line `contrapposto: <sentence>` on stderr and an exit code (2: parameters or command
line, 3: data); a bug keeps its traceback. Prefect, DVC and torch are imported only by the commands that need them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import cli_tasks
from tasks import paths
from tasks.common import command
from tasks.common.errors import UserError

FLOWS, SERVICES, INFORMATION = "Flows", "Services", "Data and information"
PIPED = 200  # width of tables in characters if stdout is not a terminal

app = typer.Typer(
    help="From pictures of people to new poses and pictures of them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Raw = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="A folder of pictures, or `mannequin` for the built-in ones."),
]
Changed = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Write a value into params.yaml first, such as poses.seed=1."),
]


def _run(flow: str, changed: list[str] | None, **parameters: str | None) -> None:
    from flows.param_changes import parse
    from flows.run_here import run_flow

    given: dict[str, Any] = {"changes": parse(changed) if changed else None, **parameters}
    raise typer.Exit(run_flow(flow, **given))


@app.command(rich_help_panel=FLOWS)
def train_poses(raw: Raw = None, changed: Changed = None) -> None:
    """Run the whole pipeline: from pictures to promoted models and the report."""
    _run("train-poses", changed, raw=raw)


@app.command(rich_help_panel=FLOWS)
def train_motion(raw: Raw = None, changed: Changed = None) -> None:
    """Train the model of motion on videos, motion captures and the built-in animation; from files to the page about it."""
    _run("train-motion", changed, raw=raw)


@app.command(rich_help_panel=FLOWS)
def train_video(raw: Raw = None, changed: Changed = None) -> None:
    """Train the model of clips of people in motion, and those of pictures and motion before it; ends with the page about it."""
    _run("train-video", changed, raw=raw)


@app.command(rich_help_panel=FLOWS)
def retrain(changed: Changed = None) -> None:
    """Run the whole pipeline on the pictures that are there now, starting from the champion's weights."""
    _run("retrain", changed)


@app.command(rich_help_panel=FLOWS)
def curate(raw: Raw = None, changed: Changed = None) -> None:
    """Make the dataset, its shards and its card; train nothing."""
    _run("curate", changed, raw=raw)


@app.command(rich_help_panel=FLOWS)
def generate(changed: Changed = None) -> None:
    """Draw samples with a registered model, and keep those that show the requested pose."""
    _run("generate", changed)


@app.command(rich_help_panel=FLOWS)
def evaluate(changed: Changed = None) -> None:
    """Run the memorization test, and measure the distances to held-out data."""
    _run("evaluate", changed)


@app.command(rich_help_panel=FLOWS)
def sweep(
    file: Annotated[Path, typer.Argument(help="YAML with `workers` and a `grid` of parameters or a list of `runs`.")],
) -> None:
    """Run DVC experiments with other parameters, several at once, each in a folder of its own."""
    from flows.run_here import run_flow

    # Not flows.sweep: it imports Prefect, which must not happen before the private server has its address.
    from flows.sweep_file import read

    read(Path.cwd(), file)  # a mistake in it is told before a server starts
    raise typer.Exit(run_flow("sweep", "flows.sweep", file=str(file)))


app.add_typer(cli_tasks.stages, name="stage", rich_help_panel=FLOWS)


@app.command(rich_help_panel=SERVICES)
def up() -> None:
    """Start Prefect's server, MLflow's server, a worker and the watch for new data."""
    from flows import services
    from tasks.config.params import load
    from tasks.registry import ui

    params = load(paths.PARAMS)
    ui.prepare(params, Path.cwd())
    services.up(params, Path.cwd())
    print(f"runs     in MLflow: {ui.address(params, Path.cwd())}")


@app.command(rich_help_panel=SERVICES)
def down() -> None:
    """Stop them."""
    from flows import services

    services.down(Path.cwd())


@app.command(rich_help_panel=SERVICES)
def status() -> None:
    """Show their state; exit code 1 unless all are up."""
    from flows import services
    from tasks.config.params import load

    states = services.status(load(paths.PARAMS), Path.cwd())
    services.show(states, Path.cwd())
    raise typer.Exit(0 if all(service.state == "up" for service in states) else 1)


@app.command(rich_help_panel=SERVICES)
def service(name: Annotated[str, typer.Argument(help="prefect, mlflow, worker or watch.")]) -> None:
    """Run one of them in the foreground, for a service manager such as systemd."""
    from flows import services
    from tasks.config.params import load
    from tasks.registry import ui

    params = load(paths.PARAMS)
    if name == "mlflow":
        ui.prepare(params, Path.cwd())
    services.foreground(params, Path.cwd(), name)


@app.command(rich_help_panel=INFORMATION)
def parts() -> None:
    """Bring raw.parts of params.yaml up to date, and list the parts."""
    from flows import workspace

    with workspace.alone(Path.cwd()):
        params = workspace.prepare(Path.cwd())
    for name, folder in params.raw.parts.items():
        print(f"{name}  {folder}")


@app.command(rich_help_panel=INFORMATION)
def preset(
    name: Annotated[
        str | None, typer.Argument(help="Without a name the presets are listed.", show_default=False)
    ] = None,
) -> None:
    """Write a preset into params.yaml: cpu-12min, cpu-1h, gpu-1h, gpu-overnight, or a file of your own in presets/."""
    from flows import presets

    if name is None:
        for each in presets.names(Path.cwd()):
            print(f"{each}  {presets.load(Path.cwd(), each).about}")
        return
    changed = presets.apply(Path.cwd(), name)
    print(f"params.yaml has the values of {name}. {changed.about}")


@app.command(rich_help_panel=INFORMATION)
def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed, and remove nothing.")] = False,
) -> None:
    """Remove everything that runs made, and nothing that was delivered."""
    from flows import cleaning

    cleaning.clean(Path.cwd(), dry_run)


@app.command(rich_help_panel=cli_tasks.PANEL)
def certify(
    train: Annotated[Path, typer.Option(metavar="DIR", help="The pictures that the model was trained on.")],
    samples: Annotated[Path, typer.Option(metavar="DIR", help="The pictures that it generated.")],
    heldout: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Pictures of the same kind that it was not trained on.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for certificate.json and certificate.html.")
    ] = None,
    near_duplicate: Annotated[
        float,
        typer.Option(min=0, max=1, help="Distance up to which training pictures are one photo; 0: only equal files."),
    ] = 0.17,
    as_json: Annotated[bool, typer.Option("--json", help="Print certificate.json instead of the sentence.")] = False,
) -> None:
    """Are generated pictures copies of training pictures? For folders of pictures by any model.

    Exit code 0: CLEAN; 10: COPIES; 11: no verdict of these two; 2 and 3: an error.
    """
    # Before torch is imported: its threads would spin while they wait, and slow each other down on a busy machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    from tasks.certify import certify as certify_folders

    result = certify_folders(train, samples, heldout, out, near_duplicate=near_duplicate)
    if as_json:
        print(json.dumps(result.report, indent=2, sort_keys=True, ensure_ascii=False))
    else:
        print(f"{result.verdict.value}: {result.sentence}")
        if out is not None:
            print(out / "certificate.html")
    raise typer.Exit(result.exit_code)


@app.command(rich_help_panel=cli_tasks.PANEL)
def base(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that diffusers stored a pipeline in.")],
    write: Annotated[bool, typer.Option("--write", help="Write it into params.yaml as base.")] = False,
) -> None:
    """Say what a published model is, and its sha256 for `base` of params.yaml."""
    from tasks.config.params import set_value
    from tasks.foreign import draw

    _, about = draw.describe(folder)
    print(f"{about['pipeline']}: {about['network']}, which predicts {about['prediction']}")
    entry = {"source": str(folder), "sha256": about["sha256"]}
    print(f"base: {{source: {json.dumps(entry['source'], ensure_ascii=False)}, sha256: {entry['sha256']}}}")
    if write:
        set_value(paths.PARAMS, "base", entry)


@app.command(name="text", rich_help_panel=cli_tasks.PANEL)
def text_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A CLIP or T5 text encoder, or a pipeline of diffusers.")
    ],
    write: Annotated[bool, typer.Option("--write", help="Write it into params.yaml as shard.text.")] = False,
) -> None:
    """Say what a text encoder's sha256 is, for `shard.text` of params.yaml."""
    from tasks.common import published
    from tasks.config.params import set_value
    from tasks.text import encoder

    encoder.opened(folder)
    entry = {"source": str(folder), "sha256": published.digest(folder)}
    print(f"text: {{source: {json.dumps(entry['source'], ensure_ascii=False)}, sha256: {entry['sha256']}}}")
    if write:
        set_value(paths.PARAMS, "shard.text", entry)


@app.command(name="draw", rich_help_panel=cli_tasks.PANEL)
def draw_command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pictures and their prompts.")],
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A prompt; several are shown in turn.", show_default=False)
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text file with a prompt in each line.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--base", metavar="DIR", help="The published model; without it `base` of params.yaml."),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(help="Of --base, as `contrapposto base` prints it; not checked without.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Pictures; without it one of each prompt.")] = None,
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="What guidance leads away from.")] = None,
    size: Annotated[int | None, typer.Option(min=8, help="Pixels; without it those of the model's training.")] = None,
    sampler: Annotated[str, typer.Option(help="As in `contrapposto methods`.")] = "dpmpp_2m",
    steps: Annotated[int, typer.Option(min=1, max=1000)] = 25,
    guidance: Annotated[float, typer.Option(min=0, max=100, help="Scale of classifier-free guidance; 1: none.")] = 7.5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at once; it changes memory, not the pictures.")] = 4,
    precision: Annotated[str, typer.Option(help="Of the network: fp32, bf16, fp16, or auto.")] = "auto",
    adapter: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="A LoRA, word or ControlNet: artifacts/lora, or lora@champion."),
    ] = None,
    scale: Annotated[float, typer.Option(help="What the adapter's change is multiplied by; 0: the model alone.")] = 1.0,
    poses: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For a ControlNet: PNGs of poses, such as artifacts/controlnet/poses."),
    ] = None,
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep the weights in the memory of the CPU: less of the GPU's, slower.")
    ] = False,
) -> None:
    """Draw pictures of prompts with a published model, such as a Stable Diffusion folder, by any sampler.

    A run that is stopped and started again draws the missing pictures. `contrapposto certify` tests the folder.
    """
    from pydantic import ValidationError

    from tasks.config.params import load, validation_sentence
    from tasks.config.sampling import SamplingChoices
    from tasks.foreign import draw
    from tasks.registry import promote_adapter

    given = {"sampler": sampler, "steps": steps, "guidance": guidance}
    try:
        how = SamplingChoices.model_validate(given)
    except ValidationError as error:
        raise UserError(validation_sentence(dict(error.errors()[0]), "command line", given)) from error
    if precision not in ("auto", *draw.DTYPES):
        raise UserError(f"--precision must be auto, fp32, fp16 or bf16, got {precision}.")
    params = load(paths.PARAMS) if source is None and paths.PARAMS.is_file() else None
    where, expected = draw.located(params, Path.cwd(), source, sha256)
    texts = draw.read_prompts(prompt or [], prompts)
    request = draw.Request(texts, count or len(texts), how, negative, size, seed, batch, precision)  # type: ignore[arg-type]
    folder = None
    if adapter is not None:
        folder = promote_adapter.located(load(paths.PARAMS) if paths.PARAMS.is_file() else None, Path.cwd(), adapter)
    print(draw.draw(where, expected, request, out, folder, scale, poses, offload))


@app.command(rich_help_panel=cli_tasks.PANEL)
def merge(
    adapter: Annotated[Path, typer.Argument(metavar="DIR", help="A LoRA, such as artifacts/lora.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the new model.")],
    source: Annotated[
        Path | None, typer.Option("--base", metavar="DIR", help="Its base; without it `base` of params.yaml.")
    ] = None,
    scale: Annotated[float, typer.Option(help="What the LoRA's change is multiplied by.")] = 1.0,
) -> None:
    """Add a LoRA to the weights of its published model: a folder that diffusers loads without the LoRA."""
    from tasks.config.params import load
    from tasks.foreign import draw

    params = load(paths.PARAMS) if source is None and paths.PARAMS.is_file() else None
    print(draw.merge(*draw.located(params, Path.cwd(), source, None), adapter, out, scale))


@app.command(rich_help_panel=INFORMATION)
def methods(
    words: Annotated[list[str] | None, typer.Argument(help="Show only methods whose row contains all words.")] = None,
) -> None:
    """List the methods of diffusion_core: name, call, paper."""
    from rich.console import Console
    from rich.table import Table

    from flows import method_page

    if not method_page.PAGE.is_file():
        raise UserError(f"There is no {method_page.PAGE}.")
    page = method_page.current(method_page.PAGE.read_text(encoding="utf-8"))
    shown = {
        title: (
            rows[0],
            [row for row in rows[1:] if all(word.lower() in " ".join(row).lower() for word in words or ())],
        )
        for title, rows in method_page.tables(page).items()
    }
    if not any(rows for _, rows in shown.values()):
        raise UserError(f"No method has all of these words: {', '.join(words or ())}.")
    console = Console(width=None if sys.stdout.isatty() else PIPED)
    for title, (names, rows) in shown.items():
        if rows:
            table = Table(title=title, title_justify="left", box=None, pad_edge=False)
            for name in names:
                table.add_column(name, overflow="fold")
            for row in rows:
                table.add_row(*row)
            console.print(table)
            print()


app.registered_commands += cli_tasks.commands.registered_commands


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""

    def work() -> int:
        try:
            app(args=argv, prog_name="contrapposto")
        except SystemExit as end:  # typer ends every command with it
            return end.code if isinstance(end.code, int) else 1
        return 0

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())
