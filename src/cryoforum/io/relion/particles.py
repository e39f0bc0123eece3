"""RELION's particle STAR files (3.1 and, where it says the same with other words, 3.0) and our nouns."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cryoforum.dataset.ctf_parameters import Optics
from cryoforum.dataset.image_grid import Sampling
from cryoforum.dataset.particle_table import (
    ParticleStar,
    format_number,
    missing_columns,
    number_column,
    place_of_row,
    split_image_name,
    with_columns,
)
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.geometry.rotations import relion_euler_to_unitquat, unitquat_to_relion_euler
from cryoforum.io.image_paths import find_file
from cryoforum.io.mixed_grids import images_at_one_sampling
from cryoforum.io.mrc.stacks import LazyImages
from cryoforum.io.relion.lengths import pixel_sizes_from_star, shift_angstrom, warn_of_contradicting_origins

ANGLE_COLUMNS = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
CTF_COLUMNS = (  # in the order of the fields of Optics
    "rlnDefocusU",
    "rlnDefocusV",
    "rlnDefocusAngle",
    "rlnVoltage",
    "rlnSphericalAberration",
    "rlnAmplitudeContrast",
)


def particles_from_star(
    star: ParticleStar, root: Path | None = None, sampling: Sampling | None = None
) -> Particles:
    """Particles with images read from disk on demand; root: where image names are looked for first.

    They have the box and pixel size of ``sampling``, or else what most of them have. Warns, a line each, of
    images that are resampled to it, and of origins in Å that contradict those in pixels.
    """
    pixel_sizes = pixel_sizes_from_star(star)
    poses, optics = poses_from_star(star), optics_from_star(star)
    names = star.particles["rlnImageName"].tolist()
    slices, stacks = parsed_image_names(star, names)
    paths = found_stacks(star, stacks, root)
    expected_boxes = number_column(star, "rlnImageSize")

    signs = contrast_signs(star)

    def images_of(rows: np.ndarray) -> LazyImages:
        own_paths, own_slices, own_names = (
            [column[row] for row in rows] for column in (paths, slices, names)
        )
        images = LazyImages(own_paths, own_slices, own_names, None if signs is None else signs[rows])
        _check_boxes(star, None if expected_boxes is None else expected_boxes[rows], images.shape[-1])
        return images

    groups = optics_groups_from_star(star)
    images, target = images_at_one_sampling(
        images_of, np.zeros(len(star)) if groups is None else groups.numpy(), pixel_sizes, sampling
    )
    warn_of_contradicting_origins(star)
    return Particles(
        images,
        target.pixel_size_angstrom,
        tuple(names),
        poses,
        optics,
        subsets=subsets_from_star(star),
        optics_groups=groups,
        sources=_sources(paths, slices),
    )


def _sources(paths: Sequence[Path], slices: Sequence[int]) -> Tensor:
    """A number (n,) for each image by the real path of its stack, and its slice: two names give the same."""
    number_of_stack = {}
    for path in set(paths):
        digest = hashlib.blake2b(os.fsencode(os.path.realpath(path)), digest_size=8).digest()
        number_of_stack[path] = int.from_bytes(digest, "little")
    numbers = np.array([number_of_stack[path] for path in paths], dtype=np.uint64)
    numbers += np.array(slices, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # odd: no two slices meet
    return torch.from_numpy(numbers.view(np.int64))


def contrast_signs(star: ParticleStar) -> np.ndarray | None:
    """-1 for each particle that is dark on light, 1 for the others, (n,); None where all are light on dark.

    RELION knows only light particles. cryoSPARC says it of each by blob/sign: -1 for light ones, 1 for those
    as dark as in the micrograph.
    """
    if star.dataset is None or "blob/sign" not in (star.dataset.dtype.names or ()):
        return None
    dark = star.dataset["blob/sign"] > 0
    return np.where(dark, -1, 1) if dark.any() else None


def poses_from_star(star: ParticleStar) -> Poses | None:
    """Poses of all particles; None where one of the three angles has no column."""
    found = [number_column(star, column) for column in ANGLE_COLUMNS]
    angles = [column for column in found if column is not None]
    if len(angles) < len(ANGLE_COLUMNS):
        return None
    quaternions = relion_euler_to_unitquat(torch.from_numpy(np.stack(angles, axis=-1)))
    shifts = np.stack([shift_angstrom(star, axis) for axis in "XY"], axis=-1)
    return Poses(quaternions, torch.from_numpy(shifts).float())


def has_only_2d_alignments(star: ParticleStar) -> bool:
    """Whether the particles were turned within the image plane, as a 2D classification does, and no more."""
    if star.dataset is not None:
        fields = star.dataset.dtype.names or ()
        return "alignments2D/pose" in fields and "alignments3D/pose" not in fields
    return not missing_columns(star, ["rlnAnglePsi"]) and bool(missing_columns(star, ANGLE_COLUMNS))


def optics_from_star(star: ParticleStar) -> Optics | None:
    """CTF parameters of all particles; None where one of `CTF_COLUMNS` is missing."""
    multiplied = number_column(star, "rlnCtfDataAreCtfPremultiplied")
    if multiplied is not None and multiplied.any():
        raise ValueError(
            f"{star.path}: images were multiplied by their CTF (rlnCtfDataAreCtfPremultiplied); "
            "extract them again without"
        )
    flipped = number_column(star, "rlnCtfDataArePhaseFlipped")
    if flipped is not None and flipped.any():
        raise ValueError(
            f"{star.path}: images were phase flipped already (rlnCtfDataArePhaseFlipped); "
            "extract them again without"
        )
    if missing_columns(star, CTF_COLUMNS):
        return None
    values = [number_column(star, column) for column in CTF_COLUMNS]
    phase_shift = number_column(star, "rlnPhaseShift")
    values.append(np.zeros(len(star)) if phase_shift is None else phase_shift)
    _check_range(star, "rlnVoltage", values[3], 10, 1000, "kV")
    _check_range(star, "rlnAmplitudeContrast", values[5], 0, 1, "as a fraction")
    return Optics(*(torch.from_numpy(column).float() for column in values))


def _check_boxes(star: ParticleStar, expected: np.ndarray | None, box: int) -> None:
    """ValueError where rlnImageSize is not the width of the images."""
    if expected is not None and (expected != box).any():
        raise ValueError(
            f"{star.path}: rlnImageSize says {expected[expected != box][0]:.0f} px, the images have "
            f"{box} px; correct rlnImageSize and rlnImagePixelSize"
        )


def _check_range(
    star: ParticleStar, column: str, values: np.ndarray | None, low: float, high: float, unit: str
) -> None:
    if values is None:
        return
    wrong = ~((values >= low) & (values <= high))
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{place_of_row(star, row)}: expected {column} from {low:g} to {high:g} {unit}, "
            f"found {values[row]:g}"
        )


def subsets_from_star(star: ParticleStar) -> Tensor | None:
    """Random half of each particle, (n,) int64 of 1 or 2; None where there is no column."""
    subsets = number_column(star, "rlnRandomSubset")
    if subsets is None:
        return None
    wrong = ~np.isin(subsets, (1, 2))
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{place_of_row(star, row)}: expected rlnRandomSubset 1 or 2, found {subsets[row]:g}"
        )
    return torch.from_numpy(subsets).long()


def optics_groups_from_star(star: ParticleStar) -> Tensor | None:
    """rlnOpticsGroup of each particle, (n,) int64; None where there is no column."""
    groups = number_column(star, "rlnOpticsGroup") if "rlnOpticsGroup" in star.particles else None
    return None if groups is None else torch.from_numpy(groups).long()


def with_poses(star: ParticleStar, poses: Poses) -> ParticleStar:
    """The same file with these angles and origins, in Å or, in the 3.0 dialect, in pixels."""
    shifts = poses.shifts_angstrom.detach().cpu().double().numpy()
    in_pixels, in_angstrom = ("rlnOriginX", "rlnOriginY"), ("rlnOriginXAngst", "rlnOriginYAngst")
    names, stale = (in_angstrom, in_pixels) if star.optics is not None else (in_pixels, in_angstrom)
    if star.optics is None:
        shifts = shifts / pixel_sizes_from_star(star)[:, None]
    # origins in both units could contradict each other
    cleaned = replace(star, particles=star.particles.drop(columns=list(stale), errors="ignore"))
    return with_columns(cleaned, _angle_columns(poses.quaternions) | dict(zip(names, shifts.T, strict=True)))


def with_orientations(star: ParticleStar, quaternions: Tensor) -> ParticleStar:
    """The same file with the angles of unit ``quaternions`` (n, 4); origins stay as they are."""
    return with_columns(star, _angle_columns(quaternions))


def star_from_particles(particles: Particles, image_names: Sequence[str]) -> ParticleStar:
    """Tables for a set that no STAR file describes yet, such as a simulated one; its path is empty."""
    if len(image_names) != len(particles):
        raise ValueError(f"expected {len(particles)} image names, found {len(image_names)}")
    # RELION refuses a data_optics without voltage and Cs, also where it never computes a CTF from them
    microscope = np.tile([300.0, 2.7, 0.1], (len(particles), 1))
    columns: dict[str, np.ndarray] = {}
    if particles.poses is not None:
        columns |= _angle_columns(particles.poses.quaternions)
        shifts = particles.poses.shifts_angstrom.detach().cpu().numpy()
        columns |= {f"rlnOrigin{axis}Angst": shifts[:, at] for at, axis in enumerate("XY")}
    if particles.optics is not None:
        ctf = particles.optics
        parts = (ctf.voltage_kv, ctf.spherical_aberration_mm, ctf.amplitude_contrast)
        microscope = torch.stack(parts, dim=-1).detach().cpu().double().numpy().round(6)
        defocus = (ctf.defocus_u_angstrom, ctf.defocus_v_angstrom, ctf.defocus_angle_deg, ctf.phase_shift_deg)
        names = (*CTF_COLUMNS[:3], "rlnPhaseShift")
        columns |= {name: values.detach().cpu().numpy() for name, values in zip(names, defocus, strict=True)}
    groups, group_of_row = np.unique(microscope, axis=0, return_inverse=True)
    columns["rlnOpticsGroup"] = group_of_row.reshape(-1) + 1
    if particles.subsets is not None:
        columns["rlnRandomSubset"] = particles.subsets.cpu().numpy()
    table = pd.DataFrame({"rlnImageName": list(image_names)}, dtype=str)
    optics = _optics_table(groups, particles.pixel_size_angstrom, particles.box)
    return with_columns(ParticleStar(Path(), optics, table), columns)


def parsed_image_names(star: ParticleStar, names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Slices from 0 and stack names of 000001@stack.mrcs; a name without @ is the first slice."""
    slices: list[int] = []
    stacks: list[str] = []
    seen: dict[tuple[int, str], int] = {}
    for row, name in enumerate(names):
        at_slice, stack = split_image_name(name)
        number = at_slice.removesuffix("@")
        if at_slice and not (number.isdecimal() and stack):
            raise ValueError(
                f"{place_of_row(star, row)}: expected rlnImageName as 000001@stack.mrcs, found '{name}'"
            )
        image = (int(number) - 1 if at_slice else 0, stack)
        first = seen.setdefault(image, row)
        if first != row:
            raise ValueError(
                f"{place_of_row(star, row)}: the image is already in row {first + 1}; remove the duplicates"
            )
        slices.append(image[0])
        stacks.append(image[1])
    return slices, stacks


