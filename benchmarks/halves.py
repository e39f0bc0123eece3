"""Half sets aligned by their own half's map or by the other's: does the FSC of the new halves tell the truth?

Two maps a and b of a truth t whose errors are independent have FSC(a, b) = FSC(a, t) · FSC(b, t). What the
half maps agree beyond that is shared noise. Printed: that excess, mean over shells 2 to 11, of each run.

    python benchmarks/halves.py --seeds 5
"""

import argparse
from dataclasses import replace

import torch
from torch import Tensor

from cryoforum.alignment.aligner import align
from cryoforum.alignment.config import AlignmentConfig
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.volumes import Volume
from cryoforum.molecules.structures import load_structure
from cryoforum.reconstruction.inversion import reconstruct
from cryoforum.reconstruction.reference_map import Reference
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import simulate

BOX, PIXEL_SIZE, COUNT, SNR = 32, 11.2, 400, 0.05


def shell_correlation(first: Tensor, second: Tensor) -> Tensor:
    """FSC of two maps (n, n, n) in shells 2 to 11."""
    one, other = torch.fft.fftn(first), torch.fft.fftn(second)
    frequency = torch.fft.fftfreq(len(first)) * len(first)
    squares = frequency.square()
    radius = (squares[:, None, None] + squares[:, None] + squares).sqrt().round().long().flatten()

    def total(values: Tensor) -> Tensor:
        return torch.bincount(radius, values.flatten())[2:12]

    return total((one * other.conj()).real) / (total(one.abs() ** 2) * total(other.abs() ** 2)).sqrt()


def excess(particles: Particles, truth: Volume, crossed: bool) -> float:
    """Align each half set by the map of its own half, or of the other, and compare the new half maps."""
    maps = reconstruct(particles)  # at the true poses, with all of their noise
    reference = Reference(maps.full, (maps.half1, maps.half2), highest_frequency=BOX // 2 - 1)
    own = torch.arange(COUNT) % 2 + 1
    unposed = replace(particles, half_sets=3 - own if crossed else own, poses=None)
    config = AlignmentConfig("search", max_shift_pixel=1.5)
    found = align(reference, unposed, config=config, own_half_maps=True)
    new = reconstruct(particles.with_poses(found.poses))
    first, second, true = new.half1.voxels, new.half2.voxels, truth.voxels
    allowed = shell_correlation(first, true) * shell_correlation(second, true)
    return float((shell_correlation(first, second) - allowed).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    truth = load_structure("4v5d", BOX, PIXEL_SIZE)
    for seed in range(1, parser.parse_args().seeds + 1):
        simulated = simulate(truth, SimulationConfig(count=COUNT, snr=SNR, max_shift_pixel=1.0, seed=seed))
        images = simulated.images[torch.arange(COUNT)]
        particles = replace(simulated, images=images, half_sets=torch.arange(COUNT) % 2 + 1)
        own, crossed = (excess(particles, truth, choice) for choice in (False, True))
        print(f"seed {seed}: own halves {own:+.3f}, crossed halves {crossed:+.3f}", flush=True)


if __name__ == "__main__":
    main()
