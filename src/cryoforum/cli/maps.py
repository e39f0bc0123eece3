"""Commands that make maps and pages."""

from pathlib import Path
from typing import Annotated

import typer

from cryoforum.cli import options
from cryoforum.cli.app import app
from cryoforum.cli.terminal import running, show_resolution


@app.command(epilog="Example: cryoforum reconstruct kept.star --out map")
def reconstruct(
    particles: options.Particles,
    out: options.Out,
    symmetry: options.Symmetry = "C1",
    scratch: options.ScratchFolder = None,
    keep_scratch: options.KeepScratch = False,
    root: options.Root = None,
    keep_ramp: options.KeepRamp = False,
    drop_unusable: options.DropUnusable = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Reconstruct half maps and map by direct Fourier inversion, with FSC and resolution."""
    with running() as reporter:
        from cryoforum.commands import reconstruct as command
        from cryoforum.io.scratch import Scratch

        place = Scratch(scratch, keep_scratch)
        request = command.ReconstructRequest(
            particles, out, root, symmetry, overwrite, place, keep_ramp, drop_unusable
        )
        resolution = command.reconstruct(request, reporter)
        show_resolution(resolution)
        typer.echo(f"maps, their mask (mask.mrc), a sharpened map and fsc.csv in {out}")


@app.command(epilog="Example: cryoforum report demo")
def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Folder with predictions.star, kept.star, map/ and model/, or laid out as the demo's.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="HTML file; DIR/report.html if not given.")] = None,
    root: options.Root = None,
    overwrite: options.Overwrite = False,
) -> None:
    """One self-contained HTML page of pictures of a run."""
    with running():
        from cryoforum.errors import require
        from cryoforum.report.page import say_what_is_missing, write_report
        from cryoforum.storage.files import check_output

        require(folder.is_dir(), f"a folder of results at {folder}", "none")
        check_output(out, overwrite)
        output = out or folder / "report.html"
        write_report(folder, output, root)
        say_what_is_missing(folder)
        typer.echo(f"report in {output}")
