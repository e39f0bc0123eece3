"""What a trained network is worth on the test part of a data set: errors, likelihood, resolution of maps."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cryoforum.dataset.particles import Particles, loaded_batches
from cryoforum.dataset.pose_errors import orientation_errors
from cryoforum.dataset.predictions import Predictions
from cryoforum.dataset.split import Split
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError
from cryoforum.geometry.point_groups import distance_to_domain_border, in_fundamental_domain, symmetry_group
from cryoforum.geometry.rotations import compose
from cryoforum.imaging.masks import soft_mask
from cryoforum.network.model import TrainedModel
from cryoforum.network.predict import network_numbers, predict
from cryoforum.reconstruction.fsc import fourier_shell_correlation, fsc_curve, resolution_angstrom
from cryoforum.reconstruction.half_sets import drawn_half_sets
from cryoforum.reconstruction.inversion import ReconstructionConfig, reconstruct
from cryoforum.study.datasets import junk_rows, molecule
from cryoforum.study.variants import Run

COARSE_ANGSTROM = 30.0  # resolution to which maps show the shape of a molecule
TRUE_MAP_FSC = 0.5  # with a map without noise: as good as 0.143 between two half maps
BORDER_RAD = 0.1  # from its domain's border, below which an orientation counts as near


@dataclass(frozen=True)
class Evaluation:
    """The test part of a data set (n particles) with the orientations that the network predicts.

    Attributes
    ----------
    truth
        (n, 4) true orientations.
    errors
        (n,) in radians, to the nearest equivalent.
    genuine
        (n,) bool: not junk.
    """

    test: Particles
    truth: Tensor
    predictions: Predictions
    errors: Tensor
    genuine: Tensor


def evaluate(run: Run, model: TrainedModel, particles: Particles, split: Split) -> Evaluation:
    """Predict the orientations of the test part, and measure their errors."""
    test = particles.select(split.test)
    if test.poses is None:
        raise InputError("expected particles with poses to test on")
    predictions = predict(model, test, tta=run.tta_copies)
    truth = test.poses.quaternions
    errors = orientation_errors(predictions.posterior.mode, truth, run.config.symmetry)
    is_junk = torch.zeros(len(particles), dtype=torch.bool)
    is_junk[junk_rows(run.dataset)] = True
    return Evaluation(test, truth, predictions, errors, ~is_junk[split.test])


def median_without_tta(run: Run, model: TrainedModel, found: Evaluation) -> float:
    """The median error in radians without test-time augmentation."""
    errors = found.errors
    if run.tta_copies > 1:
        mode = predict(model, found.test, tta=1).posterior.mode
        errors = orientation_errors(mode, found.truth, run.config.symmetry)
    return float(errors[found.genuine].quantile(0.5))


def root_mean_square(values: Tensor) -> float:
    """Root of the mean of squares."""
    return float(values.square().mean().sqrt())


def log_likelihood(run: Run, model: TrainedModel, found: Evaluation) -> float:
    """Mean log density of the true orientations, relative to a uniform density and without TTA.

    A density that is not symmetric is replaced by its mean over the group: the probability of one of g
    equivalent modes is divided among all of them.
    """
    group = symmetry_group(run.config.symmetry)
    rows = found.genuine.nonzero()[:, 0]
    equivalents = compose(group, found.truth[rows][:, None])
    batches = loaded_batches(found.test.select(rows), 256)
    with torch.no_grad():
        densities = [
            model.head.normalised_log_density(network_numbers(model, batch), own)
            for batch, own in zip(batches, equivalents.split(256), strict=True)
        ]
    return float((torch.cat(densities).logsumexp(-1) - math.log(len(group))).mean())


def border_distance(quaternions: Tensor, symmetry: str) -> Tensor:
    """Distance (n,) in radians of orientations (n, 4) to the border of their fundamental domain."""
    group = symmetry_group(symmetry)
    return distance_to_domain_border(in_fundamental_domain(quaternions, group), group)


def near_border(run: Run, found: Evaluation) -> dict[str, float]:
    """Errors of particles near the border of the fundamental domain, and away from it."""
    near = border_distance(found.truth, run.config.symmetry) < BORDER_RAD
    return {
        "share_near_border": float(near.float().mean()),
        "median_near_border_rad": float(found.errors[near].median()),
        "mean_near_border_rad": float(found.errors[near].mean()),
        "median_inside_rad": float(found.errors[~near].median()),
        "mean_inside_rad": float(found.errors[~near].mean()),
    }


def resolutions(
    run: Run, found: Evaluation, threshold: float
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Masked resolution of maps with true, predicted and filtered orientations (Fig. 4).

    Origins are the given ones, as the network finds none. Half maps agree on the junk that they share, too,
    so for simulated particles the FSC of the full map with the true map is added: the resolution where it
    falls to 0.5, and its mean down to 30 Å.

    Parameters
    ----------
    run
        Its data set and symmetry.
    found
        Predicted orientations.
    threshold
        Particles are kept by the filter where the trace (eq. 7) is at most this.

    Returns
    -------
    Numbers for the record of the run, and the FSC curves (shells,) by name.
    """
    true_map = None if run.dataset.particle_file else molecule(run.dataset)
    kept = (found.predictions.posterior.trace <= threshold).nonzero()[:, 0]
    rows, mode = torch.arange(len(found.test)), found.predictions.posterior.mode
    maps_of = {
        "true": (rows, found.truth),
        "predicted": (rows, mode),
        "filtered": (kept, mode),
        "genuine": (found.genuine.nonzero()[:, 0], mode),
    }
    numbers = {
        "kept_share": len(kept) / len(found.test),
        "junk_share": float((~found.genuine).float().mean()),
        "junk_share_of_kept": float((~found.genuine[kept]).float().mean()),
        "share_above_0_3_rad_of_kept": float((found.errors[kept] > 0.3).float().mean()),
    }
    curves = {}
    for name, (chosen, quaternions) in maps_of.items():
        test = found.test.select(chosen).with_orientations(quaternions[chosen])
        test = replace(test, half_sets=drawn_half_sets(test.names))
        config = ReconstructionConfig(symmetry=run.config.symmetry)
        maps = reconstruct(test, config, independent=False)
        curve = fsc_curve(maps)
        numbers[f"resolution_{name}_angstrom"] = curve.masked_resolution_angstrom
        curves[f"fsc_{name}"] = curve.masked.numpy()
        if true_map is not None:
            fsc = _fsc_with(true_map, maps.full)
            box, size = len(true_map.voxels), true_map.pixel_size_angstrom
            resolution = resolution_angstrom(fsc, box, size, TRUE_MAP_FSC)
            numbers[f"true_resolution_{name}_angstrom"] = resolution
            numbers[f"coarse_fsc_{name}"] = float(fsc[1 : int(box * size / COARSE_ANGSTROM) + 1].mean())
            curves[f"fsc_with_true_map_{name}"] = fsc.numpy()
    return numbers, curves


def _fsc_with(true_map: Volume, found: Volume) -> Tensor:
    """FSC of a map with the true one, both under the true one's mask."""
    mask = soft_mask(true_map)
    first, second = (Volume(each.voxels * mask, each.pixel_size_angstrom) for each in (true_map, found))
    return fourier_shell_correlation(first, second)
