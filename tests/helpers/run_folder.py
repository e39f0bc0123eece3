"""A small made-up run with every file that the report looks for."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cryoforum.curation.selection import select
from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.dataset.particle_table import select_rows, with_columns
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.split import write_split
from cryoforum.dataset.volumes import Volume
from cryoforum.geometry.rotations import compose, geodesic_distance, random_unitquat
from cryoforum.io.mrc.maps import write_volume
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.relion.particles import table_from_particles, with_poses
from cryoforum.io.relion.star_files import write_star

BOX, COUNT, PIXEL_SIZE = 32, 60, 6.0


def error_summary(errors: np.ndarray) -> dict[str, float]:
    return {
        "count": len(errors),
        "median_rad": float(np.median(errors)),
        "mean_rad": float(errors.mean()),
        "lower_quartile_rad": float(np.quantile(errors, 0.25)),
        "upper_quartile_rad": float(np.quantile(errors, 0.75)),
        "share_above_0_3_rad": float((errors > 0.3).mean()),
    }


def blob() -> torch.Tensor:
    """Three Gaussians as a molecule, (BOX, BOX, BOX)."""
    z, y, x = torch.meshgrid(*[torch.arange(BOX) - BOX / 2.0] * 3, indexing="ij")
    centres = ((0, 0, 3, 5.0), (4, 3, -4, 3.0), (-5, 2, 0, 2.5))
    return sum(
        torch.exp(-((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2) / (2 * s**2)) for a, b, c, s in centres
    )


def write_particles(
    folder: Path, generator: torch.Generator, count: int, refined: bool
) -> dict[str, dict[str, object]]:
    """particles.star with its stack, truth.star, and predictions.star and kept.star of the second half.

    Where poses are refined, network.star is there, too, and predictions have the columns of a comparison with a reference.
    Returns what summary.json says of the poses.
    """
    true = random_unitquat(count, generator=generator)
    volume = blob()
    signal = torch.stack([volume.sum(0), volume.sum(1), volume.sum(2)])[torch.arange(count) % 3]
    images = 0.4 * signal / signal.std() + torch.randn(count, BOX, BOX, generator=generator)
    constants = (15_000.0, 14_500.0, 30.0, 300.0, 2.7, 0.1, 0.0)
    ctf = CtfParameters(*(torch.full((count,), value) for value in constants))
    names = tuple(f"{row + 1:06d}@particles.mrcs" for row in range(count))
    particles = Particles(images, PIXEL_SIZE, names, Poses(true, torch.zeros(count, 2)), ctf)
    write_stack(folder / "particles.mrcs", [images], count, BOX, PIXEL_SIZE)
    table = table_from_particles(particles, names)
    write_star(table, folder / "particles.star")
    test_rows = torch.arange(count // 2, count)
    write_star(table, folder / "truth.star")
    width = 0.02 + 0.1 * torch.rand(len(test_rows), 1, generator=generator)
    predicted = turned(true[test_rows], width, generator)
    shifts = (width if refined else 0) * torch.randn(len(test_rows), 2, generator=generator)
    certainty = (1 / width[:, 0].square()) * torch.exp(0.2 * torch.randn(len(width), generator=generator))
    test_star = with_poses(select_rows(table, test_rows), Poses(predicted, shifts))
    # rows in another order: truth and prediction meet by image name
    shuffled = torch.randperm(len(test_rows), generator=generator)
    columns = {
        "cryoforumLambdaMax": -certainty,
        "cryoforumTrace": -3.7 * certainty,
        "rlnParticleFigureOfMerit": 1 - 1 / (1 + certainty),
    }
    kept = select(columns["cryoforumTrace"], 0.75)
    errors = {"all": geodesic_distance(predicted, true[test_rows])}
    errors["kept"] = errors["all"][kept]
    numbers: dict[str, dict[str, object]] = {}
    if refined:
        columns |= evidence(width[:, 0])
        coarse = turned(true[test_rows], 5 * width, generator)
        far = 5 * width * torch.randn(len(test_rows), 2, generator=generator)
        network = with_poses(test_star, Poses(coarse, far))
        write_star(select_rows(network, shuffled.flip(0)), folder / "network.star")
        errors = {"network": geodesic_distance(coarse, true[test_rows])} | errors
        lengths = {"network": far.norm(dim=1), "all": shifts.norm(dim=1), "kept": shifts[kept].norm(dim=1)}
        numbers["shift_errors"] = {
            group: {"median_angstrom": float(np.median(values))} for group, values in lengths.items()
        }
        bound_deg = columns["cryoforumBoundDeg"].numpy()
        ratio = np.rad2deg(errors["all"].numpy()) / bound_deg
        numbers["bound"] = {
            "median_deg": float(np.median(bound_deg)),
            "median_error_over_bound": float(np.median(ratio)),
        }
    predictions = with_columns(test_star, columns)
    write_star(select_rows(predictions, shuffled), folder / "predictions.star")
    write_star(select_rows(predictions, kept), folder / "kept.star")
    return numbers | {"errors": {group: error_summary(values.numpy()) for group, values in errors.items()}}


def turned(quaternions: torch.Tensor, width_rad: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turned by normal angles about three axes, of standard deviations ``width_rad`` (n, 1)."""
    small = torch.randn(len(quaternions), 3, generator=generator) * width_rad / 2
    turn = torch.nn.functional.normalize(torch.cat([small, torch.ones(len(small), 1)], dim=-1), dim=-1)
    return compose(quaternions, turn)


