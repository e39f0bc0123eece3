"""Commands on particle files."""

from pathlib import Path
from typing import Annotated

import typer

from cryoforum.cli.app import app
from cryoforum.cli.options import Out, Overwrite, Root
from cryoforum.cli.terminal import counted, failing_clearly, tell


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
    scale_origins: Annotated[
        float | None, typer.Option(metavar="FACTOR", help="Multiply all origins by it; -1 turns their sign.")
    ] = None,
    invert_rotations: Annotated[
        bool, typer.Option("--invert-rotations", help="Write the angles of the inverse rotations.")
    ] = False,
    scale_pixel_size: Annotated[
        float | None,
        typer.Option(
            metavar="FACTOR",
            help="Multiply the pixel size of all images by it; the numbers of origins, and the pixel size "
            "of the micrographs, stay as they are.",
        ),
    ] = None,
    root: Root = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn a particle file of cryoSPARC into one of RELION, back, or RELION 3.0 into 3.1 and back.

    May correct what `check` found wrong, in the same format, too.
    """
    with failing_clearly():
        from cryoforum.commands.convert import convert_file
        from cryoforum.commands.correct import Corrections

        origins = 1.0 if scale_origins is None else scale_origins
        pixels = 1.0 if scale_pixel_size is None else scale_pixel_size
        corrections = Corrections(origins, invert_rotations, pixels)
        count = convert_file(inputs, out, relion, root, overwrite, tell, corrections)
        typer.echo(f"{counted(count, 'particle')} in {out}")
