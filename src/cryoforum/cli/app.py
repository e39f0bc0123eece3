"""The application that every command registers with."""

import os
from importlib.metadata import version
from typing import Annotated

import typer

from cryoforum.cli import terminal

app = typer.Typer(
    help="Poses of cryo-EM particles, each with its uncertainty.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cryoforum {version('cryo-forum')}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of every error, bad input included.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", min=1, help="Cores to use; all if not given."),
    ] = None,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and end.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Options of all commands."""
    terminal.show_tracebacks(debug)
    if threads is not None:
        from cryoforum.runtime.threads import use_threads

        use_threads(str(threads))


def main() -> None:
    """What the command `cryoforum` runs."""
    # Threads of torch's OpenMP that wait by spinning for long starve each other where another program runs.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    app(prog_name="cryoforum")
