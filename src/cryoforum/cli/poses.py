"""Commands that find poses, keep the surest and compare them."""

from pathlib import Path
from typing import Annotated

import typer

from cryoforum.choices import CandidateSource, CertaintyStatistic, HalfMapsChoice, SplitPart, TtaCopies
from cryoforum.cli import options
from cryoforum.cli.app import app
from cryoforum.cli.terminal import (
    hint_at_root,
    running,
    say_what_was_written,
    show_calibration,
    show_errors,
    show_filter,
)


def _no_particle_file(model: Path) -> Path:
    """What stands first in a command line without a model."""
    if model.suffix in (".star", ".cs"):
        raise typer.BadParameter(
            f"expected the folder of a model before the particles, found the particle file {model}: "
            "cryoforum predict MODEL PARTICLES; without a model: cryoforum align MAP.mrc PARTICLES"
        )
    return model


@app.command(epilog="Example: cryoforum predict model new.star --out predicted.star")
def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Folder written by train.", callback=_no_particle_file)
    ],
    particles: options.Particles,
    out: options.Out,
    refine: Annotated[
        bool | None,
        typer.Option(
            "--refine/--no-refine",
            help="Refine poses locally against the reference, or keep the network's orientations. "
            "Default: refine where the model has a reference.",
        ),
    ] = None,
    candidates: Annotated[
        CandidateSource | None,
        typer.Option(help="Where local refinement starts; default: both, the network and a global search."),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="Map to compare with instead of the model's own; given several times, one of each class."
        ),
    ] = None,
    mask: Annotated[
        str | None, typer.Option(help="Multiply the reference by this mask (MRC, values from 0 to 1).")
    ] = None,
    tta: Annotated[
        TtaCopies | None,
        typer.Option(
            help="Test-time augmentation, with --no-refine: copies of each image, turned and mirrored, whose "
            "answers are averaged. Default: 8, or fewer if the network did not learn from such copies."
        ),
    ] = None,
    map_pixel_size: options.MapPixelSize = None,
    resolution: options.Resolution = None,
    max_shift: options.MaxShift = None,
    refine_defocus: options.RefineDefocus = False,
    refine_scale: options.RefineScale = False,
    half_maps: Annotated[
        HalfMapsChoice | None,
        typer.Option(
            help="Compare each half set with the map of its own half of the training particles, or all "
            "particles with the map of all. Default: own where the file has rlnRandomSubset."
        ),
    ] = None,
    cross_fit: Annotated[
        bool,
        typer.Option(
            "--cross-fit",
            help="With half-set models: each training particle by the one that never saw it. "
            "Honest errors, but half maps that depend on each other.",
        ),
    ] = False,
    part: Annotated[SplitPart | None, typer.Option(help="Only this part of the model's split.")] = None,
    shard: options.Shard = None,
    batch_size: options.BatchSize = 256,
    scratch: options.ScratchFolder = None,
    keep_scratch: options.KeepScratch = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    root: options.Root = None,
    keep_ramp: options.KeepRamp = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Predict poses with their uncertainty; every other column of the file is kept.

    Images of another box or pixel size than the model's are resampled to it.
    After a kill, the same command goes on. Under torchrun the processes share the work.
    """
    with running() as reporter:
        from cryoforum.alignment.config import AlignmentConfig
        from cryoforum.commands import predict as command
        from cryoforum.commands.pose_files import PoseOutput
        from cryoforum.commands.predict_request import PredictRequest
        from cryoforum.commands.reference_maps import reference_maps
        from cryoforum.errors import InputError
        from cryoforum.io.scratch import Scratch

        if reference is None and resolution is not None:
            raise InputError(
                "expected --resolution with --reference; the model's own reference has its resolution"
            )
        if reference is None and map_pixel_size is not None:
            raise InputError("expected --map-pixel-size with --reference, found no map")
        copies = None if tta is None else int(tta)
        request = PredictRequest(
            model=model,
            particles=particles,
            output=PoseOutput(out, shard, batch_size, overwrite, Scratch(scratch, keep_scratch)),
            root=root,
            part=part,
            refine=refine,
            references=reference_maps(reference or [], map_pixel_size, resolution),
            mask=mask,
            half_maps=half_maps,
            cross_fit=cross_fit,
            alignment=AlignmentConfig(
                candidates, max_shift, refine_defocus, refine_scale, copies, device, precision
            ),
            keep_ramp=keep_ramp,
        )
        summary = command.predict(request, reporter)
        say_what_was_written(summary, out, particles, root)


@app.command(epilog="Example: cryoforum align map.mrc new.star --out aligned.star")
def align(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="MAP.mrc",
            help="Map or structure to compare with, or a folder of refine: all its classes.",
        ),
    ],
    particles: options.Particles,
    out: options.Out,
    further: Annotated[
        list[str] | None,
        typer.Option(
            "--reference",
            help="A further map, of another state in the same frame; may be given several times. Particles "
            "are written in the class (rlnClassNumber) that they are likeliest in.",
        ),
    ] = None,
    symmetry: options.Symmetry = "C1",
    map_pixel_size: options.MapPixelSize = None,
    resolution: options.Resolution = None,
    max_shift: options.MaxShift = None,
    refine_defocus: options.RefineDefocus = False,
    refine_scale: options.RefineScale = False,
    shard: options.Shard = None,
    batch_size: options.BatchSize = 256,
    scratch: options.ScratchFolder = None,
    keep_scratch: options.KeepScratch = False,
    root: options.Root = None,
    keep_ramp: options.KeepRamp = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Find poses against a map, without a model: global search over orientations, then local refinement.

    Against several maps every particle is aligned with each, and written in its likeliest class.
    """
    with running() as reporter:
        from cryoforum.alignment.config import AlignmentConfig
        from cryoforum.commands import align as command
        from cryoforum.commands.pose_files import PoseOutput
        from cryoforum.commands.reference_maps import reference_maps
        from cryoforum.io.scratch import Scratch

        request = command.AlignRequest(
            references=reference_maps([reference, *(further or [])], map_pixel_size, resolution),
            particles=particles,
            output=PoseOutput(out, shard, batch_size, overwrite, Scratch(scratch, keep_scratch)),
            symmetry=symmetry,
            root=root,
            alignment=AlignmentConfig(None, max_shift, refine_defocus, refine_scale),
            keep_ramp=keep_ramp,
        )
        summary = command.align(request, reporter)
        say_what_was_written(summary, out, particles, root)


