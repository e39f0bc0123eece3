"""The application that every command registers with."""

import os
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


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of every error, bad input included.")
    ] = False,
) -> None:
    """Options of all commands."""
    terminal.show_tracebacks(debug)


def main() -> None:
    """What the command `cryoforum` runs."""
    # Threads of torch's OpenMP that wait by spinning for long starve each other where another program runs.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    app(prog_name="cryoforum")
