"""Commands that find poses."""

from pathlib import Path
from typing import Annotated

import typer

from cryoforum.cli.app import app
from cryoforum.cli.options import (
    BatchSize,
    Defocus,
    KeepScratch,
    MapPixelSize,
    MaxShift,
    Out,
    Overwrite,
    Resolution,
    Root,
    Scale,
    ScratchFolder,
    Shard,
    Stars,
    Symmetry,
)
from cryoforum.cli.terminal import failing_clearly, progress_bars, say_what_was_written, tell


@app.command(epilog="Example: cryoforum predict model new.star --out predicted.star")
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder written by train.")],
    particles: Stars,
    out: Out,
    refine: Annotated[
        bool | None,
        typer.Option(
            "--refine/--no-refine",
            help="Compare images with the reference, or take the network's orientations as they are. "
            "Default: refine where the model has a reference.",
        ),
    ] = None,
    candidates: Annotated[
        str | None, typer.Option(help="Where local refinement starts: network, search or both (the default).")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Map to compare with instead of the model's own.")
    ] = None,
    mask: Annotated[
        str | None, typer.Option(help="Multiply the reference by this mask (MRC, values from 0 to 1).")
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(
            help="Without local refinement: copies of each image, turned and mirrored, whose answers are averaged: "
            "1, 4 or 8. Default: 8, or fewer if the network did not learn from such copies."
        ),
    ] = None,
    map_pixel_size: MapPixelSize = None,
    resolution: Resolution = None,
    max_shift: MaxShift = None,
    refine_defocus: Defocus = False,
    refine_scale: Scale = False,
    halves: Annotated[
        bool | None,
        typer.Option(
            "--halves/--no-halves",
            help="Compare each half set with the map of its own half of the training particles. "
            "Default: where the file has rlnRandomSubset.",
        ),
    ] = None,
    cross_fit: Annotated[
        bool,
        typer.Option(
            "--cross-fit",
            help="With two half models: each training particle by the one that never saw it. "
            "Honest errors, but half maps that depend on each other.",
        ),
    ] = False,
    part: Annotated[
        str | None, typer.Option(help="Only this part of the model's split: train, validation, test.")
    ] = None,
    shard: Shard = None,
    batch_size: BatchSize = 256,
    scratch: ScratchFolder = None,
    keep_scratch: KeepScratch = False,
    root: Root = None,
    overwrite: Overwrite = False,
) -> None:
    """Predict poses with their uncertainty; every other column of the file is kept.

    Images of another box or pixel size than the model's are resampled to it.
    After a kill, the same command goes on. Under torchrun the processes share the work.
    """
    with failing_clearly():
        from cryoforum.alignment.aligner import AlignmentConfig
        from cryoforum.commands.predict import Output, PredictionOptions, predict_to_file
        from cryoforum.io.image_paths import common_folder
        from cryoforum.io.scratch import Scratch

        options = PredictionOptions(
            refine=refine,
            reference=reference,
            resolution_angstrom=resolution,
            reference_pixel_size_angstrom=map_pixel_size,
            halves=halves,
            cross_fit=cross_fit,
            mask=mask,
            posing=AlignmentConfig(
                candidates,  # type: ignore[arg-type]
                max_shift,
                refine_defocus,
                refine_scale,
                views,
            ),
        )
        with progress_bars() as bar:
            place = Scratch(scratch, keep_scratch)
            output = Output(out, bar, part, shard, batch_size, overwrite, tell=tell, scratch=place)
            posed = predict_to_file(model, particles, root, options, output)
        say_what_was_written(posed, out, common_folder(particles), root)


@app.command(epilog="Example: cryoforum match map.mrc new.star --out matched.star")
def match(
    reference: Annotated[str, typer.Argument(metavar="MAP.mrc", help="Map or structure to compare with.")],
    particles: Stars,
    out: Out,
    symmetry: Symmetry = "C1",
    map_pixel_size: MapPixelSize = None,
    resolution: Resolution = None,
    max_shift: MaxShift = None,
    refine_defocus: Defocus = False,
    refine_scale: Scale = False,
    shard: Shard = None,
    batch_size: BatchSize = 256,
    scratch: ScratchFolder = None,
    keep_scratch: KeepScratch = False,
    root: Root = None,
    overwrite: Overwrite = False,
) -> None:
    """Find poses without a model: search all orientations of a map, then refine."""
    with failing_clearly():
        from cryoforum.alignment.aligner import AlignmentConfig
        from cryoforum.commands.predict import Output, PredictionOptions, align_to_file
        from cryoforum.io.image_paths import common_folder
        from cryoforum.io.scratch import Scratch

        options = PredictionOptions(
            reference=reference,
            resolution_angstrom=resolution,
            reference_pixel_size_angstrom=map_pixel_size,
            posing=AlignmentConfig(None, max_shift, refine_defocus, refine_scale),
        )
        with progress_bars() as bar:
            place = Scratch(scratch, keep_scratch)
            output = Output(out, bar, None, shard, batch_size, overwrite, tell=tell, scratch=place)
            posed = align_to_file(particles, root, symmetry, options, output)
        say_what_was_written(posed, out, common_folder(particles), root)
