"""An aligner chooses by the particles at hand what is left to it, and nothing else."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers.messages import logged, silence

from cryoforum.alignment.aligner import align
from cryoforum.alignment.config import AlignmentConfig
from cryoforum.alignment.draft import COARSE_REFINEMENT
from cryoforum.alignment.fitting import FINE_REFINEMENT, FINE_SEARCH, fitted_aligner
from cryoforum.alignment.global_search import SearchConfig
from cryoforum.alignment.local_refinement import LocalRefinementConfig
from cryoforum.alignment.map_aligner import MapAligner
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.predictions import Predictions
from cryoforum.dataset.resampling import resample_volume
from cryoforum.dataset.volumes import Volume
from cryoforum.molecules.structures import load_structure
from cryoforum.reconstruction.reference_map import Reference, reference_from_map
from cryoforum.runtime.reporter import Reporter
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import simulate

BOX, PIXEL_SIZE, COUNT = 32, 11.2, 130
FINER = "faint: searching orientations on a finer grid"
CENTRED = AlignmentConfig(max_shift_pixel=0.0)  # what need not be searched
OWN_SEARCH = SearchConfig(nside=2, highest_frequency=8, max_shift_pixel=0.5)
OWN_REFINEMENT = LocalRefinementConfig(stage_shells=(9,), stage_survivors=(3,))


@pytest.fixture(scope="module")
def volume() -> Volume:
    return load_structure("4v5d", BOX, PIXEL_SIZE)


@pytest.fixture(scope="module")
def reference(volume: Volume) -> Reference:
    return reference_from_map(volume)


def particles_of(volume: Volume, snr: float) -> Particles:
    found = simulate(volume, SimulationConfig(count=COUNT, snr=snr, max_shift_pixel=0))
    return replace(found, images=found.images[torch.arange(COUNT)])


@pytest.fixture(scope="module")
def faint(volume: Volume) -> Particles:
    return particles_of(volume, 0.1)


@pytest.fixture(scope="module")
def strong(volume: Volume) -> Particles:
    return particles_of(volume, 5.0)


def search_of(aligner: MapAligner) -> SearchConfig:
    return aligner.maps[0].config


def test_faint_particles_get_a_finer_search_where_the_choice_is_left(
    reference: Reference, faint: Particles
) -> None:
    with logged(FINER):
        aligner = fitted_aligner(reference, faint, config=CENTRED)
    assert search_of(aligner) == replace(FINE_SEARCH, max_shift_pixel=0.0)
    assert aligner.local_refinement == FINE_REFINEMENT


def test_strong_particles_get_the_coarse_one(reference: Reference, strong: Particles) -> None:
    with silence():
        aligner = fitted_aligner(reference, strong, config=CENTRED)
    assert search_of(aligner) == replace(SearchConfig(), max_shift_pixel=0.0)
    assert aligner.local_refinement == COARSE_REFINEMENT


def test_explicit_settings_are_obeyed_whatever_the_particles_are(
    reference: Reference, faint: Particles
) -> None:
    with silence():
        aligner = fitted_aligner(reference, faint, config=AlignmentConfig(search=OWN_SEARCH))
    assert search_of(aligner) == OWN_SEARCH
    with logged(FINER):
        aligner = fitted_aligner(reference, faint, config=replace(CENTRED, local_refinement=OWN_REFINEMENT))
    assert aligner.local_refinement == OWN_REFINEMENT and search_of(aligner).nside == FINE_SEARCH.nside


def test_nobody_goes_beyond_the_frequencies_of_the_reference(volume: Volume, strong: Particles) -> None:
    coarse = reference_from_map(volume, resolution_angstrom=BOX * PIXEL_SIZE / 6)
    for config in (CENTRED, AlignmentConfig(search=OWN_SEARCH)):
        aligner = fitted_aligner(coarse, strong, config=config)
        assert search_of(aligner).highest_frequency == 6


def test_the_largest_shift_is_the_one_asked_for_or_that_of_the_reference(
    reference: Reference, strong: Particles
) -> None:
    few = strong.select(torch.arange(8))
    far = replace(reference, origin_reach_angstrom=4.5 * PIXEL_SIZE)
    for used, config, expected in (
        (reference, AlignmentConfig(), 3.0),
        (far, AlignmentConfig(), 4.5),
        (far, AlignmentConfig(search=OWN_SEARCH), 0.5),
        (far, AlignmentConfig(search=OWN_SEARCH, max_shift_pixel=2.0), 2.0),
        (far, AlignmentConfig(max_shift_pixel=0.0), 0.0),
    ):
        with logged("too few to measure noise"):
            assert search_of(fitted_aligner(used, few, config=config)).max_shift_pixel == expected


def test_no_shift_beyond_half_of_the_box_is_searched(reference: Reference, strong: Particles) -> None:
    few, half = strong.select(torch.arange(8)), strong.box / 2
    expected = f"--max-shift of at most {half:g} pixels, half of the box, found {half + 1:g}"
    with pytest.raises(ValueError, match=expected):
        fitted_aligner(reference, few, config=AlignmentConfig(max_shift_pixel=half + 1))
    claimed = replace(reference, origin_reach_angstrom=1e9)
    with logged("too few to measure noise"):
        assert search_of(fitted_aligner(claimed, few)).max_shift_pixel == half


def test_who_wants_to_know_is_told_of_every_image(reference: Reference, strong: Particles) -> None:
    told: list[tuple[str, int]] = []

    class Counting(Reporter):
        def progress(self, description: str, total: int) -> Callable[[int], None]:
            told.append((description, total))
            return lambda count: told.append(("done", count))

    few = strong.select(torch.arange(8))
    found = align(reference, few, config=CENTRED, reporter=Counting())
    assert len(found) == 8 and told == [("aligning", 8), ("done", 8)]


def test_a_wrong_pixel_size_is_told_by_name(volume: Volume, strong: Particles) -> None:
    smaller = resample_volume(replace(volume, pixel_size_angstrom=0.8 * PIXEL_SIZE), BOX, PIXEL_SIZE)
    given = replace(reference_from_map(smaller), file_pixel_size_angstrom=0.8 * PIXEL_SIZE)
    with logged("explains only .* its pixel size is wrong; give --map-pixel-size 1[01]"):
        fitted_aligner(given, strong, config=CENTRED)


def test_of_noise_nothing_is_explained(reference: Reference, strong: Particles) -> None:
    noise = torch.randn(COUNT, BOX, BOX, generator=torch.Generator().manual_seed(0))
    with logged("explains only 0 % of the signal"):
        fitted_aligner(reference, replace(strong, images=noise), config=CENTRED)


def test_stated_errors_do_not_depend_on_the_junk_beside_the_particles(
    reference: Reference, volume: Volume
) -> None:
    """Particles alone, and the same between as many images of noise."""
    found = particles_of(volume, 0.5)
    noise = torch.randn(COUNT, BOX, BOX, generator=torch.Generator().manual_seed(0))
    noise *= float(found.images[torch.arange(COUNT)].std())
    mixed = replace(
        found.select(torch.arange(COUNT).repeat_interleave(2)),
        images=torch.stack([found.images[torch.arange(COUNT)], noise], 1).flatten(0, 1),
    )

    def errors(particles: Particles) -> Predictions:
        return align(reference, particles, config=CENTRED)

    alone = errors(found).expected_error_rad
    beside = errors(mixed).expected_error_rad[::2]
    assert float(beside.median() / alone.median()) == pytest.approx(1, abs=0.05)
