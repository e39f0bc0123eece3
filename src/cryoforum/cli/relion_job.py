"""The command that RELION's External job calls."""

import sys
from pathlib import Path
from typing import Annotated, get_args

import typer

from cryoforum.choices import RelionAction
from cryoforum.cli.app import app
from cryoforum.cli.terminal import running, shows_tracebacks
from cryoforum.errors import InputError

# Its base in whatever click typer uses: its own, or the package of that name, by version.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
# Text to typer, which would refuse another word before the job could leave the marker that RELION waits for.
Action = Annotated[
    str, typer.Option(metavar="|".join(get_args(RelionAction)), help="Which command does the job.")
]


@app.command(
    "relion-job",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog="Example: cryoforum relion-job --o External/job012/ --in_parts Extract/job010/particles.star "
    "--action predict --model External/job008/",
)
def relion_job(
    context: typer.Context,
    o: Annotated[Path, typer.Option("--o", help="The job's folder.")],
    in_parts: Annotated[Path | None, typer.Option("--in_parts", help="Particles (STAR).")] = None,
    in_3dref: Annotated[
        str | None, typer.Option("--in_3dref", help="predict: compare with this map instead of the model's.")
    ] = None,
    in_mask: Annotated[
        str | None, typer.Option("--in_mask", help="predict: multiply the map by this mask.")
    ] = None,
    action: Action = "predict",
    model: Annotated[
        Path | None, typer.Option(help="predict: a model folder, or the job folder of a training.")
    ] = None,
    j: Annotated[str | None, typer.Option("--j", help="Threads.")] = None,
) -> None:
    """Train, predict or filter as an External job of RELION; see docs/relion.md.

    Every other option is one of the command of that action, as --preset, --max-minutes or --keep.
    """
    with running():
        from cryoforum.commands.relion_job import ExternalJob, marked, write_output_nodes
        from cryoforum.runtime.threads import use_threads

        job = ExternalJob(o, action, in_parts, model, in_3dref, in_mask, tuple(context.args))
        with marked(o):
            if j is not None:
                use_threads(j)
            words = ["--debug", *job.words] if shows_tracebacks() else job.words
            given, sys.argv[1:] = sys.argv[1:], words  # what --devices starts does the command, not the job
            try:
                code = app(words, standalone_mode=False)
            except UsageError as error:
                said = getattr(error, "format_message", error.__str__)()
                raise InputError(f"cryoforum {job.words[0]}: {said}") from None
            finally:
                sys.argv[1:] = given
            if code:
                raise typer.Exit(code)
            write_output_nodes(job)