def evidence(width_rad: torch.Tensor) -> dict[str, torch.Tensor]:
    """The columns that a comparison with a reference adds; one particle is junk."""
    scale = torch.ones(len(width_rad))
    scale[0] = 0.02
    bound_deg = torch.rad2deg(3**0.5 * width_rad)
    return {
        "cryoforumExpectedErrorDeg": bound_deg / scale.clamp_min(0.05),
        "cryoforumBoundDeg": bound_deg,
        "cryoforumOriginErrorAngst": 2**0.5 * width_rad,
        "cryoforumLogLikelihoodGain": 400 * scale,
        "cryoforumSignalScale": scale,
    }


def write_training(folder: Path, rng: np.random.Generator) -> None:
    """model/log.csv, model/split.csv and model/model.json."""
    (folder / "model").mkdir()
    steps = np.arange(10, 1210, 10)
    rate = 2e-3 * np.sin(np.pi * steps / 1250) ** 2
    log = pd.DataFrame(
        {
            "step": steps,
            "images": steps * 64,
            "seconds": steps * 0.31,
            "learning_rate": rate,
            "momentum": 0.95 - 0.1 * rate / 2e-3,
            "train_loss": 4 * np.exp(-steps / 300) - 3 + 0.3 * rng.normal(size=len(steps)),
        }
    )
    # training writes a row of its own after each validation, without loss and learning rate
    validated = log.loc[log["step"] % 100 == 0, ["step", "images", "seconds"]]
    median = 0.06 + 1.2 * np.exp(-validated["step"] / 250)
    validated = validated.assign(validation_median_rad=median, validation_mean_rad=1.4 * median)
    log = pd.concat([log, validated]).sort_values("step", kind="stable")
    log.to_csv(folder / "model" / "log.csv", index=False)
    model = {
        "symmetry": "C1",
        "pixel_size_angstrom": PIXEL_SIZE,
        "config": {"preprocessing": {"box": BOX, "phase_flip": True}, "network": {"widths": [16, 32, 64]}},
        "sha256": "9f" * 32,
    }
    (folder / "model" / "model.json").write_text(json.dumps(model))
    parts = dict(enumerate(["train"] * 20 + ["validation"] * 10 + ["test"] * 30))
    write_split(
        folder / "model" / "split.csv", {f"{row + 1:06d}@particles.mrcs": p for row, p in parts.items()}, {}
    )


def write_reconstructions(folder: Path, generator: torch.Generator, refined: bool) -> None:
    """Maps with FSC tables, and whether their halves are independent."""
    shells = np.arange(1, BOX // 2)
    frequency = shells / (BOX * PIXEL_SIZE)
    cutoffs = {"true": 12.5, "network": 8.2, "predicted": 9.0, "filtered": 9.6}
    if not refined:
        del cutoffs["network"]
    for kind, cutoff in cutoffs.items():
        place = folder / "reconstruction" / kind
        place.mkdir(parents=True)
        noise = 0.05 * torch.randn(BOX, BOX, BOX, generator=generator)
        write_volume(Volume(blob() + noise, PIXEL_SIZE), place / "map.mrc")
        curves = [1 / (1 + np.exp((shells - middle) / 1.2)) for middle in (cutoff - 2, cutoff - 1)]
        table = pd.DataFrame(
            {
                "shell": shells,
                "frequency_per_angstrom": frequency,
                "resolution_angstrom": 1 / frequency,
                "fsc_unmasked": curves[0],
                "fsc_masked": curves[1],
            }
        )
        table.to_csv(place / "fsc.csv", index=False)
        (place / "resolution.json").write_text(json.dumps({"independent": kind == "true"}))


def write_run(folder: Path, count: int = COUNT, refined: bool = True) -> Path:
    """A run with every file that the report looks for; not ``refined``: of a model without a reference."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(7)
    numbers = write_particles(folder, generator, count, refined)
    write_training(folder, np.random.default_rng(7))
    write_reconstructions(folder, generator, refined)
    summary = numbers | {
        "resolutions": {
            "true": {"unmasked": 18.2, "masked": 16.0, "independent": True},
            "predicted": {"unmasked": 25.1, "masked": 22.4, "independent": False},
            "filtered": {"unmasked": 23.9, "masked": None},
        },
        "timings": [
            {"step": "simulate", "seconds": 12.3, "images_per_second": 406.5, "peak_memory_mb": 812},
            {"step": "train", "seconds": 373.0, "images_per_second": 205.9, "peak_memory_mb": 1934},
            {"step": "reconstruct", "seconds": 31.0, "images_per_second": None, "peak_memory_mb": 1210},
        ],
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder
