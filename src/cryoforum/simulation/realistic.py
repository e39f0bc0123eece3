"""Particles as they are: several conformations, neighbours, coloured noise, ramps, junk, imperfect labels.

The draws of one imperfection do not change those of another, nor the ideal part of the set.
"""

import math
import zlib
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.dataset.image_grid import ImageGrid
from cryoforum.dataset.images import Images, JoinedImages
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError
from cryoforum.geometry.rotations import compose, random_unitquat, rotvec_to_unitquat, unitquat_to_rotmat
from cryoforum.imaging.projection import cropped_transform
from cryoforum.simulation.config import Imperfections, SimulationConfig
from cryoforum.simulation.conformations import conformations, half_of, radius_angstrom
from cryoforum.simulation.ideal import NOISE_CALIBRATION_COUNT, SimulatedImages, simulate
from cryoforum.simulation.realistic_images import Neighbours, RealisticImages

GENUINE = "genuine"
EDGE_HEIGHT = 2.0  # of carbon above ice, in standard deviations of the noise
_COLOUR_SPREAD = 0.5  # standard deviation of the logarithm, from micrograph to micrograph

Kinds = tuple[str, ...]


@dataclass(frozen=True)
class SimulatedSet:
    """Particles with imperfect labels, and the truth about them.

    Parameters
    ----------
    particles
        Images with the poses and CTF parameters that a user would have.
    truth
        The same images with their true ones.
    conformation_numbers
        (n,) from 1; 0 for junk.
    junk_kinds
        Of each image, `GENUINE` for a particle.
    micrographs
        Name of the one that each image comes from.
    maps
        The conformations.
    """

    particles: Particles
    truth: Particles
    conformation_numbers: Int[Tensor, " n"]
    junk_kinds: Kinds
    micrographs: tuple[str, ...]
    maps: tuple[Volume, ...]


def simulate_realistic(
    volume: Volume, config: SimulationConfig, imperfections: Imperfections, other: Volume | None = None
) -> SimulatedSet:
    """Particles of ``volume`` with imperfections, made when they are read as by `ideal.simulate`.

    Parameters
    ----------
    volume
        (n, n, n) map of the molecule.
    config
        The ideal set.
    imperfections
        What its images and labels have besides.
    other
        Another molecule on the same grid, for junk of that kind.

    Raises
    ------
    InputError
        Where the set cannot be made: as `ideal.simulate`, or without the other molecule that is needed.
    """
    ideal, seed = simulate(volume, config), config.seed
    ctf, grid = ideal.ctf, ImageGrid(ideal.box, ideal.pixel_size_angstrom)
    assert ideal.poses is not None and ctf is not None
    kinds = _junk_kinds(config.count, imperfections, _generator(seed, "junk"))
    states = conformations(volume, len(imperfections.conformation_shares), imperfections.hinge_angle_deg)
    numbers = _conformation_numbers(kinds, imperfections, _generator(seed, "conformations"))
    maps, map_numbers = _maps(states, numbers, kinds, other)
    transforms = tuple(cropped_transform(shown.voxels) for shown in maps)

    def projections(map_numbers: Tensor, poses: Poses, ctf: CtfParameters) -> Images:
        parts = tuple(SimulatedImages(transform, grid, poses, ctf, 1.0, None) for transform in transforms)
        return JoinedImages(parts, map_numbers, torch.arange(len(map_numbers)))

    poses = ideal.poses
    if imperfections.preferred_views:
        views = (config.count, imperfections.preferred_views, _generator(seed, "views"))
        poses = replace(poses, quaternions=preferred_orientations(*views))
    signal = projections(map_numbers, poses, ctf)
    moves = _off_centre(kinds, ideal.box, _generator(seed, "off-centre"))
    beside = _neighbours(kinds, radius_angstrom(volume), imperfections, grid, _generator(seed, "neighbours"))
    centred = Poses(beside.quaternions, torch.zeros(len(beside.image_rows), 2))
    of_neighbours = projections(beside.conformations, centred, ctf[beside.image_rows])
    micrograph = torch.arange(config.count) // imperfections.particles_per_micrograph
    images = RealisticImages(
        signal,
        moves,
        _strengths(signal, kinds, config.snr, imperfections, _generator(seed, "strengths")),
        Neighbours(of_neighbours, beside.image_rows, beside.moves_pixel),
        imperfections.ramp * torch.randn(config.count, 2, generator=_generator(seed, "ramps")),
        _edges(kinds, _generator(seed, "edges")),
        _noise_colours(micrograph, imperfections, _generator(seed, "colours")),
        grid.pixel_size_angstrom,
        seed,
    )
    defocus_error = torch.randn(config.count, generator=_generator(seed, "defocus"))
    poses = replace(poses, shifts_angstrom=poses.shifts_angstrom - moves * grid.pixel_size_angstrom)
    truth = replace(ideal, images=images, poses=poses)
    stated = replace(
        truth,
        poses=_labels(poses, kinds, imperfections, _generator(seed, "labels")),
        ctf=ctf.defocused_by(imperfections.defocus_error_angstrom * defocus_error),
    )
    names = tuple(f"micrographs/mic{number + 1:05d}.mrc" for number in micrograph.tolist())
    return SimulatedSet(stated, truth, numbers, kinds, names, states)


