"""The sections of the report; each is None where the files it needs are missing."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cryoforum.config import PreprocessingConfig, updated
from cryoforum.fourier import crop_or_pad, to_fourier, to_real
from cryoforum.io.mrc import read_volume
from cryoforum.io.star import particles_from_star, read_star
from cryoforum.metrics import FSC_THRESHOLD
from cryoforum.network.blur import LowPassBlur
from cryoforum.preprocessing import prepare
from cryoforum.reporting import figures
from cryoforum.reporting.canvas import picture
from cryoforum.reporting.inputs import PredictedPoses, read_csv
from cryoforum.reporting.layout import Exhibit, Panel, Section, Table, flattened
from cryoforum.rotations import unitquat_to_rotmat
from cryoforum.symmetry import symmetric_distance, symmetry_group

RECONSTRUCTIONS = {"true": "True poses", "predicted": "Predicted poses", "filtered": "Predicted, filtered"}
_SHOWN_PARTICLES = 4
_MAX_TILE_PIXEL = 192  # a larger picture is sharper than the screen and slow to load
_MAX_PAIRS = 200_000


def particle_section(folder: Path, model: dict[str, Any]) -> Section | None:
    """A few particles as recorded, as the network gets them, and low-pass filtered (paper, Fig. 2)."""
    path = folder / "particles.star"
    if not path.is_file():
        return None
    particles = particles_from_star(read_star(path))
    rows = torch.linspace(0, len(particles) - 1, min(_SHOWN_PARTICLES, len(particles))).long()
    optics = None if particles.optics is None else particles.optics[rows]
    config = _preprocessing_config(model)
    recorded = particles.images[rows]
    prepared = prepare(recorded, optics, particles.pixel_size_angstrom, config)
    blur = LowPassBlur(config.box)
    blurred = blur(prepared[:, None])
    width_angstrom = particles.box * particles.pixel_size_angstrom
    stages = [(f"Recorded, {particles.box} px of {particles.pixel_size_angstrom:.3g} Å", _small(recorded))]
    stages.append((f"Prepared, {config.box} px of {width_angstrom / config.box:.3g} Å", prepared))
    for channel in (len(blur.cutoffs) - 2, len(blur.cutoffs) - 1):
        resolution = width_angstrom / blur.cutoffs[channel]
        stages.append((f"Low-pass filtered to {resolution:.0f} Å", blurred[:, channel]))
    panels = tuple(
        Panel(label, picture(images, f"{label}: {len(rows)} particles")) for label, images in stages
    )
    flip = "multiplied by the sign of their CTF (phase flipping), " if config.phase_flip and optics else ""
    caption = (
        f"The same {len(rows)} particles in every panel. Prepared images were {flip}cut to the frequencies "
        "the network sees, standardised and masked. The filtered ones show what a blurring layer adds as "
        "further channels: low resolution, where the signal is strongest. Grey levels are stretched image "
        "by image."
    )
    text = f"{thousands(len(particles))} particle images, {width_angstrom:.0f} Å wide."
    return Section("particles", "Particles", text, (Exhibit(panels, caption),))


def training_section(folder: Path) -> Section | None:
    """Learning curves and the learning-rate schedule."""
    path = folder / "model" / "log.csv"
    log = read_csv(path, ("step", "images", "seconds", "learning_rate", "train_loss"))
    if log is None:
        return None
    trained = log[log["train_loss"].notna()]  # a row of validation alone has no loss
    steps = trained["step"].to_numpy()
    panels = []
    if len(trained):
        panels.append(Panel("Training loss", figures.training_loss(steps, trained["train_loss"].to_numpy())))
    validation = ("validation_median_rad", "validation_mean_rad")
    if all(column in log and log[column].notna().any() for column in validation):
        median, mean = (log[column].to_numpy(dtype=float) for column in validation)
        drawn = figures.validation_error(log["step"].to_numpy(), median, mean)
        panels.append(Panel("Validation error", drawn))
    if len(trained):
        momentum = trained["momentum"].to_numpy() if "momentum" in trained else None
        rates = trained["learning_rate"].to_numpy()
        panels.append(Panel("Schedule", figures.schedule(steps, rates, momentum)))
    last = log.iloc[-1]
    text = (
        f"{thousands(last['images'])} images shown in {thousands(last['step'])} steps, "
        f"{last['seconds'] / 60:.1f} minutes."
    )
    caption = (
        "Validation particles take no part in training: where their error rises while the loss still falls, "
        "the network learns its particles by heart. A mean far above the median means that some particles "
        "are still turned the wrong way altogether."
    )
    return Section("training", "Training", text, (Exhibit(tuple(panels), caption, columns=3),))


def accuracy_section(predictions: PredictedPoses | None) -> Section | None:
    """True against predicted distances, certainty against error, kept against dropped (Fig. 3, 4a-c)."""
    errors = None if predictions is None else predictions.errors_rad
    if predictions is None or predictions.true_quaternions is None or errors is None:
        return None
    exhibits = []
    true, predicted = (
        _pair_distances(quaternions, predictions.symmetry)
        for quaternions in (predictions.true_quaternions, predictions.quaternions)
    )
    if len(true) > 1:
        panels = (Panel("Distances between pairs", figures.pairwise_density(true, predicted)),)
        caption = (
            "Random pairs of particles: by how much their orientations differ in truth, and by how "
            "much according to the prediction. Perfect orientations lie on the dashed line, whatever the "
            "overall rotation of the map."
        )
        exhibits.append(Exhibit(panels, caption, columns=1))
    exhibits += _certainty_exhibits(predictions, errors)
    text = (
        "Errors are geodesic angles between predicted and true orientation: the one rotation that would "
        "turn one into the other."
    )
    return Section("accuracy", "Orientations against the truth", text, tuple(exhibits))


def directions_section(predictions: PredictedPoses | None) -> Section | None:
    """From where the particles are seen, as predicted and in truth."""
    if predictions is None:
        return None
    named = [("predicted", predictions.quaternions), ("true", predictions.true_quaternions)]
    directions = {name: _view_directions(values) for name, values in named if values is not None}
    maps = figures.view_directions(directions)
    panels = tuple(Panel(name.capitalize(), markup) for name, markup in maps.items())
    caption = (
        "View directions (rot runs around the equator, tilt 0° is at the north pole) in cells of equal "
        "area. Empty regions are directions that no particle shows; the map is blurred along them. Clusters "
        "in the prediction alone are places where the network puts particles it cannot tell apart."
    )
    return Section("directions", "View directions", "", (Exhibit(panels, caption),))


def reconstruction_section(folder: Path) -> Section | None:
    """Central sections and FSC curves of the maps (Fig. 4d-f)."""
    sections, curves = [], []
    for kind, name in RECONSTRUCTIONS.items():
        place = folder / "reconstruction" / kind
        table = read_csv(place / "fsc.csv", ("frequency_per_angstrom", "fsc_unmasked"))
        if (place / "map.mrc").is_file():
            sections.append(Panel(name, _central_sections(place / "map.mrc", name, table)))
        if table is not None:
            masked = table["fsc_masked"].to_numpy() if "fsc_masked" in table else None
            frequency, unmasked = (table[c].to_numpy() for c in ("frequency_per_angstrom", "fsc_unmasked"))
            curves.append(Panel(name, figures.fsc_curve(frequency, unmasked, masked, name.lower())))
    exhibits = []
    if sections:
        caption = (
            "Central sections of the maps, normal to z, y and x; density is bright. Where the FSC is known, "
            "a map is low-pass filtered to its unmasked resolution, so that noise beyond does not hide it."
        )
        exhibits.append(Exhibit(tuple(sections), caption, columns=len(sections)))
    if curves:
        caption = (
            "Fourier shell correlation of two half maps. The resolution is where the curve falls below "
            "0.143 (dotted line)."
        )
        exhibits.append(Exhibit(tuple(curves), caption, columns=len(curves)))
    if not exhibits:
        return None
    text = (
        "Maps from the same images under different poses; filtered means that the least certain particles "
        "were left out. Read the FSC of predicted poses with care: where one model posed both halves, the "
        "halves share its mistakes, and the resolution is optimistic. The true poses show what these images "
        "can give at best."
    )
    return Section("reconstructions", "Reconstructions", text, tuple(exhibits))


def run_section(summary: dict[str, Any], model: dict[str, Any]) -> Section | None:
    """How long each step took, and the settings of the model."""
    tables = []
    if summary.get("timings"):
        header = ("Step", "Seconds", "Images / s", "Peak memory (MB)")
        keys = ("seconds", "images_per_second", "peak_memory_mb")
        rows = tuple(
            (str(entry.get("step", "")), *(quantity(entry.get(key)) for key in keys))
            for entry in summary["timings"]
        )
        tables.append(Table("Time and memory of each step", header, rows))
    if model:
        tables.append(
            Table("Settings of the model", ("Setting", "Value"), tuple(flattened(model)), folded=True)
        )
    return Section("run", "How it was run", "", tables=tuple(tables)) if tables else None


def thousands(value: float) -> str:
    """A whole number with thin spaces between groups of three digits."""
    return f"{value:,.0f}".replace(",", "\u202f")


def quantity(value: float | None) -> str:
    """A number as a table shows it: three digits that matter; a dash where there is none."""
    if value is None or not np.isfinite(value):
        return "–"
    return thousands(value) if abs(value) >= 100 else f"{value:.3g}"


def percent(share: float) -> str:
    """A share of 1 as whole per cent."""
    return f"{100 * share:.0f}\u202f%"


def _preprocessing_config(model: dict[str, Any]) -> PreprocessingConfig:
    """The one the model was trained with, or the default."""
    settings = model.get("preprocessing") or model.get("config", {}).get("preprocessing", {})
    return updated(PreprocessingConfig(), settings, "model.json, preprocessing")


def _small(images: torch.Tensor) -> torch.Tensor:
    box = images.shape[-1]
    if box <= _MAX_TILE_PIXEL:
        return images
    return to_real(crop_or_pad(to_fourier(images), box, _MAX_TILE_PIXEL), _MAX_TILE_PIXEL)


def _pair_distances(quaternions: torch.Tensor, symmetry: str) -> np.ndarray:
    """Distances in radians of random pairs, the same pairs for the same number of particles."""
    count = len(quaternions)
    pairs = min(_MAX_PAIRS, count * (count - 1) // 2)
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(count, (pairs,), generator=generator)
    second = (first + torch.randint(1, max(count, 2), (pairs,), generator=generator)) % count
    return symmetric_distance(quaternions[first], quaternions[second], symmetry_group(symmetry)).numpy()


def _certainty_exhibits(predictions: PredictedPoses, errors: np.ndarray) -> list[Exhibit]:
    share = predictions.kept_share
    named = (("Λmax", predictions.lambda_max), ("tr Λ", predictions.trace))
    panels = [
        Panel(f"Error against {name}", figures.certainty_scatter(values, errors, name, share))
        for name, values in named
        if values is not None
    ]
    if predictions.kept is not None:
        histogram = figures.error_histogram(errors[predictions.kept], errors[~predictions.kept])
        panels.append(Panel("Kept and dropped", histogram))
    caption = (
        "Λmax and tr Λ measure the width of the predicted belief: the further from zero, the more certain. "
        f"The dashed line is the {percent(1 - share)} quantile; less certain particles are left of it "
        f"(orange). Last panel: errors of the {percent(share)} that were kept and of the rest. "
        "A belief is useful where the orange particles are the wrong ones."
    )
    return [Exhibit(tuple(panels), caption, columns=len(panels))] if panels else []


def _view_directions(quaternions: torch.Tensor) -> np.ndarray:
    """Where the viewer is, (n, 3): R z."""
    return unitquat_to_rotmat(quaternions)[:, :, 2].numpy()


def _central_sections(path: Path, name: str, fsc: pd.DataFrame | None) -> str:
    volume = read_volume(path)
    voxels = volume.voxels
    if fsc is not None:
        below = fsc["fsc_unmasked"].to_numpy() < FSC_THRESHOLD
        if below.any():
            cutoff = float(fsc["frequency_per_angstrom"].iloc[below.argmax()])
            voxels = _low_passed(voxels, cutoff * volume.pixel_size_angstrom)
    middle = len(voxels) // 2
    sections = torch.stack([voxels[middle], voxels[:, middle], voxels[:, :, middle]])
    return picture(_small(sections), f"Central z, y and x sections of the map from {name.lower()}")


def _low_passed(voxels: torch.Tensor, cutoff: float) -> torch.Tensor:
    """A map (n, n, n) without what is finer than ``cutoff`` cycles per voxel; a Gaussian, 1/2 there."""
    axes = [torch.fft.fftfreq(len(voxels)), torch.fft.fftfreq(len(voxels)), torch.fft.rfftfreq(len(voxels))]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    decay = (z**2 + y**2 + x**2) / max(cutoff, 1 / len(voxels)) ** 2
    return torch.fft.irfftn(torch.fft.rfftn(voxels) * torch.exp(-math.log(2) * decay), s=voxels.shape)
