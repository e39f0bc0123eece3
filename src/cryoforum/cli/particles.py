"""Commands on particle files."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cryoforum.choices import JUNK_KINDS, Orientations, RelionDialect
from cryoforum.cli import options
from cryoforum.cli.app import app
from cryoforum.cli.terminal import counted, running, show_check


@app.command(epilog="Example: cryoforum check refined.star --out check.html")
def check(
    particles: options.Particles,
    reference: Annotated[
        str | None, typer.Option(help="Map of the molecule, to tell the hand and the pixel size by.")
    ] = None,
    map_pixel_size: options.MapPixelSize = None,
    symmetry: options.Symmetry = "C1",
    out: Annotated[
        Path | None, typer.Option(help="Picture page (.html), or the pictures alone (.png).")
    ] = None,
    root: options.Root = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Say what was understood of a file, and whether its images bear it out: units, signs, CTF, contrast.

    Ends with "ready", with the problems and their fixes (exit code 1), or with "cannot tell".
    """
    with running():
        from cryoforum.commands.check.check import check_files
        from cryoforum.commands.check.page import write_check
        from cryoforum.commands.reference_maps import ReferenceMap
        from cryoforum.errors import InputError
        from cryoforum.storage.files import check_output

        check_output(out, overwrite)
        if out is not None and out.suffix not in (".html", ".png"):
            raise InputError(f"expected --out PAGE.html or PICTURES.png, found {out}")
        if reference is None and map_pixel_size is not None:
            raise InputError("expected --map-pixel-size with --reference; leave it out, or give the map")
        given = None if reference is None else ReferenceMap(reference, map_pixel_size)
        result = check_files(particles, root, symmetry, given)
        if out is not None:
            write_check(result, out)
            typer.echo(f"pictures in {out}")
        show_check(result)
    raise typer.Exit(1 if result.problems else 0)