def preferred_orientations(count: int, strength: float, generator: torch.Generator) -> Float[Tensor, "n 4"]:
    """Orientations (count, 4) whose view directions have a density ∝ exp(strength · cos²) about one axis.

    The axis of the molecule is random; about the view every angle is as likely as any other.
    """
    axis = unitquat_to_rotmat(random_unitquat(1, generator=generator))[0, :, 2]
    found = torch.empty(0, 4)
    while len(found) < count:
        tried = random_unitquat(4 * count, generator=generator)
        cosine = unitquat_to_rotmat(tried)[:, :, 2] @ axis
        accepted = torch.rand(len(tried), generator=generator).log() < strength * (cosine.square() - 1)
        found = torch.cat([found, tried[accepted]])
    return found[:count]


def _generator(seed: int, what: str) -> torch.Generator:
    """That of one imperfection of the set of a seed; far from those of noise, seed · 1 000 003 + row."""
    return torch.Generator().manual_seed(2**62 + seed * 1_000_003 + zlib.crc32(what.encode()))


def _junk_kinds(count: int, imperfections: Imperfections, generator: torch.Generator) -> Kinds:
    kinds = [GENUINE] * count
    junk = torch.randperm(count, generator=generator)[: round(imperfections.junk_share * count)].tolist()
    for number, row in enumerate(junk):
        kinds[row] = imperfections.junk_kinds[number % len(imperfections.junk_kinds)]
    return tuple(kinds)


def _is(kinds: Kinds, *wanted: str) -> Tensor:
    return torch.tensor([kind in wanted for kind in kinds])


def _conformation_numbers(kinds: Kinds, imperfections: Imperfections, generator: torch.Generator) -> Tensor:
    drawn = _drawn_conformations(len(kinds), imperfections, generator) + 1
    return torch.where(_is(kinds, GENUINE), drawn, 0)


def _drawn_conformations(count: int, imperfections: Imperfections, generator: torch.Generator) -> Tensor:
    """Numbers (count,) from 0, by their shares."""
    bounds = torch.tensor(imperfections.conformation_shares).cumsum(0)[:-1]
    return torch.searchsorted(bounds, torch.rand(count, generator=generator), right=True)


def _maps(
    states: tuple[Volume, ...], numbers: Tensor, kinds: Kinds, other: Volume | None
) -> tuple[tuple[Volume, ...], Tensor]:
    """The conformations, half of the molecule and the other one; and which of them each image shows."""
    is_other = _is(kinds, "other_molecule")
    if is_other.any() and other is None:
        raise InputError("expected another molecule for junk of kind other_molecule, found none")
    maps = (*states, half_of(states[0]), *(() if other is None else (other,)))
    map_numbers = (numbers - 1).clamp_min(0)
    map_numbers[_is(kinds, "half_molecule")] = len(states)
    map_numbers[is_other] = len(states) + 1
    return maps, map_numbers


