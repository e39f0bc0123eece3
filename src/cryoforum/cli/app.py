"""The application that every command registers with."""

import os

import typer

# Threads of torch's OpenMP that wait by spinning for long starve each other where another program runs.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

app = typer.Typer(
    help="Poses of cryo-EM particles, each with how sure it is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