@app.command(epilog="Example: cryoforum simulate --structure 4v5d --n 5000 --snr 0.1 --out simulated")
def simulate(
    out: options.Out,
    structure: Annotated[str, typer.Option(help="4v5d, 6z6u, a PDB/mmCIF file or an MRC map.")] = "4v5d",
    n: Annotated[int, typer.Option(help="Number of particles.")] = 5000,
    box: Annotated[int, typer.Option(help="Image width in pixels.")] = 128,
    pixel_size: Annotated[float, typer.Option(help="Å per pixel.")] = 2.8,
    map_pixel_size: options.MapPixelSize = None,
    snr: Annotated[float, typer.Option(help="var(signal) / var(noise) over the whole image.")] = 0.1,
    orientations: Annotated[
        Orientations, typer.Option(help="At random, or on a HEALPix-based uniform grid.")
    ] = "random",
    max_shift: Annotated[float, typer.Option(help="Largest shift along x and y, pixels.")] = 3.0,
    defocus: Annotated[
        tuple[float, float], typer.Option(metavar="LEAST MOST", help="Range of defocus, Å: two numbers.")
    ] = (10_000, 30_000),
    astigmatism: Annotated[float, typer.Option(help="Largest defocus U - V, Å.")] = 500.0,
    realistic: Annotated[
        bool, typer.Option("--realistic", help="All imperfections below but junk; each may be set besides.")
    ] = False,
    conformations: Annotated[
        str | None, typer.Option(metavar="SHARES", help="Of states with a turned domain, as in 60,40.")
    ] = None,
    hinge_angle: Annotated[
        float | None, typer.Option(help="By which the domain turns from state to state, degrees.")
    ] = None,
    preferred_views: Annotated[
        float | None, typer.Option(help="k in a density ∝ exp(k cos²) of views about one axis.")
    ] = None,
    strength_spread: Annotated[
        float | None, typer.Option(help="Standard deviation of the logarithm of the signal's strength.")
    ] = None,
    neighbours: Annotated[
        float | None, typer.Option(help="Mean number of further particles that reach into an image.")
    ] = None,
    noise_colour: Annotated[
        float | None, typer.Option(help="Noise power at low above that at high frequencies; by micrograph.")
    ] = None,
    ramp: Annotated[
        float | None, typer.Option(help="Standard deviation of the rise across an image, in the noise.")
    ] = None,
    defocus_error: Annotated[
        float | None, typer.Option(help="Standard deviation of the defocus in the file, Å.")
    ] = None,
    pose_error: Annotated[
        float | None,
        typer.Option(help="Standard deviation about each axis of poses in the file, degrees."),
    ] = None,
    shift_error: Annotated[
        float | None, typer.Option(help="Standard deviation along x and y of the origins in the file, Å.")
    ] = None,
    wrong_poses: Annotated[
        float | None,
        typer.Option(metavar="PERCENT", help="Particles with a random orientation in the file."),
    ] = None,
    junk: Annotated[
        float | None, typer.Option(metavar="PERCENT", help="Images that are no particles.")
    ] = None,
    junk_kinds: Annotated[
        str | None,
        typer.Option(metavar="KINDS", help=f"Of {','.join(JUNK_KINDS)}; default: all alike."),
    ] = None,
    seed: int = 0,
    overwrite: options.Overwrite = False,
) -> None:
    """Make particles of a known structure: particles.star and particles.mrcs.

    Ideal ones by default. Of imperfect ones particles.star holds what a user would have, with errors in poses
    and defocus; truth.star holds the truth, the conformation (rlnClassNumber) and the kind of junk.
    """
    with running() as reporter:
        from dataclasses import replace

        from cryoforum.commands import simulate as command
        from cryoforum.errors import require
        from cryoforum.simulation.config import REALISTIC, SimulationConfig, shares_from_text

        def percent(value: float | None) -> float | None:
            return None if value is None else value / 100

        given: dict[str, Any] = {
            "conformation_shares": None if conformations is None else shares_from_text(conformations),
            "hinge_angle_deg": hinge_angle,
            "preferred_views": preferred_views,
            "strength_spread": strength_spread,
            "neighbours": neighbours,
            "noise_colour": noise_colour,
            "ramp": ramp,
            "defocus_error_angstrom": defocus_error,
            "pose_error_deg": pose_error,
            "shift_error_angstrom": shift_error,
            "wrong_pose_share": percent(wrong_poses),
            "junk_share": percent(junk),
            "junk_kinds": None if junk_kinds is None else tuple(junk_kinds.split(",")),
        }
        imperfections = replace(
            REALISTIC if realistic else command.IDEAL,
            **{name: value for name, value in given.items() if value is not None},
        )

        require(n >= 1, "at least 1 particle", f"--n {n}")
        require(not snr <= 0, "a signal-to-noise ratio above 0", f"--snr {snr:g}")
        config = SimulationConfig(
            count=n,
            snr=snr,
            orientations=orientations,
            max_shift_pixel=max_shift,
            min_defocus_angstrom=defocus[0],
            max_defocus_angstrom=defocus[1],
            max_astigmatism_angstrom=astigmatism,
            seed=seed,
        )
        request = command.SimulateRequest(
            out, structure, box, pixel_size, config, imperfections, map_pixel_size, overwrite
        )
        path = command.simulate(request, reporter)
        typer.echo(f"{counted(n, 'particle')} in {path}")


@app.command(epilog="Example: cryoforum convert J12_005_particles.cs --out particles.star")
def convert(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="PARTICLES...",
            help="A .star file, or a .cs file and its passthrough files; several are joined.",
        ),
    ],
    out: options.Out,
    relion: Annotated[
        RelionDialect | None, typer.Option(help="Dialect of a .star file; default: 3.1.")
    ] = None,
    scale_origins: Annotated[
        float, typer.Option(metavar="FACTOR", help="Multiply all origins by it; -1 turns their sign.")
    ] = 1.0,
    invert_rotations: Annotated[
        bool, typer.Option("--invert-rotations", help="Write the angles of the inverse rotations.")
    ] = False,
    scale_pixel_size: Annotated[
        float,
        typer.Option(
            metavar="FACTOR",
            help="Multiply the pixel size of all images by it; the numbers of origins, and the pixel size "
            "of the micrographs, stay as they are.",
        ),
    ] = 1.0,
    drop_unusable: options.DropUnusable = False,
    plain: Annotated[bool, typer.Option("--plain", help="Leave out the columns that we have added.")] = False,
    root: options.Root = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Turn a particle file of cryoSPARC into one of RELION, back, or RELION 3.0 into 3.1 and back.

    May correct what `check` found wrong and join several files, in the same format, too.
    """
    with running():
        from cryoforum.commands import convert as command
        from cryoforum.commands.correct import Corrections

        corrections = Corrections(scale_origins, invert_rotations, scale_pixel_size)
        request = command.ConvertRequest(
            inputs, out, relion, root, corrections, overwrite, drop_unusable, plain
        )
        count = command.convert(request)
        typer.echo(f"{counted(count, 'particle')} in {out}")
