"""The command that goes along with data collection."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from cryoforum.cli.app import app
from cryoforum.cli.options import Out, Root
from cryoforum.cli.terminal import counted, failing_clearly, progress_bars, tell


@app.command(epilog="Example: cryoforum watch Extract --pattern particles.star --model model --out live")
def watch(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where particle files appear, at any depth.")
    ],
    model: Annotated[Path, typer.Option(help="Folder written by train.")],
    out: Out,
    pattern: Annotated[str, typer.Option(help="Which files are particle files.")] = "*.star",
    keep: Annotated[
        float, typer.Option(help="Share of the first 1000 particles whose expected errors set the threshold.")
    ] = 0.75,
    max_error: Annotated[
        float | None, typer.Option(help="Expected error in degrees up to which particles are kept, instead.")
    ] = None,
    every: Annotated[
        float, typer.Option(help="Seconds between two looks; a file is taken that did not change meanwhile.")
    ] = 20.0,
    until_idle: Annotated[
        float | None, typer.Option(help="End when nothing new came for so many seconds.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Process what is there, and end.")] = False,
    root: Root = None,
    refine: Annotated[
        bool | None,
        typer.Option("--refine/--no-refine", help="As of predict; default: where the model has a reference."),
    ] = None,
) -> None:
    """Predict, filter and reconstruct on the fly, as data collection writes particles.

    Writes all.star, kept.star, map/ and report.html. After a kill, the same command goes on.
    """
    with failing_clearly():
        from cryoforum.watch.job import WatchOptions
        from cryoforum.watch.watch import watch as watch_folder

        options = WatchOptions(
            folder, model, out, pattern, keep, max_error, every, until_idle, once, root, refine
        )
        # Both end in one way, at any moment; what is under way cleans up after itself.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with progress_bars() as bar:
                count = watch_folder(options, bar, tell)
        except KeyboardInterrupt:
            tell("stopped; the same command goes on")
            raise typer.Exit(130) from None
        where = f" in {out / 'all.star'}, report in {out / 'report.html'}" if count else ""
        typer.echo(f"{counted(count, 'particle')}{where}")
