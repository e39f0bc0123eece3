"""Commands that run everything in a row."""

from pathlib import Path
from typing import Annotated

import typer

from cryoforum.cli.app import app
from cryoforum.cli.options import Out, Overwrite, Preset, Symmetry
from cryoforum.cli.terminal import failing_clearly, progress_bars, show_demo, tell, training_bar
from cryoforum.errors import InputError


@app.command(epilog="Example: cryoforum study table1 --scale cpu --seeds 3 --out study")
def study(
    name: Annotated[str, typer.Argument(metavar="STUDY", help="table1, snr, symmetry, real or all.")],
    out: Out,
    scale: Annotated[str, typer.Option(help="cpu: reduced; paper: its protocol, for a GPU.")] = "cpu",
    seeds: Annotated[int, typer.Option(help="Trainings of each variant.")] = 5,
    shard: Annotated[str | None, typer.Option(help="Only one of n parts of the runs: 1/4 … 4/4.")] = None,
    only: Annotated[
        str | None, typer.Option(help="Only runs whose block or variant contains these letters.")
    ] = None,
    particles: Annotated[
        Path | None,
        typer.Option(metavar="STAR", help="With study real: a refinement of your own, not simulated sets."),
    ] = None,
    symmetry: Symmetry = "C1",
) -> None:
    """Run the paper's comparisons over several seeds and write its tables and figures.

    Runs that are done already are not done again, so after a kill the same command goes on; several
    processes or machines may each do a --shard of them in one folder.
    """
    with failing_clearly():
        from cryoforum.commands.workflow import notices_to, parsed_shard
        from cryoforum.runtime.reporter import Reporter
        from cryoforum.study.pages import write_pages
        from cryoforum.study.runs import run_all
        from cryoforum.study.variants import planned_runs, runs_on

        if particles is not None and name != "real":
            raise InputError(f"expected --particles with study real, found study {name}")
        if particles is not None and only is not None:
            raise InputError("expected --only with simulated sets, found --particles, too")
        if particles is None and symmetry != "C1":
            raise InputError("expected --symmetry with --particles: simulated sets have their own")
        runs = (
            planned_runs(name, scale, seeds, only)
            if particles is None
            else runs_on(particles, symmetry, scale, seeds)
        )
        reporter = Reporter()
        with progress_bars() as bar, notices_to(tell):
            reporter.progress = bar  # type: ignore[method-assign, assignment]
            run_all(runs, out, (1, 1) if shard is None else parsed_shard(shard), reporter)
        write_pages(out)
        typer.echo(f"tables and figures: {out / 'study.html'}")


@app.command(epilog="Example: cryoforum demo --out demo")
def demo(
    out: Out = Path("demo"),
    n: Annotated[int, typer.Option(help="Number of particles.")] = 5000,
    preset: Preset = "small",
    max_minutes: Annotated[float, typer.Option(help="Time to train.")] = 6.0,
    seed: int = 0,
    overwrite: Overwrite = False,
) -> None:
    """All steps in a row on the package's 70S ribosome, ending with report.html.

    The test particles are posed twice: by the network alone, and refined against the reference.
    """
    with failing_clearly():
        from cryoforum.commands.demo import run_demo

        with progress_bars() as bar, training_bar() as on_step:
            result = run_demo(out, n, preset, max_minutes, seed, overwrite, bar, on_step, tell)
        show_demo(result)
        typer.echo(f"report: {result.report}")