def found_stacks(star: ParticleStar, stacks: Sequence[str], root: Path | None) -> list[Path]:
    """The file of each stack name; every name is looked for once."""
    found: dict[str, Path] = {}
    for row, stack in enumerate(stacks):
        if stack not in found:
            try:
                found[stack] = find_file(stack, star.path.absolute().parent, root)
            except ValueError as error:
                raise ValueError(f"{place_of_row(star, row)}: {error}") from error
    return [found[stack] for stack in stacks]


def _angle_columns(quaternions: Tensor) -> dict[str, np.ndarray]:
    angles = unitquat_to_relion_euler(quaternions.detach().cpu()).numpy()
    return {name: angles[:, at] for at, name in enumerate(ANGLE_COLUMNS)}


def _optics_table(groups: np.ndarray, pixel_size_angstrom: float, box: int) -> pd.DataFrame:
    """data_optics of groups (g, 3): voltage in kV, Cs in mm, amplitude contrast."""
    size = format_number(pixel_size_angstrom)
    rows = []
    for number, (voltage, spherical, contrast) in enumerate(groups.tolist(), 1):
        rows.append(
            {
                "rlnOpticsGroupName": f"opticsGroup{number}",
                "rlnOpticsGroup": str(number),
                "rlnMicrographOriginalPixelSize": size,
                "rlnVoltage": format_number(voltage),
                "rlnSphericalAberration": format_number(spherical),
                "rlnAmplitudeContrast": format_number(contrast),
                "rlnImagePixelSize": size,
                "rlnImageSize": str(box),
                "rlnImageDimensionality": "2",
            }
        )
    return pd.DataFrame(rows, dtype=str)