def _off_centre(kinds: Kinds, box: int, generator: torch.Generator) -> Tensor:
    """Moves (n, 2) by 0.25 to 0.4 boxes of junk that is off-centre; none of the others."""
    distance = box * (0.25 + 0.15 * torch.rand(len(kinds), 1, generator=generator))
    moves = (distance * _random_directions(len(kinds), generator)).round().long()
    return torch.where(_is(kinds, "off_centre")[:, None], moves, 0)


def _random_directions(count: int, generator: torch.Generator) -> Tensor:
    """Unit vectors (count, 2) in the image plane."""
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def _strengths(
    signal: Images, kinds: Kinds, snr: float, imperfections: Imperfections, generator: torch.Generator
) -> Tensor:
    """Of each image, so that genuine particles have the signal-to-noise ratio ``snr`` in the mean."""
    genuine = _is(kinds, GENUINE).nonzero().flatten()[:NOISE_CALIBRATION_COUNT]
    variance = float(signal[genuine].var(dim=(1, 2)).mean())
    spread = torch.exp(imperfections.strength_spread * torch.randn(len(kinds), generator=generator))
    return torch.where(_is(kinds, "noise", "edge"), 0.0, math.sqrt(snr / variance) * spread)


@dataclass(frozen=True)
class _Placed:
    """Neighbours before they are drawn: image, orientation, conformation from 0, and centre of each."""

    image_rows: Tensor
    quaternions: Tensor
    conformations: Tensor
    moves_pixel: Tensor


def _neighbours(
    kinds: Kinds, radius: float, imperfections: Imperfections, grid: ImageGrid, generator: torch.Generator
) -> _Placed:
    """Particles of a ``radius`` in Å that touch those of the images, and in overlaps one that lies across."""
    mean = torch.where(_is(kinds, "noise", "edge"), 0.0, imperfections.neighbours)
    beside = torch.arange(len(kinds)).repeat_interleave(torch.poisson(mean, generator=generator).long())
    rows = torch.cat([beside, _is(kinds, "overlap").nonzero().flatten()])
    count, half_box = len(rows), grid.box * grid.pixel_size_angstrom / 2
    least, most = 1.9 * radius, max(2.0 * radius, half_box + 0.8 * radius)
    square = least**2 + (most**2 - least**2) * torch.rand(count, 1, generator=generator)
    across = radius * (0.4 + 0.8 * torch.rand(count, 1, generator=generator))
    distance = torch.where(torch.arange(count)[:, None] < len(beside), square.sqrt(), across)
    moves = distance * _random_directions(count, generator) / grid.pixel_size_angstrom
    states = _drawn_conformations(count, imperfections, generator)
    return _Placed(rows, random_unitquat(count, generator=generator), states, moves.round().long())


def _edges(kinds: Kinds, generator: torch.Generator) -> Tensor:
    distance = 0.4 * torch.rand(len(kinds), 1, generator=generator) - 0.2
    height = torch.where(_is(kinds, "edge"), EDGE_HEIGHT, 0.0)
    return torch.cat([height[:, None], _random_directions(len(kinds), generator), distance], dim=-1)


def _noise_colours(micrograph: Tensor, imperfections: Imperfections, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(int(micrograph.max()) + 1, generator=generator)
    return imperfections.noise_colour * torch.exp(_COLOUR_SPREAD * drawn)[micrograph]


def _labels(truth: Poses, kinds: Kinds, imperfections: Imperfections, generator: torch.Generator) -> Poses:
    """Poses as a refinement would state them: a little off, some wrong altogether, and of junk any."""
    count = len(truth)
    turn = math.radians(imperfections.pose_error_deg) * torch.randn(count, 3, generator=generator)
    turned = compose(truth.quaternions, rotvec_to_unitquat(turn))
    moved = imperfections.shift_error_angstrom * torch.randn(count, 2, generator=generator)
    is_wrong = torch.rand(count, generator=generator) < imperfections.wrong_pose_share
    is_wrong |= ~_is(kinds, GENUINE)
    random = random_unitquat(count, generator=generator)
    return Poses(torch.where(is_wrong[:, None], random, turned), truth.shifts_angstrom + moved)
