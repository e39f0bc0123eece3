"""Commands that go from particles alone to maps and poses."""

from typing import Annotated

import typer

from cryoforum.cli import options
from cryoforum.cli.app import app
from cryoforum.cli.terminal import running, say, share_among, show_refined

GOES_ON = "interrupted; the same command goes on"


@app.command(epilog="Example: cryoforum initial-model particles.star --out initial")
def initial_model(
    particles: options.Particles,
    out: options.Out,
    symmetry: options.Symmetry = "C1",
    classes: options.Classes = 1,
    starts: Annotated[
        int, typer.Option(min=1, help="Random starts that are raced; the likeliest goes on.")
    ] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Of expectation-maximisation.")] = 300,
    max_shift: Annotated[
        float | None,
        typer.Option(
            help="Largest shift along x and y that is searched, pixels; a tenth of the box if not given."
        ),
    ] = None,
    diameter: Annotated[
        float | None,
        typer.Option(
            help="Of the particle, Å: images are cut to half as much again around it; for a small particle "
            "in a large box."
        ),
    ] = None,
    seed: int = 0,
    devices: options.Devices = 1,
    root: options.Root = None,
    keep_ramp: options.KeepRamp = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Make a first map of particles without poses or any other map.

    Its hand is left open: images cannot tell. After a kill, the same command goes on.
    """
    with running(interrupted=GOES_ON) as reporter:
        share_among(devices)
        from cryoforum.commands import initial_model as command
        from cryoforum.refinement.initial_model import InitialModelConfig

        config = InitialModelConfig(
            steps=steps,
            starts=starts,
            classes=classes,
            max_shift_pixel=max_shift,
            diameter_angstrom=diameter,
            symmetry=symmetry,
            seed=seed,
        )
        request = command.InitialModelRequest(particles, out, config, root, overwrite, keep_ramp)
        for path in command.initial_model(request, reporter):
            say(f"map in {path}")
        say(
            "its hand is open: where it turns out to be mirrored, mirror the refined map and its poses; "
            "goes on with: cryoforum refine PARTICLES --reference MAP"
        )


@app.command(epilog="Example: cryoforum refine particles.star --reference initial --out refined")
def refine(
    particles: options.Particles,
    reference: Annotated[
        list[str],
        typer.Option(
            help="Map to start from, or a folder of initial-model; given several times, one of each class."
        ),
    ],
    out: options.Out,
    symmetry: options.Symmetry = "C1",
    classes: options.Classes = 1,
    mask: Annotated[
        str | None, typer.Option(help="Multiply the maps that are compared by this mask (MRC, 0 to 1).")
    ] = None,
    initial_resolution: Annotated[
        float, typer.Option(help="To which the start is filtered, Å: the halves share nothing beyond.")
    ] = 40.0,
    map_pixel_size: options.MapPixelSize = None,
    max_shift: options.MaxShift = None,
    most_rounds: Annotated[int, typer.Option(min=1, help="Where it ends if it has not by itself.")] = 25,
    seed: int = 0,
    devices: options.Devices = 1,
    root: options.Root = None,
    keep_ramp: options.KeepRamp = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Refine poses and maps in turn, in two halves that never meet; with --classes several maps at once.

    Poses in the files are not used; every other column is kept. Half maps, masked FSC, a sharpened map and a
    page are in OUT. It ends by itself; after a kill, the same command goes on.
    """
    with running(interrupted=GOES_ON) as reporter:
        share_among(devices)
        from cryoforum.commands import refine as command
        from cryoforum.commands.reference_maps import reference_maps
        from cryoforum.refinement.refine import RefinementConfig

        config = RefinementConfig(
            initial_resolution_angstrom=initial_resolution,
            symmetry=symmetry,
            classes=classes,
            max_shift_pixel=max_shift,
            most_rounds=most_rounds,
            seed=seed,
        )
        references = reference_maps(reference, map_pixel_size)
        request = command.RefineRequest(particles, references, out, config, mask, root, overwrite, keep_ramp)
        show_refined(command.refine(request, reporter), out)
