"""The command line: a thin coat over the steps on files."""

import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from cryoforum.terminal import (
    angle,
    failing_clearly,
    hint_at_root,
    progress_bars,
    say_what_was_written,
    show_demo,
    show_errors,
    tell,
    training_bar,
)

# Threads of torch's OpenMP that wait by spinning for long starve each other where another program runs.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

app = typer.Typer(
    help="Poses of cryo-EM particles, each with how sure it is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
Root = Annotated[Path | None, typer.Option(help="Folder that image names are relative to.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Shard = Annotated[str | None, typer.Option(help="Only one of n parts of the rows: 1/4 … 4/4.")]
BatchSize = Annotated[int, typer.Option(help="Images at a time.")]
Resolution = Annotated[float | None, typer.Option(help="Å up to which the given map is used.")]
Defocus = Annotated[
    bool, typer.Option("--refine-defocus", help="Find each particle's own defocus (rlnDefocusU/V), too.")
]
Scale = Annotated[bool, typer.Option("--refine-scale", help="Polish each particle at its own strength.")]
MaxShift = Annotated[
    float | None,
    typer.Option(
        help="Largest shift along x and y that is looked for, pixels; "
        "default: that of the training particles, at least 3."
    ),
]
Preset = Annotated[str, typer.Option(help="tiny, small, paper or expedited.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file that changes the preset.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one setting, as network.pooling=gem; may be repeated."),
]
Star = Annotated[Path, typer.Argument(metavar="PARTICLES.star")]
Symmetry = Annotated[str, typer.Option(help="Point group as in RELION: C1, C4, D2, T, O, I1 ...")]


@app.command(epilog="Example: cryoforum simulate --structure 4v5d --n 5000 --snr 0.1 --out simulated")
def simulate(
    out: Out,
    structure: Annotated[str, typer.Option(help="4v5d, 6z6u, a PDB/mmCIF file or an MRC map.")] = "4v5d",
    n: Annotated[int, typer.Option(help="Number of particles.")] = 5000,
    box: Annotated[int, typer.Option(help="Image width in pixels.")] = 128,
    pixel_size: Annotated[float, typer.Option(help="Å per pixel.")] = 2.8,
    snr: Annotated[float, typer.Option(help="var(signal) / var(noise) over the whole image.")] = 0.1,
    orientations: Annotated[str, typer.Option(help="random, or grid: HEALPix-based, uniform.")] = "random",
    max_shift: Annotated[float, typer.Option(help="Largest shift along x and y, pixels.")] = 3.0,
    defocus: Annotated[
        tuple[float, float], typer.Option(help="Smallest and largest defocus, Å: two numbers.")
    ] = (10_000, 30_000),
    astigmatism: Annotated[float, typer.Option(help="Largest defocus U - V, Å.")] = 500.0,
    seed: int = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make particles of a known structure: particles.star (with true poses) and particles.mrcs."""
    with failing_clearly():
        from cryoforum.config import SimulationConfig
        from cryoforum.workflow import simulate_to_folder

        if orientations not in ("random", "grid"):
            raise ValueError(f"expected --orientations random or grid, found '{orientations}'")
        config = SimulationConfig(
            count=n,
            snr=snr,
            orientations=orientations,  # type: ignore[arg-type]
            max_shift_pixel=max_shift,
            min_defocus_angstrom=defocus[0],
            max_defocus_angstrom=defocus[1],
            max_astigmatism_angstrom=astigmatism,
            seed=seed,
        )
        with progress_bars() as bar:
            path = simulate_to_folder(structure, box, pixel_size, config, out, bar, overwrite)
        typer.echo(f"{n} particles in {path}")


@app.command(epilog="Example: cryoforum train simulated/particles.star --out model --max-minutes 6")
def train(
    particles: Star,
    out: Out,
    preset: Preset = "small",
    max_minutes: Annotated[float | None, typer.Option(help="Let the schedule span this time.")] = None,
    config: ConfigFile = None,
    set_: Set = None,
    symmetry: Annotated[
        str | None, typer.Option(help="Point group as in RELION: C4, D2, T, O, I1 ...; default: C1.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Shares as 50,17,33, or a split.csv.")] = None,
    seed: int = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after an interruption.")] = False,
    root: Root = None,
    overwrite: Overwrite = False,
) -> None:
    """Learn from particles with known poses; writes the model folder."""
    with failing_clearly():
        from cryoforum.config import chosen_config
        from cryoforum.learning import train_to_folder

        if max_minutes is not None and not max_minutes > 0:
            raise ValueError(f"expected --max-minutes above 0, found {max_minutes}")
        settings = chosen_config(preset, config, set_ or [], symmetry)
        with progress_bars() as bar, training_bar() as on_step:
            model = train_to_folder(
                particles,
                root,
                out,
                settings,
                split_choice=split,
                seed=seed,
                max_minutes=max_minutes,
                resume=resume,
                overwrite=overwrite,
                bar=bar,
                on_step=on_step,
                tell=tell,
            )
        used = Counter(model.parts.values())
        typer.echo(
            f"model in {out}: learned from {used['train']} particles, validated on {used['validation']}, "
            f"kept {used['test']} for tests; validation median {angle(model.validation_median_rad)}"
        )


@app.command(epilog="Example: cryoforum find-rate simulated/particles.star --set network.pooling=gem")
def find_rate(
    particles: Star,
    preset: Preset = "small",
    config: ConfigFile = None,
    set_: Set = None,
    symmetry: Annotated[str | None, typer.Option(help="Point group as in RELION.")] = None,
    split: Annotated[str | None, typer.Option(help="Shares as 50,17,33, or a split.csv.")] = None,
    steps: Annotated[int, typer.Option(help="Batches; the rate grows a little in each.")] = 200,
    out: Annotated[Path | None, typer.Option(help="Write rates and losses to this CSV file.")] = None,
    seed: int = 0,
    root: Root = None,
    overwrite: Overwrite = False,
) -> None:
    """Suggest training.max_learning_rate: raise the rate until learning fails."""
    with failing_clearly():
        from cryoforum.config import chosen_config
        from cryoforum.learning import find_rate_of_star

        settings = chosen_config(preset, config, set_ or [], symmetry)
        with progress_bars() as bar:
            rate = find_rate_of_star(particles, root, settings, split, steps, seed, out, overwrite, bar, tell)
        typer.echo(f"suggested: --set training.max_learning_rate={rate:.1e}")


@app.command(epilog="Example: cryoforum predict model new.star --out predicted.star")
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder written by train.")],
    particles: Star,
    out: Out,
    polish: Annotated[
        bool | None,
        typer.Option(
            "--polish/--no-polish",
            help="Compare images with the reference, or take the network's orientations as they are. "
            "Default: polish where the model has a reference.",
        ),
    ] = None,
    candidates: Annotated[
        str | None, typer.Option(help="Where polishing starts: network, search or both (the default).")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Map to compare with instead of the model's own.")
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(
            help="Without polishing: copies of each image, turned and mirrored, whose answers are averaged: "
            "1, 4 or 8. Default: 8, or fewer if the network did not learn from such copies."
        ),
    ] = None,
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
    part: Annotated[
        str | None, typer.Option(help="Only this part of the model's split: train, validation, test.")
    ] = None,
    shard: Shard = None,
    batch_size: BatchSize = 256,
    root: Root = None,
    overwrite: Overwrite = False,
) -> None:
    """Predict poses with their uncertainty; every other column of the file is kept.

    After a kill, the same command goes on. Under torchrun the processes share the work.
    """
    with failing_clearly():
        from cryoforum.posing import PosingConfig
        from cryoforum.predicting import Output, PredictionOptions, predict_to_star

        options = PredictionOptions(
            polish=polish,
            reference=reference,
            resolution_angstrom=resolution,
            halves=halves,
            posing=PosingConfig(
                candidates,  # type: ignore[arg-type]
                max_shift,
                refine_defocus,
                refine_scale,
                views,
            ),
        )
        with progress_bars() as bar:
            output = Output(out, bar, part, shard, batch_size, overwrite, tell=tell)
            count = predict_to_star(model, particles, root, options, output)
        say_what_was_written(count, out, root or particles.parent)


@app.command(epilog="Example: cryoforum match map.mrc new.star --out matched.star")
def match(
    reference: Annotated[str, typer.Argument(metavar="MAP.mrc", help="Map or structure to compare with.")],
    particles: Star,
    out: Out,
    symmetry: Symmetry = "C1",
    resolution: Resolution = None,
    max_shift: MaxShift = None,
    refine_defocus: Defocus = False,
    refine_scale: Scale = False,
    shard: Shard = None,
    batch_size: BatchSize = 256,
    root: Root = None,
    overwrite: Overwrite = False,
) -> None:
    """Find poses without a model: search all orientations of a map, then polish."""
    with failing_clearly():
        from cryoforum.posing import PosingConfig
        from cryoforum.predicting import Output, PredictionOptions, match_to_star

        options = PredictionOptions(
            reference=reference,
            resolution_angstrom=resolution,
            posing=PosingConfig(None, max_shift, refine_defocus, refine_scale),
        )
        with progress_bars() as bar:
            output = Output(out, bar, None, shard, batch_size, overwrite, tell=tell)
            count = match_to_star(particles, root, symmetry, options, output)
        say_what_was_written(count, out, root or particles.parent)


@app.command("filter", epilog="Example: cryoforum filter predicted.star --keep 0.75 --out kept.star")
def filter_(
    predictions: Annotated[Path, typer.Argument(metavar="PRED.star")],
    out: Out,
    keep: Annotated[float, typer.Option(help="Share of particles to keep.")] = 0.75,
    by: Annotated[
        str | None,
        typer.Option(
            help="error (expected; the default for polished poses), trace (eq. 7 of the paper), max (eq. 6) "
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
        from cryoforum.workflow import filter_star

        kept, dropped = filter_star(predictions, keep, by, out, drop_out, overwrite, quantile_of)
        typer.echo(f"kept {kept} particles in {out}, dropped {dropped}")
        hint_at_root(out, predictions.parent)


@app.command(epilog="Example: cryoforum reconstruct kept.star --out map")
def reconstruct(
    particles: Star,
    out: Out,
    symmetry: Symmetry = "C1",
    root: Root = None,
    overwrite: Overwrite = False,
) -> None:
    """Reconstruct half maps and map by direct Fourier inversion, with FSC and resolution."""
    with failing_clearly():
        from cryoforum.workflow import reconstruct_to_folder

        with progress_bars() as bar:
            resolution = reconstruct_to_folder(
                particles, root, out, symmetry=symmetry, overwrite=overwrite, bar=bar
            )
        typer.echo(
            f"resolution at FSC 0.143: {resolution['unmasked']:.1f} Å unmasked, "
            f"{resolution['masked']:.1f} Å masked; maps in {out}"
        )
        if not resolution["independent"]:
            typer.echo("one model posed both halves: the resolution is optimistic")


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
        from cryoforum.workflow import compare_stars, median_shift_error_angstrom

        show_errors({str(predictions): compare_stars(predictions, truth, json, overwrite, symmetry)})
        typer.echo(f"median shift error: {median_shift_error_angstrom(predictions, truth):.2f} Å")


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
        from cryoforum.study import planned_runs, run_all, runs_on, write_pages
        from cryoforum.workflow import parsed_shard

        if particles is not None and name != "real":
            raise ValueError(f"expected --particles with study real, found study {name}")
        runs = (
            planned_runs(name, scale, seeds, only)
            if particles is None
            else runs_on(particles, symmetry, scale, seeds)
        )
        with progress_bars() as bar:
            run_all(runs, out, (1, 1) if shard is None else parsed_shard(shard), bar, tell)
        write_pages(out)
        typer.echo(f"tables and figures: {out / 'study.html'}")


@app.command(epilog="Example: cryoforum report demo")
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder laid out as the demo's.")],
    out: Annotated[Path | None, typer.Option(help="HTML file; DIR/report.html if not given.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """One self-contained HTML page of pictures of a run."""
    with failing_clearly():
        from cryoforum.io.files import refuse_to_overwrite
        from cryoforum.reporting import write_report

        if not folder.is_dir():
            raise ValueError(f"expected a folder of results at {folder}, found none")
        output = out or folder / "report.html"
        if out is not None:
            refuse_to_overwrite(out, overwrite)
        write_report(folder, output)
        typer.echo(f"report in {output}")


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

    The test particles are posed twice: by the network alone, and polished against the reference.
    """
    with failing_clearly():
        from cryoforum.demo import run_demo

        with progress_bars() as bar, training_bar() as on_step:
            result = run_demo(out, n, preset, max_minutes, seed, overwrite, bar, on_step, tell)
        show_demo(result)
        typer.echo(f"report: {result.report}")
