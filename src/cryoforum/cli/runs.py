"""Commands that run many steps in a row."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from cryoforum.choices import StudyName, StudyScale
from cryoforum.cli import options
from cryoforum.cli.app import app
from cryoforum.cli.terminal import counted, running, show_demo


@app.command(epilog="Example: cryoforum watch Extract --pattern particles.star --model model --out live")
def watch(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where particle files appear, at any depth.")
    ],
    out: options.Out,
    model: Annotated[
        Path | None,
        typer.Option(help="Folder written by train; without one a model is made of the first particles."),
    ] = None,
    pattern: Annotated[str, typer.Option(help="Which files are particle files.")] = "*.star",
    keep: Annotated[
        float, typer.Option(help="Share of the first 1000 particles whose expected errors set the threshold.")
    ] = 0.75,
    max_error: Annotated[
        float | None, typer.Option(help="Expected error in degrees up to which particles are kept, instead.")
    ] = None,
    every: Annotated[
        float, typer.Option(help="Seconds between two looks; a file is taken that did not change meanwhile.")
    ] = 20.0,
    until_idle: Annotated[
        float | None, typer.Option(help="End when nothing new came for so many seconds.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Process what is there, and end.")] = False,
    root: options.Root = None,
    refine: Annotated[
        bool | None,
        typer.Option("--refine/--no-refine", help="As of predict; default: where the model has a reference."),
    ] = None,
    keep_ramp: options.KeepRamp = False,
    build_from: Annotated[
        int, typer.Option(help="Without --model: particles that have to come before one is made.")
    ] = 2000,
    train_minutes: Annotated[float, typer.Option(help="Without --model: time to train.")] = 10.0,
    symmetry: options.Symmetry = "C1",
) -> None:
    """Predict, filter and reconstruct on the fly, as data collection writes particles.

    Writes all.star, kept.star, map/ and report.html. After a kill, the same command goes on. Without --model
    the first particles go through initial-model, refine and train, and --symmetry is that of the molecule.
    """
    stopped = "stopped; the same command goes on"
    with running(each_message_once=True, interrupted=stopped) as reporter:
        from cryoforum.commands.watch.first_model import FirstModel
        from cryoforum.commands.watch.job import WatchRequest
        from cryoforum.commands.watch.watch import watch as watch_folder
        from cryoforum.config import chosen_config
        from cryoforum.refinement.initial_model import InitialModelConfig
        from cryoforum.refinement.refine import RefinementConfig

        first_model = FirstModel(
            build_from,
            train_minutes,
            InitialModelConfig(symmetry=symmetry),
            RefinementConfig(symmetry=symmetry),
            chosen_config("small", None, [], symmetry),
        )
        request = WatchRequest(
            folder=folder,
            model=model,
            out=out,
            pattern=pattern,
            keep=keep,
            max_error_deg=max_error,
            every_seconds=every,
            until_idle_seconds=until_idle,
            once=once,
            root=root,
            refine=refine,
            keep_ramp=keep_ramp,
            first_model=first_model,
        )
        # Both end in one way, at any moment; what is under way cleans up after itself.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        count = watch_folder(request, reporter)
        where = f" in {out / 'all.star'}, report in {out / 'report.html'}" if count else ""
        typer.echo(f"{counted(count, 'particle')}{where}")


@app.command(epilog="Example: cryoforum study table1 --scale cpu --seeds 3 --out study")
def study(
    name: Annotated[StudyName, typer.Argument(metavar="STUDY", help="table1, snr, symmetry, real or all.")],
    out: options.Out,
    scale: Annotated[
        StudyScale, typer.Option(help="Reduced for a CPU, or the paper's protocol, for a GPU.")
    ] = "cpu",
    seeds: Annotated[int, typer.Option(help="Trainings of each variant.")] = 5,
    shard: Annotated[str | None, typer.Option(help="Only one of n parts of the runs: 1/4 … 4/4.")] = None,
    only: Annotated[
        str | None, typer.Option(help="Only runs whose block or variant contains these letters.")
    ] = None,
    particles: Annotated[
        Path | None,
        typer.Option(metavar="STAR", help="With study real: a refinement of your own, not simulated sets."),
    ] = None,
    symmetry: options.Symmetry = "C1",
) -> None:
    """Run the paper's comparisons over several seeds and write its tables and figures.

    Runs that are done already are not done again, so after a kill the same command goes on; several
    processes or machines may each do a --shard of them in one folder.
    """
    with running() as reporter:
        from cryoforum.commands.pose_files import parsed_shard
        from cryoforum.errors import InputError, require
        from cryoforum.study.pages import write_pages
        from cryoforum.study.runs import run_all
        from cryoforum.study.variants import planned_runs, runs_on

        require(particles is None or name == "real", "--particles with study real", f"study {name}")
        require(particles is None or only is None, "--only with simulated sets", "--particles, too")
        if particles is None and symmetry != "C1":
            raise InputError("expected --symmetry with --particles: simulated sets have their own")
        runs = (
            planned_runs(name, scale, seeds, only)
            if particles is None
            else runs_on(particles, symmetry, scale, seeds)
        )
        run_all(runs, out, parsed_shard(shard), reporter)
        write_pages(out)
        typer.echo(f"tables and figures: {out / 'study.html'}")


@app.command(epilog="Example: cryoforum demo --out demo")
def demo(
    out: options.Out = Path("demo"),
    n: Annotated[int, typer.Option(help="Number of particles.")] = 5000,
    preset: options.Preset = "small",
    max_minutes: Annotated[float, typer.Option(help="Time to train.")] = 6.0,
    from_particles: Annotated[
        bool,
        typer.Option(
            "--from-particles",
            help="Forget the poses first: initial-model, refine, and train on what these found.",
        ),
    ] = False,
    seed: int = 0,
    overwrite: options.Overwrite = False,
) -> None:
    """All steps in a row on the package's 70S ribosome, ending with report.html.

    The test particles are aligned twice: by the network alone, and refined against the reference.
    """
    with running() as reporter:
        from cryoforum.commands.demo import DemoRequest, demo
        from cryoforum.commands.demo_from_particles import demo_from_particles

        command = demo_from_particles if from_particles else demo
        result = command(DemoRequest(out, n, preset, max_minutes, seed, overwrite), reporter)
        show_demo(result)
        typer.echo(f"report: {result.report}")
