"""Particles against a map: candidates, then local refinement, batch by batch.

Candidates come from the network, from the global search, or from both, whose log densities add.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryoforum.alignment.defocus import defocus_change
from cryoforum.alignment.global_search import (
    Templates,
    best_origins_pixel,
    candidates,
    log_likelihood_on_grid,
)
from cryoforum.alignment.local_refinement import (
    LocalRefinementConfig,
    RefinedPoses,
    image_posterior,
    orientation_covariance,
    origin_covariance_pixel2,
    refine_locally,
    rms_error_rad,
)
from cryoforum.choices import CandidateSource
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.predictions import ImageEvidence, Predictions, joined_predictions
from cryoforum.errors import InputError
from cryoforum.imaging.fft import FrequencyPoints
from cryoforum.imaging.likelihood import WhitenedImages
from cryoforum.imaging.noise_model import NoiseModel
from cryoforum.network.model import TrainedModel
from cryoforum.network.predict import network_numbers, predict_batch
from cryoforum.runtime.devices import Compute

ALL_AT_ONCE = LocalRefinementConfig(stage_shells=(), stage_survivors=())
SCALE_RANGE = 0.3, 3.0  # beyond, an image is junk and its signal scale means nothing
DEFOCUS_ROUNDS = 2  # poses and defocus in turn: they hardly depend on each other


@dataclass(frozen=True)
class MapAligner:
    """Finds the poses of batches against one map, or each half set against the map of its own half.

    Parameters
    ----------
    maps
        Of all particles, or of half 1 and half 2, with templates of each.
    noise, points
        Noise and signal scale of the particles; the frequencies that are compared.
    model, features
        None and empty without a network; `Head.features` of the templates' rotations.
    source
        Where candidates come from.
    local_refinement
        Stages of the refinement.
    refine_defocus, refine_scale
        As in `AlignmentConfig`.
    compute
        Where the network runs; None: as `compute_for` chooses.
    variance_factor
        By which the noise of the maps makes the variance of errors larger than the bound; see
        `reference_noise.variance_factor`.
    """

    maps: tuple[Templates, ...]
    noise: NoiseModel
    points: FrequencyPoints
    model: TrainedModel | None
    features: Tensor
    source: CandidateSource
    local_refinement: LocalRefinementConfig
    refine_defocus: bool = False
    refine_scale: bool = False
    compute: Compute | None = None
    variance_factor: float = 1.0

    @property
    def transforms(self) -> tuple[Tensor, ...]:
        """The transform of each map."""
        return tuple(one.transform for one in self.maps)

    def map_of(self, particles: Particles) -> Tensor:
        """Which of the maps each particle is compared with, (n,)."""
        if len(self.maps) == 1 or particles.half_sets is None:
            return torch.zeros(len(particles), dtype=torch.long)
        return particles.half_sets - 1

    def align_batch_from_poses(self, batch: Particles) -> Predictions:
        """The poses that the particles have, refined against their maps with all frequencies at once."""
        poses = batch.poses
        if poses is None:
            raise InputError("expected particles with poses to start from, found none")
        images = self.noise.whiten(batch, self.points)
        origins = poses.shifts_angstrom / batch.pixel_size_angstrom
        which = self.map_of(batch)
        parts, order = [], []
        for half, own_map in enumerate(self.maps):
            rows = (which == half).nonzero()[:, 0]
            if len(rows):
                start = poses.quaternions[rows, None], origins[rows, None]
                refined = refine_locally(own_map.transform, images[rows], *start, ALL_AT_ONCE)
                reference_half = half + 1 if len(self.maps) > 1 else 0
                unchanged = torch.zeros(len(rows))
                parts.append(self._predictions(refined, batch, reference_half, unchanged))
                order.append(rows)
        return joined_predictions(parts)[torch.argsort(torch.cat(order))]

    def align_batch(self, batch: Particles) -> Predictions:
        """Candidates of each particle, refined against its map."""
        return self.align_batch_by_numbers(batch, self.numbers_of(batch))

    def numbers_of(self, batch: Particles) -> Tensor | None:
        """What the network reads in each image, where candidates come from it."""
        if self.model is None or self.source == "search":
            return None
        return network_numbers(self.model, batch, self.compute)

    def align_batch_by_numbers(self, batch: Particles, numbers: Tensor | None) -> Predictions:
        """As `align_batch`, with the network's `numbers_of` the batch."""
        images = self.noise.whiten(batch, self.points)
        which = self.map_of(batch)
        parts, order = [], []
        for half, own_map in enumerate(self.maps):
            rows = (which == half).nonzero()[:, 0]
            if not len(rows):
                continue
            own, change = images[rows], torch.zeros(len(rows))
            refined = self._refined(own_map, own, None if numbers is None else numbers[rows])
            if self.refine_defocus:
                refined, own, change = self._refocused(own_map.transform, batch.select(rows), own, refined)
            if self.refine_scale:
                refined = _rescaled(own_map.transform, own, refined)
            reference_half = half + 1 if len(self.maps) > 1 else 0
            parts.append(self._predictions(refined, batch, reference_half, change))
            order.append(rows)
        return joined_predictions(parts)[torch.argsort(torch.cat(order))]

    def _refined(self, templates: Templates, images: WhitenedImages, numbers: Tensor | None) -> RefinedPoses:
        density = torch.zeros(len(images), len(templates.rotations))
        if self.model is not None and numbers is not None:
            density = self.model.sharpness * self.model.head.log_density(numbers, self.features)
        if self.source != "network" or numbers is None:
            density = density + log_likelihood_on_grid(templates, images)
        starts = candidates(templates, images, density)
        return refine_locally(
            templates.transform,
            images,
            starts.quaternions,
            starts.origins_pixel,
            self.local_refinement,
            plausible=starts.plausible,
            symmetry=templates.symmetry,
        )

    def _refocused(
        self, transform: Tensor, batch: Particles, images: WhitenedImages, refined: RefinedPoses
    ) -> tuple[RefinedPoses, WhitenedImages, Tensor]:
        """Poses and defocus in turn: each particle and its image at its own defocus, and the change (n,)."""
        if batch.ctf is None:
            raise InputError("expected particles with CTF parameters to refine their defocus, found none")
        weight = self.noise.weight(batch, self.points)
        own, change = images, torch.zeros(len(batch))
        for _ in range(DEFOCUS_ROUNDS):
            pose = refined.quaternions, refined.origins_pixel
            change = defocus_change(transform, images, weight, batch.ctf, batch.pixel_size_angstrom, *pose)
            refocused = replace(batch, ctf=batch.ctf.defocused_by(change))
            own = self.noise.whiten(refocused, self.points)
            refined = _refined_again(transform, own, refined)
        return refined, own, change

    def _predictions(
        self, refined: RefinedPoses, batch: Particles, reference_half: int, defocus_change_angstrom: Tensor
    ) -> Predictions:
        """The posterior is that of the image alone; the network's has already chosen where to look.

        The expected error counts the mode itself, at the signal scale of the particle in its image and with
        the noise of the map, and the chance that another mode is the true one.
        """
        bound = rms_error_rad(orientation_covariance(refined.information))
        counted = replace(refined, information=refined.information / self.variance_factor)
        own = self.variance_factor**0.5 * bound / refined.signal_scale.clamp(0.05, 1.0)
        probability = refined.mode_probability
        expected = (probability * own.square() + (1 - probability) * refined.other_modes_rad2).sqrt()
        pixel_size = batch.pixel_size_angstrom
        return Predictions(
            posterior=image_posterior(counted),
            expected_error_rad=expected.clamp_max(torch.pi),
            shifts_angstrom=refined.origins_pixel * pixel_size,
            evidence=ImageEvidence(
                bound_rad=bound,
                origin_covariance_angstrom2=(
                    origin_covariance_pixel2(counted.information).float() * pixel_size**2
                ),
                log_likelihood_gain=refined.gain,
                signal_scale=refined.signal_scale,
                mode_probability=probability,
                reference_half=torch.full((len(bound),), reference_half),
                defocus_change_angstrom=defocus_change_angstrom,
            ),
        )


