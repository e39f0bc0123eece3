"""RELION's particle STAR files (3.1 and, where it says the same with other words, 3.0) and our nouns."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cryoforum.dataset.columns import ANGLE_COLUMNS, CTF_COLUMNS, ORIGIN_COLUMNS, ORIGIN_PIXEL_COLUMNS
from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.dataset.image_grid import ImageGrid
from cryoforum.dataset.particle_table import (
    ParticleTable,
    format_numbers,
    missing_columns,
    number_column,
    number_columns,
    refuse_rows,
    with_columns,
)
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.errors import InputError
from cryoforum.geometry.rotations import relion_euler_to_unitquat, unitquat_to_relion_euler
from cryoforum.io.aberrations import warn_of_unused_aberrations
from cryoforum.io.located_images import located_images
from cryoforum.io.mixed_grids import images_on_one_grid
from cryoforum.io.mrc.header import read_header
from cryoforum.io.mrc.stacks import LazyImages
from cryoforum.io.relion.lengths import pixel_sizes_from_table, shift_angstrom, warn_of_contradicting_origins
from cryoforum.io.relion.units import refuse_impossible_ctf, refuse_impossible_pixel_sizes

_CHANGED_BY_THE_CTF = {
    "rlnCtfDataAreCtfPremultiplied": "multiplied by their CTF",
    "rlnCtfDataArePhaseFlipped": "phase flipped already",
}


def particles_from_table(
    table: ParticleTable, root: Path | None = None, grid: ImageGrid | None = None
) -> Particles:
    """Particles with images read from disk on demand; root: where image names are looked for first.

    They have the box and pixel size of ``grid``, or else what most of them have. Warns, a line each, of
    images that are resampled to it, and of origins in Å that contradict those in pixels.
    """
    pixel_sizes = pixel_sizes_from_table(table)
    refuse_impossible_pixel_sizes(table)
    poses, ctf = poses_from_table(table), ctf_from_table(table)
    names = table.particles["rlnImageName"].tolist()
    located = located_images(table, root)
    slices, paths = located.slices, located.stacks
    expected_boxes = number_column(table, "rlnImageSize")
    signs = contrast_signs(table)
    groups = optics_groups_from_table(table)

    def images_of(rows: np.ndarray) -> LazyImages:
        images = LazyImages(
            [paths[row] for row in rows],
            [slices[row] for row in rows],
            None if signs is None else signs[rows],
            name_of=lambda at: f"{names[rows[at]]} (row {rows[at] + 1})",
        )
        _check_boxes(table, None if expected_boxes is None else expected_boxes[rows], images.shape[-1])
        return images

    images, target = images_on_one_grid(
        images_of,
        lambda row: read_header(paths[row]).layout.shape[2],
        np.zeros(len(table)) if groups is None else groups.numpy(),
        pixel_sizes,
        grid,
    )
    warn_of_contradicting_origins(table)
    warn_of_unused_aberrations(table)
    return Particles(
        images,
        target.pixel_size_angstrom,
        tuple(names),
        poses,
        ctf,
        half_sets=half_sets_from_table(table),
        optics_groups=groups,
        sources=located.numbers,
    )


def contrast_signs(table: ParticleTable) -> np.ndarray | None:
    """-1 for each particle that is dark on light, 1 for the others, (n,); None where all are light on dark.

    RELION knows only light particles. cryoSPARC says it of each by blob/sign: -1 for light ones, 1 for those
    as dark as in the micrograph.
    """
    if table.dataset is None or "blob/sign" not in (table.dataset.dtype.names or ()):
        return None
    dark = table.dataset["blob/sign"] > 0
    return np.where(dark, -1, 1) if dark.any() else None


def poses_from_table(table: ParticleTable) -> Poses | None:
    """Poses of all particles; None where one of the three angles has no column."""
    angles = number_columns(table, ANGLE_COLUMNS)
    if angles is None:
        return None
    quaternions = relion_euler_to_unitquat(torch.from_numpy(np.stack(angles, axis=-1)))
    shifts = np.stack([shift_angstrom(table, axis) for axis in "XY"], axis=-1)
    return Poses(quaternions, torch.from_numpy(shifts).float())


def has_only_2d_alignments(table: ParticleTable) -> bool:
    """Whether the particles were turned within the image plane, as a 2D classification does, and no more."""
    if table.dataset is not None:
        fields = table.dataset.dtype.names or ()
        return "alignments2D/pose" in fields and "alignments3D/pose" not in fields
    return not missing_columns(table, ["rlnAnglePsi"]) and bool(missing_columns(table, ANGLE_COLUMNS))


def ctf_from_table(table: ParticleTable) -> CtfParameters | None:
    """CTF parameters of all particles; None where one of `CTF_COLUMNS` is missing."""
    for column, change in _CHANGED_BY_THE_CTF.items():
        flags = number_column(table, column)
        if flags is not None and flags.any():
            raise InputError(f"{table.path}: images were {change} ({column}); extract them again without")
    values = number_columns(table, CTF_COLUMNS)
    if values is None:
        return None
    phase_shift = number_column(table, "rlnPhaseShift")
    values.append(np.zeros(len(table)) if phase_shift is None else phase_shift)
    refuse_impossible_ctf(table)
    return CtfParameters(*(torch.from_numpy(column).float() for column in values))


def _check_boxes(table: ParticleTable, expected: np.ndarray | None, box: int) -> None:
    """InputError where rlnImageSize is not the width of the images."""
    if expected is not None and (expected != box).any():
        raise InputError(
            f"{table.path}: rlnImageSize says {expected[expected != box][0]:.0f} px, the images have "
            f"{box} px; correct rlnImageSize and rlnImagePixelSize"
        )


def half_sets_from_table(table: ParticleTable) -> Tensor | None:
    """Random half of each particle, (n,) int64 of 1 or 2; None where there is no column."""
    half_sets = number_column(table, "rlnRandomSubset")
    if half_sets is None:
        return None
    wrong = ~np.isin(half_sets, (1, 2))
    refuse_rows(table, wrong, lambda row: f"expected rlnRandomSubset 1 or 2, found {half_sets[row]:g}")
    return torch.from_numpy(half_sets).long()


def optics_groups_from_table(table: ParticleTable) -> Tensor | None:
    """rlnOpticsGroup of each particle, (n,) int64; None where there is no column."""
    groups = number_column(table, "rlnOpticsGroup") if "rlnOpticsGroup" in table.particles else None
    return None if groups is None else torch.from_numpy(groups).long()


def with_poses(table: ParticleTable, poses: Poses) -> ParticleTable:
    """The same file with these angles and origins, in Å or, in the 3.0 dialect, in pixels."""
    shifts = poses.shifts_angstrom.detach().cpu().double().numpy()
    names, stale = ORIGIN_COLUMNS, ORIGIN_PIXEL_COLUMNS
    if table.optics is None:
        names, stale = stale, names
        shifts = shifts / pixel_sizes_from_table(table)[:, None]
    # origins in both units could contradict each other
    cleaned = replace(table, particles=table.particles.drop(columns=list(stale), errors="ignore"))
    turned = with_orientations(cleaned, poses.quaternions)
    return with_columns(turned, dict(zip(names, shifts.T, strict=True)))


def with_orientations(table: ParticleTable, quaternions: Tensor) -> ParticleTable:
    """The same file with the angles of unit ``quaternions`` (n, 4); origins stay as they are."""
    angles = unitquat_to_relion_euler(quaternions.detach().cpu()).numpy()
    return with_columns(table, dict(zip(ANGLE_COLUMNS, angles.T, strict=True)))


def table_from_particles(particles: Particles, image_names: Sequence[str]) -> ParticleTable:
    """Tables for a set that no STAR file describes yet, such as a simulated one; its path is empty."""
    if len(image_names) != len(particles):
        raise InputError(f"expected {len(particles)} image names, found {len(image_names)}")
    # RELION refuses a data_optics without voltage and Cs, also where it never computes a CTF from them
    microscope = np.tile([300.0, 2.7, 0.1], (len(particles), 1))
    columns: dict[str, np.ndarray] = {}
    if particles.ctf is not None:
        ctf = particles.ctf
        parts = (ctf.voltage_kv, ctf.spherical_aberration_mm, ctf.amplitude_contrast)
        microscope = torch.stack(parts, dim=-1).detach().cpu().double().numpy().round(6)
        defocus = (ctf.defocus_u_angstrom, ctf.defocus_v_angstrom, ctf.defocus_angle_deg, ctf.phase_shift_deg)
        names = (*CTF_COLUMNS[:3], "rlnPhaseShift")
        columns |= {name: values.detach().cpu().numpy() for name, values in zip(names, defocus, strict=True)}
    groups, group_of_row = np.unique(microscope, axis=0, return_inverse=True)
    columns["rlnOpticsGroup"] = group_of_row.reshape(-1) + 1
    if particles.half_sets is not None:
        columns["rlnRandomSubset"] = particles.half_sets.cpu().numpy()
    optics = _optics_table(groups, particles.pixel_size_angstrom, particles.box)
    table = ParticleTable(Path(), optics, pd.DataFrame({"rlnImageName": list(image_names)}, dtype=str))
    if particles.poses is not None:
        table = with_poses(table, particles.poses)
    return with_columns(table, columns)


def _optics_table(groups: np.ndarray, pixel_size_angstrom: float, box: int) -> pd.DataFrame:
    """data_optics of groups (g, 3): voltage in kV, Cs in mm, amplitude contrast."""
    numbers = [str(number) for number in range(1, len(groups) + 1)]
    (size,) = format_numbers([pixel_size_angstrom])
    voltages, aberrations, contrasts = map(format_numbers, groups.T)
    columns = {
        "rlnOpticsGroupName": [f"opticsGroup{number}" for number in numbers],
        "rlnOpticsGroup": numbers,
        "rlnMicrographOriginalPixelSize": size,
        "rlnVoltage": voltages,
        "rlnSphericalAberration": aberrations,
        "rlnAmplitudeContrast": contrasts,
        "rlnImagePixelSize": size,
        "rlnImageSize": str(box),
        "rlnImageDimensionality": "2",
    }
    return pd.DataFrame(columns, dtype=str)
