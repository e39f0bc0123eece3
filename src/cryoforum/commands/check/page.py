"""The picture page of a checked particle file."""

import math
from pathlib import Path

import torch
from torch import Tensor

from cryoforum.commands.check.check import Check
from cryoforum.commands.check.interpretations import LARGEST_BOX, as_interpreted
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError
from cryoforum.geometry.rotations import relion_euler_to_unitquat
from cryoforum.imaging.ctf import ctf_2d
from cryoforum.imaging.fft import crop_or_pad, frequency_grid, phase_shift, to_fourier, to_real
from cryoforum.imaging.projection import cropped_transform, project
from cryoforum.report.canvas import picture
from cryoforum.report.layout import Exhibit, Panel, Section, Table
from cryoforum.report.page import render
from cryoforum.report.tiles import write_tiles

LOW_PASS_SHARE = 8  # shells of the box that low-passed pictures keep
VIEWS_DEG = ((0.0, 0.0, 0.0), (0.0, 90.0, 0.0), (90.0, 90.0, 0.0))  # rot, tilt, psi: along z, x and y


def write_check(check: Check, output: Path) -> None:
    """Write the pictures of a check to a .png, or with its tables to a self-contained .html, atomically."""
    if output.suffix == ".png":
        rows = particle_rows(check) + map_rows(check)
        write_tiles(rows, f"{check.path.name}: {check.conclusion}", output)
        return
    render(output, check.path.name, check.conclusion, _facts(check), _sections(check), ())


def particle_rows(check: Check) -> list[tuple[str, Tensor]]:
    """Labelled images: some particles as recorded, low-passed, and what the map predicts of them."""
    particles = _small(check)
    images = particles.images[torch.arange(len(particles))]
    resolution = particles.box * particles.pixel_size_angstrom / LOW_PASS_SHARE
    rows = [
        (f"recorded, {particles.box} px of {particles.pixel_size_angstrom:.3g} Å", images),
        (f"low-passed to {resolution:.0f} Å", _low_passed(images)),
    ]
    if check.findings is not None:
        interpreted = as_interpreted(particles, check.findings.interpretation)
        expected = _low_passed(_projections(check.findings.volume, interpreted))
        rows.append(("the map of all particles, projected as their poses say, with their CTF", expected))
    return rows


def map_rows(check: Check) -> list[tuple[str, Tensor]]:
    """Labelled central sections and projections of the particles' own map, and of the reference."""
    maps: list[tuple[str, Volume]] = []
    if check.findings is not None:
        maps.append((f"map of {check.findings.count} particles", check.findings.volume))
    if check.reference is not None:
        maps.append(("reference", check.reference))
    return [(f"{name}: sections and projections along z, x, y", _looks(volume)) for name, volume in maps]


def _looks(volume: Volume) -> Tensor:
    """Three central sections and three projections, (6, n, n)."""
    voxels, middle = volume.voxels, len(volume.voxels) // 2
    sections = [voxels[middle], voxels[:, :, middle], voxels[:, middle]]
    views = relion_euler_to_unitquat(torch.tensor(VIEWS_DEG))
    projections = to_real(project(cropped_transform(voxels), views, len(voxels)), len(voxels))
    return torch.cat([torch.stack(sections), projections])


def _small(check: Check) -> Particles:
    """The particles to show, in memory and at a box that a page can hold."""
    chosen = check.particles.select(check.shown)
    images, box = chosen.images[torch.arange(len(chosen))], min(LARGEST_BOX, chosen.box)
    if box < chosen.box:
        images = to_real(crop_or_pad(to_fourier(images), chosen.box, box), box)
    size = chosen.pixel_size_angstrom * chosen.box / box
    return Particles(images, size, chosen.names, chosen.poses, chosen.ctf)


def _projections(volume: Volume, particles: Particles) -> Tensor:
    poses = particles.poses
    if poses is None:
        raise InputError("expected particles with poses, found none")
    slices = project(cropped_transform(volume.voxels), poses.quaternions, particles.box)
    if particles.ctf is not None:
        slices = slices * ctf_2d(particles.ctf, particles.box, particles.pixel_size_angstrom)
    return to_real(phase_shift(slices, -poses.shifts_angstrom / particles.pixel_size_angstrom), particles.box)


def _low_passed(images: Tensor) -> Tensor:
    box = images.shape[-1]
    ky, kx = frequency_grid(box, 1 / box)
    decay = (kx**2 + ky**2) / LOW_PASS_SHARE**2
    return to_real(to_fourier(images) * torch.exp(-math.log(2) * decay), box)


def _facts(check: Check) -> list[tuple[str, str, str]]:
    facts = [(f"{len(check.particles)}", "particles", f"{check.particles.box} px")]
    if check.findings is not None:
        found = "fault found" if len(check.problems) == 1 else "faults found"
        facts.append((f"{len(check.problems)}", found, f"by {check.findings.count} images"))
        facts.append((f"{len(check.findings.alternatives)}", "other readings tried", ""))
    return facts


def _sections(check: Check) -> list[Section]:
    particles = Exhibit(
        tuple(Panel(label, picture(images, label)) for label, images in particle_rows(check)),
        "The same particles in every row, spread over the file; grey levels are stretched image by image. "
        "Where file and images agree, a low-passed particle and the projection below it show the same "
        "shape at the same place, both bright.",
        columns=1,
    )
    sections = [Section("particles", "Particles", "", (particles,))]
    maps = map_rows(check)
    if maps:
        panels = tuple(Panel(label, picture(images, label)) for label, images in maps)
        caption = "Made from the images that were looked at, under the reading that they bear out best."
        sections.append(Section("map", "Map", "", (Exhibit(panels, caption, columns=1),)))
    if check.problems:
        rows = tuple((problem.fault, problem.fix) for problem in check.problems)
        table = Table("What is wrong", ("Fault", "How it is mended"), rows, prose=True)
        text = "" if check.correction is None else f"This mends it: {check.correction}"
        sections.insert(0, Section("faults", "Faults", text, (), (table,)))
    told = Table("What the file says", ("", "Understood"), check.inventory, prose=True)
    sections.append(Section("file", "File", "", (), (told,)))
    if check.findings is not None:
        sections.append(_alternatives(check))
    return sections


def _alternatives(check: Check) -> Section:
    alternatives = check.findings.alternatives if check.findings is not None else ()
    rows = tuple(
        (one.name, one.outcome.value, f"{one.deviations:+.0f}", f"{100 * one.share:+.1f} %")
        for one in sorted(alternatives, key=lambda one: -one.share)
    )
    text = (
        "How much better or worse the images are explained under another reading of the file: difference of "
        "the log-likelihoods in standard errors, and as a share of what is explained. "
    )
    if check.undecided:
        text += f"What could not be told: {', '.join(check.undecided)}."
    table = Table("Other readings", ("Reading", "Images say", "σ", "Log-likelihood"), rows)
    return Section("readings", "Other readings", text, (), (table,))
