"""The command that asks a particle file's images whether it means what it says."""

from pathlib import Path
from typing import Annotated

import typer

from cryoforum.cli.app import app
from cryoforum.cli.options import MapPixelSize, Overwrite, Root, Stars, Symmetry
from cryoforum.cli.terminal import failing_clearly, show_check, tell
from cryoforum.errors import InputError


@app.command(epilog="Example: cryoforum check refined.star --out check.html")
def check(
    particles: Stars,
    reference: Annotated[
        str | None, typer.Option(help="Map of the molecule, to tell the hand and the pixel size by.")
    ] = None,
    map_pixel_size: MapPixelSize = None,
    symmetry: Symmetry = "C1",
    out: Annotated[
        Path | None, typer.Option(help="Picture page (.html), or the pictures alone (.png).")
    ] = None,
    root: Root = None,
    overwrite: Overwrite = False,
) -> None:
    """Say what was understood of a file, and whether its images bear it out: units, signs, CTF, contrast.

    Ends with "ready", with what is wrong and what mends it (exit code 1), or with "cannot tell".
    """
    with failing_clearly():
        from cryoforum.check.check import Reference, check_files
        from cryoforum.check.page import write_check
        from cryoforum.storage.files import refuse_to_overwrite, require_folder_of

        if out is not None:
            refuse_to_overwrite(out, overwrite)
            require_folder_of(out)
            if out.suffix not in (".html", ".png"):
                raise InputError(f"expected --out PAGE.html or PICTURES.png, found {out}")
        if reference is None and map_pixel_size is not None:
            raise InputError("expected --map-pixel-size with --reference; leave it out, or give the map")
        map_given = None if reference is None else Reference(reference, map_pixel_size)
        result = check_files(particles, root, symmetry, map_given, tell)
        show_check(result)
        if out is not None:
            write_check(result, out)
    raise typer.Exit(1 if result.problems else 0)
