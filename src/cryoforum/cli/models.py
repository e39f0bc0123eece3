"""Commands that make models."""

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cryoforum.network.model import TrainedModel

from cryoforum.cli import options
from cryoforum.cli.app import app
from cryoforum.cli.terminal import counted, running, say, share_among
from cryoforum.runtime.progress import angle


@app.command(epilog="Example: cryoforum train simulated/particles.star --out model --max-minutes 6")
def train(
    particles: options.Particles,
    out: options.Out,
    preset: options.Preset = "small",
    max_minutes: Annotated[
        float | None,
        typer.Option(help="Let the schedule span this time; with --half-set-models that of both."),
    ] = None,
    config: options.ConfigFile = None,
    set_: options.Set = None,
    symmetry: Annotated[
        str | None, typer.Option(help="Point group as in RELION: C4, D2, T, O, I1 ...; default: C1.")
    ] = None,
    split: options.Split = None,
    half_set_models: Annotated[
        bool,
        typer.Option(
            "--half-set-models", help="A model of each half set (rlnRandomSubset), in OUT/half1 and half2."
        ),
    ] = False,
    by_class: Annotated[
        bool | None,
        typer.Option(
            "--by-class/--one-map",
            help="A map of each class (rlnClassNumber), so that predict writes each particle's class, or one "
            "of all. Default: by class where refine has found the classes.",
        ),
    ] = None,
    seed: int = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after an interruption.")] = False,
    scratch: options.ScratchFolder = None,
    keep_scratch: options.KeepScratch = False,
    devices: options.Devices = 1,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    root: options.Root = None,
    keep_ramp: options.KeepRamp = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Learn from particles with known poses; writes the model folder.

    With --devices, or under torchrun or srun, several processes learn as one.
    """
    with running() as reporter:
        share_among(devices)
        from cryoforum.commands import train as command
        from cryoforum.config import chosen_config
        from cryoforum.io.scratch import Scratch
        from cryoforum.network.model_folder import model_folders

        request = command.TrainRequest(
            particles=particles,
            out=out,
            config=chosen_config(preset, config, set_ or [], symmetry),
            root=root,
            split=split,
            seed=seed,
            max_minutes=max_minutes,
            half_set_models=half_set_models,
            resume=resume,
            overwrite=overwrite,
            scratch=Scratch(scratch, keep_scratch),
            device=device,
            precision=precision,
            keep_ramp=keep_ramp,
            by_class=by_class,
        )
        models = command.train(request, reporter)
        for folder, model in zip(model_folders(out), models, strict=True):
            used = Counter(model.parts.values())
            kept = f"kept {used['test']} for tests" if used["test"] else "kept none for tests (--split)"
            say(
                f"model in {folder}: learned from {counted(used['train'], 'particle')}, "
                f"validated on {used['validation']}, {kept}; "
                f"validation median {angle(model.validation_median_rad)}{_beside(model)}"
            )


def _beside(model: "TrainedModel") -> str:
    """What the validation error is to be compared with, and how fast the training was."""
    chance, speed = model.record.chance_median_rad, model.record.images_per_second
    guess = "" if chance is None else f", guessing gives {math.degrees(chance):.0f}°"
    return guess + ("" if speed is None else f"; {speed:.0f} images/s")


@app.command(epilog="Example: cryoforum find-rate simulated/particles.star --set network.pooling=gem")
def find_rate(
    particles: options.Particles,
    preset: options.Preset = "small",
    config: options.ConfigFile = None,
    set_: options.Set = None,
    symmetry: Annotated[str | None, typer.Option(help="Point group as in RELION.")] = None,
    split: options.Split = None,
    steps: Annotated[int, typer.Option(help="Batches; the rate grows a little in each.")] = 200,
    out: Annotated[Path | None, typer.Option(help="Write rates and losses to this CSV file.")] = None,
    seed: int = 0,
    root: options.Root = None,
    keep_ramp: options.KeepRamp = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    overwrite: options.Overwrite = False,
) -> None:
    """Suggest training.max_learning_rate: raise the rate until learning fails."""
    with running() as reporter:
        from cryoforum.commands import find_rate as command
        from cryoforum.config import chosen_config

        settings = chosen_config(preset, config, set_ or [], symmetry)
        request = command.FindRateRequest(
            particles, settings, root, split, steps, seed, out, overwrite, device, precision, keep_ramp
        )
        rate = command.find_rate(request, reporter)
        say(f"suggested: --set training.max_learning_rate={rate:.1e}")
