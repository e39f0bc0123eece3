"""Which of several maps an image shows: its likelihood under every class, where no map is known exactly."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoforum.dataset.particles import Particles
from cryoforum.dataset.predictions import Predictions
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError
from cryoforum.imaging.fft import FrequencyPoints, frequency_points
from cryoforum.imaging.likelihood import WhitenedImages
from cryoforum.imaging.noise_model import NoiseModel, measured_noise
from cryoforum.imaging.projection import cropped_transform, slices_at
from cryoforum.imaging.shells import mean_by_shell, shell_index
from cryoforum.reconstruction.reference_map import Reference

LEAST_SHARE = 1e-6  # of all particles that a class is expected to have


@dataclass(frozen=True)
class UncertainMap:
    """A map, and what is not known of it.

    Parameters
    ----------
    transform
        `projection.cropped_transform` of the map, weighted by what is signal in it.
    variance
        Of each shell of the transform about the truth.
    """

    transform: Float[Tensor, "z y x 2"]
    variance: Float[Tensor, " s"]


@dataclass(frozen=True)
class ClassMaps:
    """The maps of all classes, and the noise of the particles that are compared with them.

    Parameters
    ----------
    maps
        Of each class one of all particles, or those of half 1 and half 2: an image is then judged by the
        map of the other half, which holds none of its noise.
    noise, points
        Of all particles; the frequencies that all classes show.
    """

    maps: tuple[tuple[UncertainMap, ...], ...]
    noise: NoiseModel
    points: FrequencyPoints

    def log_likelihoods(self, batch: Particles, found: Sequence[Predictions]) -> Float[Tensor, "n k"]:
        """Log-likelihood of each image over noise alone under every class, at its pose in that class."""
        images = self.noise.whiten(batch, self.points)
        which = _judging(self.maps, batch)
        result = torch.empty(len(batch), len(self.maps))
        for number, (maps, predictions) in enumerate(zip(self.maps, found, strict=True)):
            poses = predictions.poses
            origins = poses.shifts_angstrom / batch.pixel_size_angstrom
            for at, own_map in enumerate(maps):
                own = (which == at).nonzero()[:, 0]
                result[own, number] = predicted_gain(
                    own_map, images[own], poses.quaternions[own], origins[own]
                )
        return result


def class_maps_with_noise(
    maps: tuple[tuple[UncertainMap, ...], ...],
    particles: Particles,
    classes: Int[Tensor, " n"],
    highest_frequency: int,
) -> ClassMaps:
    """Maps of classes, and the noise of particles with poses, each of its class, counted from 0."""
    assert particles.poses is not None
    transforms = [one.transform for of_class in maps for one in of_class]
    which = len(maps[0]) * classes + _judging(maps, particles)
    noise = measured_noise(particles, particles.poses, transforms, which, highest_frequency)
    return ClassMaps(maps, noise, frequency_points(particles.box, highest_frequency))


def _judging(maps: tuple[tuple[UncertainMap, ...], ...], particles: Particles) -> Int[Tensor, " n"]:
    """Which of its class's maps judges each particle."""
    if len(maps[0]) == 1:
        return torch.zeros(len(particles), dtype=torch.long)
    if particles.half_sets is None:
        raise InputError("expected particles with half sets, found none")
    return 2 - particles.half_sets  # of half 1 the second, of half 2 the first


def predicted_gain(
    uncertain: UncertainMap,
    images: WhitenedImages,
    quaternions: Float[Tensor, "n 4"],
    origins: Float[Tensor, "n 2"],
) -> Float[Tensor, " n"]:
    """Log-likelihood of whitened images over noise alone where the map is not known exactly.

    An image is the prediction of the map plus complex noise of power 1 + transfer² · variance.
    """
    points, transfer = images.points, images.transfer
    model = transfer * slices_at(uncertain.transform, quaternions, points) * points.phases(origins)
    power = 1 + transfer.square() * uncertain.variance[points.shell]
    residual = (images.values - model).abs().square()
    return (images.values.abs().square() - residual / power - power.log()).sum(1)


def maps_of_reference(
    reference: Reference, highest_frequency: int, own_half_maps: bool
) -> tuple[UncertainMap, ...]:
    """The map of all particles, or those of both halves, as far as their FSC says that they are right.

    A map filtered by w = S / (S + N) has the power w S, and is off by S (1 - w). Of a map from elsewhere
    nothing is known, and it is taken for right.
    """
    fsc = reference.fsc
    volumes: tuple[Volume, ...] = (reference.full,)
    weight = None if fsc is None else 2 * fsc / (1 + fsc).clamp_min(1)
    if own_half_maps:
        assert reference.halves is not None
        volumes, weight = reference.halves, fsc
    box, maps = len(reference.full.voxels), []
    for volume in volumes:
        power = mean_by_shell(torch.fft.rfftn(volume.voxels).abs().square(), shell_index(box), box // 2 + 1)
        variance = torch.zeros_like(power)
        if weight is not None:
            right = weight.clamp(0, 1)
            variance = torch.where(right > 0, (1 - right) / right.clamp_min(1e-6), 0.0).float() * power
        maps.append(UncertainMap(cropped_transform(volume.voxels, highest_frequency), variance))
    return tuple(maps)


def class_probabilities(log_likelihoods: Float[Tensor, "n k"], steps: int = 20) -> Float[Tensor, "n k"]:
    """Posterior of the class of each particle; shares of the classes are the likeliest ones."""
    shares = torch.full((log_likelihoods.shape[1],), 1 / log_likelihoods.shape[1])
    for _ in range(steps):
        posterior = (log_likelihoods + shares.log()).softmax(1)
        shares = posterior.mean(0).clamp_min(LEAST_SHARE)
    return posterior
