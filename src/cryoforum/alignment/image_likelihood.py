"""The likelihood of images under poses as one object, which hides transforms, whitening and units."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from cryoforum.alignment.config import AlignmentConfig
from cryoforum.alignment.fitting import aligner_with_own_noise, fitted_aligner
from cryoforum.alignment.map_aligner import MapAligner
from cryoforum.dataset.image_grid import ImageGrid
from cryoforum.dataset.particles import Particles, all_rows, loaded_batches
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.predictions import Predictions, joined_predictions
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError, require
from cryoforum.imaging.fft import FrequencyPoints, frequency_points
from cryoforum.imaging.likelihood import PARAMETERS, Evaluation, evaluate
from cryoforum.imaging.noise_model import NoiseModel, measured_noise
from cryoforum.imaging.projection import cropped_transform, slices_at
from cryoforum.reconstruction.reference_map import Reference, noise_of_halves, reference_from_map

BATCH_SIZE = 64


@dataclass(frozen=True, eq=False)
class ImageLikelihood:
    """How likely particle images are under poses: each is a projection of the map plus Gaussian noise.

    Orientation and origin of every image are compared at all frequencies that the reference shows; what is
    called the log-likelihood is that over noise alone, so that 0 means no particle and log-likelihoods of
    one image under different poses can be compared, and added up over images.

    Parameters
    ----------
    given
        A map at the box and pixel size of the particles, or a `Reference`, whose resolution and symmetry
        count.
    noise
        What noise is in the images: a model of it; or the standard deviation of white noise in a pixel; None
        for that of the particles which the reference was made from. `fitted` measures it.
    scale
        By which projections of the map are multiplied in the images; where ``noise`` is a model, it says so.

    Raises
    ------
    InputError
        Where noise is neither given nor known, or a number is not above 0.
    """

    given: Volume | Reference
    noise: NoiseModel | float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.noise is None and self.reference.noise is None:
            raise InputError(
                "expected the noise of the images, found none; give a standard deviation, or measure it with "
                "ImageLikelihood.fitted"
            )
        if isinstance(self.noise, float | int):
            require(self.noise > 0 and self.scale > 0, "noise and scale above 0", (self.noise, self.scale))
        else:
            require(self.scale == 1, "no scale beside a model of the noise, which holds it", self.scale)

    def __repr__(self) -> str:
        return f"ImageLikelihood({self.reference.full!r}, up to {self.points.radius[-1]:.0f} cycles per box)"

    @classmethod
    def fitted(cls, given: Volume | Reference, particles: Particles) -> "ImageLikelihood":
        """The likelihood under the noise that particles show, optics group by optics group.

        Parameters
        ----------
        given
            As of the class.
        particles
            Where they have poses, noise is what projections at these leave of the images; else a sample of
            them is searched first, which takes a while.

        Raises
        ------
        InputError
            Where box or pixel size are not those of the map, or the images have no contrast.
        """
        reference = _reference(given)
        _check_grid(reference, particles)
        if particles.poses is None:
            return cls(reference, fitted_aligner(reference, particles).noise)
        if reference.halves is not None and particles.half_sets is not None:
            return cls(reference, noise_of_halves(reference, particles))  # own noise would pass for signal
        transforms = [cropped_transform(reference.full.voxels, reference.highest_frequency)]
        which = torch.zeros(len(particles), dtype=torch.long)
        highest = reference.highest_frequency
        return cls(reference, measured_noise(particles, particles.poses, transforms, which, highest))

    @cached_property
    def reference(self) -> Reference:
        """The map, and how far it goes."""
        return _reference(self.given)

    @cached_property
    def noise_model(self) -> NoiseModel:
        """Noise power and signal scale, by shell."""
        if isinstance(self.noise, float | int):
            box = len(self.reference.full.voxels)
            flat = torch.ones(1, box // 2 + 1)
            power = flat * (box * self.noise) ** 2  # of an unnormalised transform
            return NoiseModel((), power, torch.zeros_like(flat), self.scale * flat)
        noise = self.noise or self.reference.noise
        assert noise is not None  # __post_init__ has looked
        return noise

    @cached_property
    def points(self) -> FrequencyPoints:
        """The frequencies that are compared."""
        return frequency_points(len(self.reference.full.voxels), self.reference.highest_frequency)

    def log_likelihood(self, particles: Particles, poses: Poses) -> Float[Tensor, " n"]:
        """Log-likelihood of each image over that of noise alone, (n,).

        Differentiable in orientations, shifts and voxels of the map, where one of them asks for gradients.

        Parameters
        ----------
        particles
            n of them, at the box and pixel size of the map; their own poses do not count.
        poses
            One a particle.

        Raises
        ------
        InputError
            Where box, pixel size or lengths differ.
        """
        transform, found = self._transform, [torch.zeros(0)]
        for batch, own in self._batches(particles, poses):
            images = self.noise_model.whiten(batch, self.points)
            slices = slices_at(transform, normalize(own.quaternions, dim=-1), self.points)
            model = images.transfer * slices * self.points.phases(own.shifts_pixel(batch.pixel_size_angstrom))
            cross = (images.values.conj() * model).real.sum(-1)
            found.append(2 * cross - model.abs().square().sum(-1))
        return torch.cat(found)

    def gradient(self, particles: Particles, poses: Poses) -> Float[Tensor, "n 5"]:
        """Slope of each log-likelihood, (n, 5); parameters and errors as of `log_likelihood`.

        Per radian of a turn about the x, y and z axis of the view (R becomes R exp[ω]×), and per Å of shift
        along x and y.
        """
        units = self._units(particles)
        return self._evaluated(particles, poses, lambda found: found.gradient / units, (PARAMETERS,))

    def information(self, particles: Particles, poses: Poses) -> Float[Tensor, "n 5 5"]:
        """Fisher information of each pose, (n, 5, 5): the covariance of `gradient`, in its parameters.

        The inverse is the smallest covariance of an unbiased estimate (Cramér-Rao). Parameters (particles and
        their poses) and errors as of `log_likelihood`.
        """
        units = self._units(particles)
        scales = units[:, None] * units
        return self._evaluated(particles, poses, lambda found: found.information / scales, (PARAMETERS,) * 2)

    def search(self, particles: Particles, config: AlignmentConfig | None = None) -> Predictions:
        """The likeliest poses of all, from a grid of all orientations and shifts, refined.

        Parameters
        ----------
        particles
            n of them, at the box and pixel size of the map; their own poses do not count.
        config
            How to look: grid, largest shift, stages; None for the defaults.

        Returns
        -------
        Predictions
            With shifts and evidence.

        Raises
        ------
        InputError
            Where box or pixel size differ.
        """
        return self._aligned(particles, self._aligner(particles, config).align_batch)

    def refine(self, particles: Particles, poses: Poses) -> Predictions:
        """The nearest poses that are likelier, with what the images say about them.

        Parameters, returns and errors as of `log_likelihood` and `search`.
        """
        _check_count(particles, poses)
        aligner = self._aligner(particles, None)
        return self._aligned(particles.with_poses(poses), aligner.align_batch_from_poses)

    @property
    def _transform(self) -> Tensor:
        """Made anew for a map that asks for gradients, as each is walked back through once."""
        wants_gradient = self.reference.full.voxels.requires_grad and torch.is_grad_enabled()
        return self._make_transform() if wants_gradient else self._fixed_transform

    @cached_property
    def _fixed_transform(self) -> Tensor:
        return self._make_transform().detach()

    def _make_transform(self) -> Tensor:
        return cropped_transform(self.reference.full.voxels, self.reference.highest_frequency)

    def _aligner(self, particles: Particles, config: AlignmentConfig | None) -> MapAligner:
        _check_grid(self.reference, particles)
        reference = replace(self.reference, noise=self.noise_model)
        return aligner_with_own_noise(reference, particles, config or AlignmentConfig(source="search"))

    def _batches(self, particles: Particles, poses: Poses) -> Iterator[tuple[Particles, Poses]]:
        _check_grid(self.reference, particles)
        _check_count(particles, poses)
        if len(particles):
            rows = all_rows(len(particles), BATCH_SIZE)
            for own, batch in zip(rows, loaded_batches(particles, BATCH_SIZE), strict=True):
                yield batch, poses[own]

    def _evaluated(
        self, particles: Particles, poses: Poses, read: Callable[[Evaluation], Tensor], shape: tuple[int, ...]
    ) -> Tensor:
        """What ``read`` takes from the evaluation of every pair of image and pose, (n, *shape)."""
        found = [torch.zeros(0, *shape)]
        for batch, own in self._batches(particles, poses):
            images, rows = self.noise_model.whiten(batch, self.points), torch.arange(len(batch))
            pose = own.quaternions.detach(), own.shifts_pixel(batch.pixel_size_angstrom).detach()
            found.append(read(evaluate(self._fixed_transform, images, rows, *pose)).float())
        return torch.cat(found)

    def _units(self, particles: Particles) -> Tensor:
        """Of the five parameters, in radians and pixels: radians, and Å."""
        size = particles.pixel_size_angstrom
        return torch.tensor([1.0, 1.0, 1.0, size, size])

    def _aligned(self, particles: Particles, align_batch: Callable[[Particles], Predictions]) -> Predictions:
        require(len(particles) > 0, "at least one particle", 0)
        return joined_predictions([align_batch(batch) for batch in loaded_batches(particles, BATCH_SIZE)])


def _reference(given: Volume | Reference) -> Reference:
    return given if isinstance(given, Reference) else reference_from_map(given)


def _check_grid(reference: Reference, particles: Particles) -> None:
    own = ImageGrid(len(reference.full.voxels), reference.full.pixel_size_angstrom)
    found = ImageGrid(particles.box, particles.pixel_size_angstrom)
    require(own.is_near(found), f"particles of {own}, as the map", found)


def _check_count(particles: Particles, poses: Poses) -> None:
    require(len(poses) == len(particles), f"{len(particles)} poses, one a particle", len(poses))