@app.command("filter", epilog="Example: cryoforum filter predicted.star --keep 0.75 --out kept.star")
def filter_(
    predictions: Annotated[Path, typer.Argument(metavar="PRED.star", callback=options.particles_in_folder)],
    out: options.Out,
    keep: Annotated[
        float | None,
        typer.Option(help="Share of particles to keep, as 0.75 or 75 for three quarters, the default."),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(metavar="DEG", help="Keep all up to this expected error in degrees instead."),
    ] = None,
    by: Annotated[
        CertaintyStatistic | None,
        typer.Option(
            help="Expected error (the default for refined poses), trace (eq. 7 of the paper), max (eq. 6) "
            "or gap (the first eigengap)."
        ),
    ] = None,
    quantile_of: Annotated[
        Path | None,
        typer.Option(
            metavar="OTHER.star",
            help="Take the threshold from the surest share of these predictions instead.",
        ),
    ] = None,
    drop_out: Annotated[Path | None, typer.Option(help="Write the others here.")] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Keep the particles whose orientation is most certain."""
    with running():
        from cryoforum.commands.filter import FilterRequest, filter_particles

        request = FilterRequest(predictions, out, keep, by, quantile_of, drop_out, overwrite, max_error)
        show_filter(filter_particles(request), out)
        hint_at_root(out, predictions.parent)


@app.command(epilog="Example: cryoforum compare predicted.star simulated/particles.star")
def compare(
    predictions: Annotated[Path, typer.Argument(metavar="PRED.star", callback=options.particles_in_folder)],
    truth: Annotated[Path, typer.Argument(metavar="TRUTH.star", callback=options.particles_in_folder)],
    symmetry: options.Symmetry = "C1",
    own_frames: Annotated[
        bool,
        typer.Option(
            "--own-frames",
            help="First take away the turn, move and hand by which their maps differ, class by class, as "
            "where the poses of initial-model and refine are compared with others.",
        ),
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the numbers here, too.")] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Errors of orientations and shifts against known poses, matched by image name."""
    with running():
        from cryoforum.commands import compare as command

        errors = command.compare(predictions, truth, symmetry, json, overwrite, own_frames)
        show_errors({str(predictions): errors.summary})
        typer.echo(f"median shift error: {errors.median_shift_angstrom:.2f} Å")
        if errors.calibration is not None:
            show_calibration(errors.calibration)
