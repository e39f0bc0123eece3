"""Commands that make particles and models."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from cryoforum.cli.app import app
from cryoforum.cli.options import (
    ConfigFile,
    Devices,
    KeepScratch,
    MapPixelSize,
    Out,
    Overwrite,
    Preset,
    Root,
    ScratchFolder,
    Set,
    Stars,
)
from cryoforum.cli.terminal import (
    angle,
    counted,
    failing_clearly,
    progress_bars,
    say,
    share_among,
    tell,
    training_bar,
)
from cryoforum.errors import InputError


@app.command(epilog="Example: cryoforum simulate --structure 4v5d --n 5000 --snr 0.1 --out simulated")
def simulate(
    out: Out,
    structure: Annotated[str, typer.Option(help="4v5d, 6z6u, a PDB/mmCIF file or an MRC map.")] = "4v5d",
    n: Annotated[int, typer.Option(help="Number of particles.")] = 5000,
    box: Annotated[int, typer.Option(help="Image width in pixels.")] = 128,
    pixel_size: Annotated[float, typer.Option(help="Å per pixel.")] = 2.8,
    map_pixel_size: MapPixelSize = None,
    snr: Annotated[float, typer.Option(help="var(signal) / var(noise) over the whole image.")] = 0.1,
    orientations: Annotated[str, typer.Option(help="random, or grid: HEALPix-based, uniform.")] = "random",
    max_shift: Annotated[float, typer.Option(help="Largest shift along x and y, pixels.")] = 3.0,
    defocus: Annotated[
        tuple[float, float], typer.Option(metavar="LEAST MOST", help="Range of defocus, Å: two numbers.")
    ] = (10_000, 30_000),
    astigmatism: Annotated[float, typer.Option(help="Largest defocus U - V, Å.")] = 500.0,
    seed: int = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make particles of a known structure: particles.star (with true poses) and particles.mrcs."""
    with failing_clearly():
        from cryoforum.commands.simulate import simulate_to_folder
        from cryoforum.config import SimulationConfig

        if orientations not in ("random", "grid"):
            raise InputError(f"expected --orientations random or grid, found '{orientations}'")
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
        with progress_bars() as bar:
            path = simulate_to_folder(
                structure, box, pixel_size, config, out, bar, overwrite, tell, map_pixel_size
            )
        typer.echo(f"{counted(n, 'particle')} in {path}")


@app.command(epilog="Example: cryoforum train simulated/particles.star --out model --max-minutes 6")
def train(
    particles: Stars,
    out: Out,
    preset: Preset = "small",
    max_minutes: Annotated[
        float | None, typer.Option(help="Let the schedule span this time; with --halves that of both.")
    ] = None,
    config: ConfigFile = None,
    set_: Set = None,
    symmetry: Annotated[
        str | None, typer.Option(help="Point group as in RELION: C4, D2, T, O, I1 ...; default: C1.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Percentages as 50,17,33, or a split.csv.")] = None,
    halves: Annotated[
        bool,
        typer.Option("--halves", help="A model of each half set (rlnRandomSubset), in OUT/half1 and half2."),
    ] = False,
    seed: int = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after an interruption.")] = False,
    scratch: ScratchFolder = None,
    keep_scratch: KeepScratch = False,
    devices: Devices = 1,
    root: Root = None,
    overwrite: Overwrite = False,
) -> None:
    """Learn from particles with known poses; writes the model folder.

    With --devices, or under torchrun or srun, several processes learn as one.
    """
    with failing_clearly():
        share_among(devices)
        from cryoforum.commands.half_set_models import train_halves_to_folder
        from cryoforum.commands.train import train_to_folder
        from cryoforum.config import chosen_config
        from cryoforum.io.scratch import Scratch
        from cryoforum.network.model_folder import model_folders

        if max_minutes is not None and not max_minutes > 0:
            raise InputError(f"expected --max-minutes above 0, found {max_minutes}")
        settings = chosen_config(preset, config, set_ or [], symmetry)
        with progress_bars() as bar, training_bar() as on_step:
            trained = (train_halves_to_folder if halves else train_to_folder)(
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
                scratch=Scratch(scratch, keep_scratch),
            )
        models = trained if isinstance(trained, tuple) else (trained,)
        for folder, model in zip(model_folders(out), models, strict=True):
            used = Counter(model.parts.values())
            say(
                f"model in {folder}: learned from {counted(used['train'], 'particle')}, "
                f"validated on {used['validation']}, kept {used['test']} for tests; "
                f"validation median {angle(model.validation_median_rad)}"
            )


@app.command(epilog="Example: cryoforum find-rate simulated/particles.star --set network.pooling=gem")
def find_rate(
    particles: Stars,
    preset: Preset = "small",
    config: ConfigFile = None,
    set_: Set = None,
    symmetry: Annotated[str | None, typer.Option(help="Point group as in RELION.")] = None,
    split: Annotated[str | None, typer.Option(help="Percentages as 50,17,33, or a split.csv.")] = None,
    steps: Annotated[int, typer.Option(help="Batches; the rate grows a little in each.")] = 200,
    out: Annotated[Path | None, typer.Option(help="Write rates and losses to this CSV file.")] = None,
    seed: int = 0,
    root: Root = None,
    overwrite: Overwrite = False,
) -> None:
    """Suggest training.max_learning_rate: raise the rate until learning fails."""
    with failing_clearly():
        from cryoforum.commands.find_rate import find_rate_of_files
        from cryoforum.config import chosen_config

        settings = chosen_config(preset, config, set_ or [], symmetry)
        with progress_bars() as bar:
            rate = find_rate_of_files(
                particles, root, settings, split, steps, seed, out, overwrite, bar, tell
            )
        say(f"suggested: --set training.max_learning_rate={rate:.1e}")