@dataclass(frozen=True)
class NetworkPoseAligner:
    """The network's orientations as they are, each with the shift at which the map fits best."""

    aligner: MapAligner
    tta: int | None = None

    def align_batch(self, batch: Particles) -> Predictions:
        """Predictions with shifts, without evidence."""
        aligner = self.aligner
        if aligner.model is None:
            raise InputError("expected a model whose orientations to use, found none")
        predictions = predict_batch(aligner.model, batch, self.tta, aligner.compute)
        images = aligner.noise.whiten(batch, aligner.points)
        which = aligner.map_of(batch)
        origins = torch.zeros(len(batch), 2)
        for half, own_map in enumerate(aligner.maps):
            own = which == half
            modes, search = predictions.posterior.mode[own], own_map.config
            origins[own] = best_origins_pixel(own_map.transform, images[own], modes, search)
        return replace(predictions, shifts_angstrom=origins * batch.pixel_size_angstrom)


def _rescaled(transform: Tensor, images: WhitenedImages, refined: RefinedPoses) -> RefinedPoses:
    """Each particle refined once more at its own signal scale."""
    scale = refined.signal_scale.clamp(*SCALE_RANGE)
    own = replace(images, transfer=scale[:, None] * images.transfer)
    better = _refined_again(transform, own, refined)
    return replace(
        better,
        signal_scale=scale * better.signal_scale,
        information=better.information / scale.double().square()[:, None, None],
    )


def _refined_again(transform: Tensor, images: WhitenedImages, refined: RefinedPoses) -> RefinedPoses:
    """From where it is, with all frequencies at once; what is known of other modes stays."""
    start = refined.quaternions[:, None], refined.origins_pixel[:, None]
    return replace(
        refine_locally(transform, images, *start, ALL_AT_ONCE),
        mode_probability=refined.mode_probability,
        other_modes_rad2=refined.other_modes_rad2,
    )
