"""Commands on particles with poses."""

from pathlib import Path
from typing import Annotated

import typer

from cryoforum.cli.app import app
from cryoforum.cli.options import KeepScratch, Out, Overwrite, Root, ScratchFolder, Stars, Symmetry
from cryoforum.cli.terminal import counted, failing_clearly, hint_at_root, progress_bars, show_errors, tell
from cryoforum.errors import InputError


@app.command("filter", epilog="Example: cryoforum filter predicted.star --keep 0.75 --out kept.star")
def filter_(
    predictions: Annotated[Path, typer.Argument(metavar="PRED.star")],
    out: Out,
    keep: Annotated[float, typer.Option(help="Share of particles to keep.")] = 0.75,
    by: Annotated[
        str | None,
        typer.Option(
            help="error (expected; the default for refined poses), trace (eq. 7 of the paper), max (eq. 6) "
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
    overwrite: Overwrite = False,
) -> None:
    """Keep the particles whose orientation is most certain."""
    with failing_clearly():
        from cryoforum.commands.filter import filter_file

        kept, dropped = filter_file(predictions, keep, by, out, drop_out, overwrite, quantile_of, tell)
        typer.echo(f"kept {counted(kept, 'particle')} in {out}, dropped {dropped}")
        hint_at_root(out, predictions.parent)


@app.command(epilog="Example: cryoforum reconstruct kept.star --out map")
def reconstruct(
    particles: Stars,
    out: Out,
    symmetry: Symmetry = "C1",
    scratch: ScratchFolder = None,
    keep_scratch: KeepScratch = False,
    root: Root = None,
    overwrite: Overwrite = False,
) -> None:
    """Reconstruct half maps and map by direct Fourier inversion, with FSC and resolution."""
    with failing_clearly():
        from cryoforum.commands.reconstruct import reconstruct_to_folder
        from cryoforum.io.scratch import Scratch

        with progress_bars() as bar:
            resolution = reconstruct_to_folder(
                particles,
                root,
                out,
                symmetry=symmetry,
                overwrite=overwrite,
                bar=bar,
                tell=tell,
                scratch=Scratch(scratch, keep_scratch),
            )
        typer.echo(
            f"resolution at FSC 0.143: {resolution['unmasked']:.1f} Å unmasked, "
            f"{resolution['masked']:.1f} Å masked; maps in {out}"
        )
        if not resolution["independent"]:
            typer.echo("the poses of the two halves depend on each other: the resolution is optimistic")


@app.command(epilog="Example: cryoforum compare predicted.star simulated/particles.star")
def compare(
    predictions: Annotated[Path, typer.Argument(metavar="PRED.star")],
    truth: Annotated[Path, typer.Argument(metavar="TRUTH.star")],
    symmetry: Symmetry = "C1",
    json: Annotated[Path | None, typer.Option(help="Write the numbers here, too.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Orientation errors against known poses, matched by image name."""
    with failing_clearly():
        from cryoforum.commands.compare import compare_files, median_shift_error_angstrom

        show_errors({str(predictions): compare_files(predictions, truth, json, overwrite, symmetry)})
        typer.echo(f"median shift error: {median_shift_error_angstrom(predictions, truth):.2f} Å")


@app.command(epilog="Example: cryoforum report demo")
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder laid out as the demo's.")],
    out: Annotated[Path | None, typer.Option(help="HTML file; DIR/report.html if not given.")] = None,
    root: Root = None,
    overwrite: Overwrite = False,
) -> None:
    """One self-contained HTML page of pictures of a run."""
    with failing_clearly():
        from cryoforum.report.page import write_report
        from cryoforum.storage.files import refuse_to_overwrite

        if not folder.is_dir():
            raise InputError(f"expected a folder of results at {folder}, found none")
        output = out or folder / "report.html"
        if out is not None:
            refuse_to_overwrite(out, overwrite)
        write_report(folder, output, root)
        typer.echo(f"report in {output}")
