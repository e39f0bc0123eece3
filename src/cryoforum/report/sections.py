"""The sections of the report; each is None where the files it needs are missing."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryoforum.config import PreprocessingConfig, updated
from cryoforum.dataset.columns import LAMBDA_MAX, TRACE
from cryoforum.errors import InputError
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group
from cryoforum.geometry.rotations import unitquat_to_rotmat
from cryoforum.io.particle_files import read_particle_file
from cryoforum.io.relion.particles import particles_from_table
from cryoforum.network.blur import Blur, low_pass_cutoffs, low_pass_transfer
from cryoforum.network.preprocessing import prepare
from cryoforum.network.training_record import TrainingRecord, doubts
from cryoforum.report import figures
from cryoforum.report.canvas import picture
from cryoforum.report.inputs import PredictedPoses, read_csv, split_counts
from cryoforum.report.layout import Exhibit, Panel, Section, Table, flattened
from cryoforum.report.wording import degrees, percent, quantity, thousands

logger = logging.getLogger(__name__)

_SHOWN_PARTICLES = 4
_MAX_PAIRS = 200_000


def particle_section(folder: Path, root: Path | None, model: dict[str, Any]) -> Section | None:
    """A few particles as recorded, as the network gets them, and low-pass filtered (paper, Fig. 2)."""
    path, predicted = folder / "particles.star", folder / "predictions.star"
    if path.is_file():
        particles = particles_from_table(read_particle_file(path), root)
    elif predicted.is_file():
        try:
            particles = particles_from_table(read_particle_file(predicted), root)
        except InputError as error:
            logger.info(f"no particle images on the page: {error}")
            return None
    else:
        return None
    rows = torch.linspace(0, len(particles) - 1, min(_SHOWN_PARTICLES, len(particles))).long()
    ctf = None if particles.ctf is None else particles.ctf[rows]
    settings = model.get("config", {}).get("preprocessing", {})
    # Image by image: the intensity of the whole set is not needed for a picture.
    config = replace(
        updated(PreprocessingConfig(), settings, "model.json, preprocessing"), standardise="image"
    )
    recorded = particles.images[rows]
    prepared = prepare(recorded, ctf, particles.pixel_size_angstrom, config)
    cutoffs = low_pass_cutoffs(config.box)
    blurred = Blur(low_pass_transfer(config.box))(prepared[:, None])
    width_angstrom = particles.box * particles.pixel_size_angstrom
    stages = [
        (f"Recorded, {particles.box} px of {particles.pixel_size_angstrom:.3g} Å", recorded),
        (f"Prepared, {config.box} px of {width_angstrom / config.box:.3g} Å", prepared),
    ]
    for channel in (len(cutoffs) - 2, len(cutoffs) - 1):
        resolution = width_angstrom / cutoffs[channel]
        stages.append((f"Low-pass filtered to {resolution:.0f} Å", blurred[:, channel]))
    panels = [Panel(label, picture(images, f"{label}: {len(rows)} particles")) for label, images in stages]
    flip = "multiplied by the sign of their CTF (phase flipping), " if config.phase_flip and ctf else ""
    caption = (
        f"The same {len(rows)} particles in every panel. Prepared images were {flip}cut to the frequencies "
        "the network sees, standardised and masked. The filtered ones are the further channels that a "
        "blurring layer adds: low resolution, where the signal is strongest. Grey levels are stretched image "
        "by image."
    )
    text = f"{thousands(len(particles))} particle images, {width_angstrom:.0f} Å wide."
    return Section("particles", "Particles", text, [Exhibit(panels, caption)])


def rounds_section(folder: Path) -> Section | None:
    """How resolution and poses came to rest in the rounds of a refinement."""
    log = read_csv(folder / "rounds.csv", ("round", "resolution_1_angstrom", "expected_error_deg"))
    if log is None:
        return None
    by_class = log.filter(regex=r"^resolution_\d+_angstrom$")
    resolutions = {
        f"class {number}": values.to_numpy() for number, (_, values) in enumerate(by_class.items(), 1)
    }
    numbers = log["round"].to_numpy()
    panels = [Panel("Resolution of the half maps", figures.resolution_by_round(numbers, resolutions))]
    turned = log["change_deg"].replace(np.inf, np.nan).to_numpy()
    errors = figures.errors_by_round(numbers, log["expected_error_deg"].to_numpy(), turned)
    panels.append(Panel("Expected error and change of the poses", errors))
    text = f"{len(log)} rounds of alignment and reconstruction, each half against its own map."
    caption = (
        "Resolution is where the masked FSC of the half maps falls below 0.143 (not corrected for the mask), "
        "round by round. Poses stand still where their median change is far below their expected error."
    )
    return Section("rounds", "Rounds", text, [Exhibit(panels, caption)])


def training_section(folder: Path, model: dict[str, Any]) -> Section | None:
    """Learning curves and the learning-rate schedule, and whether the network learned anything."""
    log = read_csv(folder / "model" / "log.csv", ("step", "images", "seconds"))
    if log is None:
        return None
    # a row of validation alone has no loss, and of a very short training there are no others
    trained = log.reindex(columns=["step", "train_loss", "learning_rate", "momentum"]).dropna()
    steps, losses, rates, momenta = trained.to_numpy(dtype=float).T
    validation = log.reindex(columns=["step", "validation_median_rad", "validation_mean_rad"])
    panels = []
    if len(trained):
        panels.append(Panel("Training loss", figures.training_loss(steps, losses)))
    if validation.notna().any().all():
        drawn = figures.validation_error(*validation.to_numpy(dtype=float).T)
        panels.append(Panel("Validation error", drawn))
    if len(trained):
        panels.append(Panel("Schedule", figures.schedule(steps, rates, momenta)))
    last = log.iloc[-1]
    text = (
        f"{thousands(last['images'])} images shown in {thousands(last['step'])} steps, "
        f"{last['seconds'] / 60:.1f} minutes." + _use_of_particles(folder) + _outcome(model)
    )
    caption = (
        "Validation particles take no part in training: where their error rises while the loss still falls, "
        "the network memorises its particles. A mean far above the median means that some orientations are "
        "still wrong altogether."
    )
    return Section("training", "Training", text, [Exhibit(panels, caption, columns=3)])


def _use_of_particles(folder: Path) -> str:
    """How many particles were learned from, validated on and kept for tests, as a sentence."""
    counts = split_counts(folder)
    if not counts:
        return ""
    tests = counts.get("test", 0)
    kept = f"{thousands(tests)} kept for tests" if tests else "none kept for tests"
    used = [thousands(counts.get(part, 0)) for part in ("train", "validation")]
    return f" {used[0]} particles were learned from, {used[1]} validated on, {kept}."


def _outcome(model: dict[str, Any]) -> str:
    """The validation error beside that of a guess, and doubts, as sentences."""
    median, known = model.get("validation_median_rad"), model.get("training", {})
    record = TrainingRecord(**known)
    if median is None or record.chance_median_rad is None:
        return ""
    said = f"Median validation error {degrees(median)}; guessing gives {degrees(record.chance_median_rad)}."
    return " ".join(["", said, *(f"{doubt[0].upper()}{doubt[1:]}." for doubt in doubts(median, record))])


def accuracy_section(predictions: PredictedPoses | None) -> Section | None:
    """True against predicted distances, certainty against error, kept against dropped (Fig. 3, 4a-c)."""
    if predictions is None or predictions.true_poses is None:
        return None
    exhibits = []
    if len(predictions.poses) > 1:
        named = {"Network alone": predictions.network_poses, "Refined": predictions.poses}
        if predictions.bound_rad is None:
            named = {"Distances between pairs": predictions.poses}
        symmetry = predictions.symmetry
        true = pair_distances(predictions.true_poses.quaternions, symmetry)
        panels = [
            Panel(name, figures.pairwise_density(true, pair_distances(poses.quaternions, symmetry)))
            for name, poses in named.items()
            if poses is not None
        ]
        caption = (
            "Random pairs of particles: the angle between their true orientations, and the angle between "
            "the predicted ones. Perfect orientations lie on the dashed line, whatever the "
            "overall rotation of the map."
        )
        exhibits.append(Exhibit(panels, caption, columns=len(panels)))
    exhibits += _certainty_exhibits(predictions, predictions.errors_rad(predictions.poses))
    text = (
        "Errors are geodesic angles between predicted and true orientation: the angle of the rotation that "
        "turns one into the other."
    )
    if predictions.bound_rad is not None:
        text += " Predicted orientations and their uncertainties are those after local refinement."
    return Section("accuracy", "Orientation errors", text, exhibits)


def directions_section(predictions: PredictedPoses | None) -> Section | None:
    """View directions of the particles, predicted and true."""
    if predictions is None:
        return None
    named = [("predicted", predictions.poses), ("true", predictions.true_poses)]
    directions = {
        name: unitquat_to_rotmat(poses.quaternions)[:, :, 2].numpy()  # R z
        for name, poses in named
        if poses is not None
    }
    maps = figures.view_directions(directions)
    panels = [Panel(name.capitalize(), markup) for name, markup in maps.items()]
    caption = (
        "View directions (rot runs around the equator, tilt 0° is at the north pole) in cells of equal "
        "area. In empty regions no particle was seen; the map is blurred along them. Clusters in the "
        "prediction alone are directions that the network gives to particles it cannot tell apart."
    )
    return Section("directions", "View directions", "", [Exhibit(panels, caption)])


def run_section(summary: dict[str, Any], model: dict[str, Any]) -> Section | None:
    """How long each step took, and the settings of the model."""
    tables = []
    if summary.get("timings"):
        header = ("Step", "Seconds", "Images / s", "Peak memory (MB)")
        keys = ("seconds", "images_per_second", "peak_memory_mb")
        rows = [
            (str(entry.get("step", "")), *(quantity(entry.get(key)) for key in keys))
            for entry in summary["timings"]
        ]
        tables.append(Table("Time and memory of each step", header, rows))
    if model:
        tables.append(Table("Settings of the model", ("Setting", "Value"), flattened(model), folded=True))
    return Section("run", "How it was run", "", tables=tables) if tables else None


def pair_distances(quaternions: torch.Tensor, symmetry: str) -> np.ndarray:
    """Distances in radians of random pairs, the same pairs for the same number (≥ 2) of particles."""
    count = len(quaternions)
    pairs = min(_MAX_PAIRS, count * (count - 1) // 2)
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(count, (pairs,), generator=generator)
    second = (first + torch.randint(1, count, (pairs,), generator=generator)) % count
    return symmetric_distance(quaternions[first], quaternions[second], symmetry_group(symmetry)).numpy()


def _certainty_exhibits(predictions: PredictedPoses, errors: np.ndarray) -> list[Exhibit]:
    share = predictions.kept_share
    panels = []
    for name, column in (("Λmax", LAMBDA_MAX), ("tr Λ", TRACE)):
        if column in predictions.columns:
            drawn = figures.certainty_scatter(predictions.columns[column], errors, name, share)
            panels.append(Panel(f"Error against {name}", drawn))
    if predictions.kept is not None:
        histogram = figures.error_histogram(errors[predictions.kept], errors[~predictions.kept])
        panels.append(Panel("Kept and dropped", histogram))
    caption = (
        "Λmax and tr Λ measure the width of the predicted posterior: the further from zero, the more "
        f"certain. The dashed line is the {percent(1 - share)} quantile; less certain particles are left of "
        f"it (orange). Last panel: errors of the {percent(share)} that were kept and of the rest. "
        "An uncertainty is useful where the orange particles are the wrong ones."
    )
    if predictions.bound_rad is not None:
        caption += " Where no particle is wrong, dropping the least certain ones only costs signal."
    return [Exhibit(panels, caption, columns=len(panels))] if panels else []
