"""Commands on particle files."""

from pathlib import Path
from typing import Annotated

import typer

from cryoforum.cli.app import app
from cryoforum.cli.options import Out, Overwrite, Root
from cryoforum.terminal import failing_clearly, tell


@app.command(epilog="Example: cryoforum convert J12_005_particles.cs --out particles.star")
def convert(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="PARTICLES", help="A .star file; or a .cs file, and its passthrough files."),
    ],
    out: Out,
    relion: Annotated[
        str | None, typer.Option(help="Dialect of a .star file: 3.0 or 3.1 (the default).")
    ] = None,
    root: Root = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn a particle file of cryoSPARC into one of RELION, back, or RELION 3.0 into 3.1 and back."""
    with failing_clearly():
        from cryoforum.converting import convert_file

        count = convert_file(inputs, out, relion, root, overwrite, tell)
        typer.echo(f"{count} particles in {out}")
