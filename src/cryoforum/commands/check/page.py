"""The page of a checked particle file: pictures and tables."""

import math
from pathlib import Path

import torch
from torch import Tensor

from cryoforum.commands.check.check import Check
from cryoforum.commands.check.findings import ALTERNATIVES_HEADER, Findings
from cryoforum.commands.check.interpretations import LARGEST_BOX, as_interpreted
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.volumes import Volume
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
    """Write the pictures of a check to a .png, or with its tables to a self-contained .html.

    Parameters
    ----------
    check
        The result for one file.
    output
        Written under a temporary name and then renamed.
    """
    if output.suffix == ".png":
        rows = particle_rows(check) + map_rows(check)
        write_tiles(rows, f"{check.path.name}: {check.conclusion}", output)
        return
    render(output, check.path.name, check.conclusion, _facts(check), _sections(check), ())


def particle_rows(check: Check) -> list[tuple[str, Tensor]]:
    """Rows of (k, n, n) images: some particles as recorded, low-passed, and as projections of the map."""
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
        rows.append(("projections of the map of all particles along their poses, with their CTF", expected))
    return rows


def map_rows(check: Check) -> list[tuple[str, Tensor]]:
    """Rows of (6, n, n) central sections and projections of the particles' own map, and of the reference."""
    maps: list[tuple[str, Volume]] = []
    if check.findings is not None:
        maps.append((f"map of {check.findings.count} particles", check.findings.volume))
    if check.reference is not None:
        maps.append(("reference", check.reference))
    return [(f"{name}: sections and projections along z, x, y", _pictures(volume)) for name, volume in maps]


def _pictures(volume: Volume) -> Tensor:
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
    assert poses is not None
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
        noun = "problem" if len(check.problems) == 1 else "problems"
        facts.append((f"{len(check.problems)}", noun, f"found with {check.findings.count} images"))
        facts.append((f"{len(check.findings.alternatives)}", "other interpretations compared", ""))
    return facts


def _sections(check: Check) -> list[Section]:
    sections = [_problem_section(check)] if check.problems else []
    caption = (
        "The same particles in every row, spread over the file; grey levels are stretched image by image. "
        "Where file and images agree, a low-passed particle and the projection below it show the same "
        "shape at the same place, both bright."
    )
    sections.append(Section("particles", "Particles", "", (_exhibit(particle_rows(check), caption),)))
    maps = map_rows(check)
    if maps:
        caption = "Made from the sampled images, under the interpretation that fits them best."
        sections.append(Section("map", "Map", "", (_exhibit(maps, caption),)))
    inventory = Table("The file as it was read", ("Property", "Value"), check.inventory, prose=True)
    sections.append(Section("file", "File", "", (), (inventory,)))
    if check.findings is not None:
        sections.append(_alternative_section(check, check.findings))
    return sections


def _exhibit(rows: list[tuple[str, Tensor]], caption: str) -> Exhibit:
    panels = tuple(Panel(label, picture(images, label)) for label, images in rows)
    return Exhibit(panels, caption, columns=1)


def _problem_section(check: Check) -> Section:
    rows = tuple((problem.fault, problem.fix) for problem in check.problems)
    table = Table("Problems and fixes", ("Problem", "Fix"), rows, prose=True)
    text = "" if check.correction is None else "This command corrects the columns:"
    return Section("problems", "Problems", text, (), (table,), check.correction or "")


def _alternative_section(check: Check, findings: Findings) -> Section:
    rows = tuple(one.cells for one in sorted(findings.alternatives, key=lambda one: -one.share))
    text = (
        "Each row compares the images under another interpretation of the columns with the best one. The "
        "difference of the log-likelihoods is given in its standard errors, and as a share of the gain in "
        "log-likelihood of the better one of the two; negative: the other interpretation is worse. "
    )
    if check.undecided:
        text += f"The images could not decide: {', '.join(check.undecided)}."
    table = Table("Compared with the best interpretation", ALTERNATIVES_HEADER, rows)
    return Section("alternatives", "Other interpretations", text, (), (table,))
