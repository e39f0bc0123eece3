"""The contents of a particle file as rows of a table."""

from collections import Counter

import pandas as pd
import torch
from torch import Tensor

from cryoforum.dataset.columns import ANGLE_COLUMNS, CTF_COLUMNS
from cryoforum.dataset.particle_table import ParticleTable, missing_columns, number_column, split_image_name
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.repeats import repeats_of
from cryoforum.io.aberrations import unused_aberrations
from cryoforum.io.scratch import layouts_of

MICROSCOPE = {
    "rlnVoltage": "{:g} kV",
    "rlnSphericalAberration": "Cs {:g} mm",
    "rlnAmplitudeContrast": "amplitude contrast {:g}",
}
STACKS_SHOWN = 3
GROUPS_SHOWN = 8
SAME_ORIENTATION = 1e-4  # of quaternion components: hundredths of a degree


def inventory(table: ParticleTable, particles: Particles) -> list[tuple[str, str]]:
    """(property, value) of a file, missing columns last."""
    size = particles.pixel_size_angstrom
    rows = [
        ("particles", f"{len(particles)}"),
        *_repeats(particles),
        ("images", f"{particles.box} px of {size:.4g} Å, {particles.box * size:.0f} Å wide"),
        *_optics_groups(table),
        *_ctf(table, particles),
        *_poses(table, particles),
    ]
    if particles.half_sets is not None:
        counts = [int((particles.half_sets == half).sum()) for half in (1, 2)]
        rows.append(("half sets", f"{counts[0]} and {counts[1]}"))
    aberrations = unused_aberrations(table)
    if aberrations:
        rows.append(("not used", f"{', '.join(aberrations)}: the CTF is computed without"))
    rows += _stacks(particles)
    absent = missing(table, particles)
    return [*rows, ("missing", "; ".join(absent))] if absent else rows


def _repeats(particles: Particles) -> list[tuple[str, str]]:
    found = repeats_of(particles)
    return [] if found is None else [("images in several rows", str(found))]


def table_alone(table: ParticleTable) -> str:
    """The contents of a file whose images cannot be read, in one line."""
    parts = {"CTF": CTF_COLUMNS, "poses": ANGLE_COLUMNS, "half sets": ("rlnRandomSubset",)}
    found = [f"no {name}" if missing_columns(table, columns) else name for name, columns in parts.items()]
    return ", ".join([f"{len(table)} particles", *found])


def missing(table: ParticleTable, particles: Particles) -> list[str]:
    """Each group of columns that the file lacks, and the consequence."""
    absent = []
    if particles.poses is None:
        absent.append("poses (rlnAngleRot, Tilt, Psi): to predict, not to train")
    elif missing_columns(table, ("rlnOriginXAngst",)) and missing_columns(table, ("rlnOriginX",)):
        absent.append("origins (rlnOriginXAngst, YAngst): taken as 0")
    if particles.ctf is None:
        absent.append(f"CTF ({', '.join(missing_columns(table, CTF_COLUMNS))}): images taken as corrected")
    if particles.half_sets is None:
        absent.append("half sets (rlnRandomSubset): drawn where they are needed")
    return absent


def origins_in_pixels(table: ParticleTable) -> bool:
    """Whether the origins that are read are in pixels, as in RELION 3.0, not in Å."""
    if missing_columns(table, ("rlnOriginX",)):
        return False
    return table.optics is None or bool(missing_columns(table, ("rlnOriginXAngst",)))


def _optics_groups(table: ParticleTable) -> list[tuple[str, str]]:
    known = [column for column in MICROSCOPE if not missing_columns(table, (column,))]
    if not known:
        return []
    columns = {name: number_column(table, name) for name in known}
    labels = table.particles.get("rlnOpticsGroup", pd.Series("1", index=table.particles.index))
    groups = pd.DataFrame(columns).groupby(labels.to_numpy(), sort=False)
    counts, lowest, highest = groups.size(), groups.min(), groups.max()
    rows = []
    for group, count in counts.head(GROUPS_SHOWN).items():
        spans = zip(known, lowest.loc[group], highest.loc[group], strict=True)
        text = (
            MICROSCOPE[name].format(low) + ("" if low == high else f" to {high:g}")
            for name, low, high in spans
        )
        rows.append((f"optics group {group}", f"{count} particles, {', '.join(text)}"))
    if len(counts) > GROUPS_SHOWN:
        others = counts.iloc[GROUPS_SHOWN:]
        rows.append((f"{len(others)} more groups", f"{others.sum()} particles"))
    return rows


def _ctf(table: ParticleTable, particles: Particles) -> list[tuple[str, str]]:
    ctf = particles.ctf
    if ctf is None:
        return []
    mean = (ctf.defocus_u_angstrom + ctf.defocus_v_angstrom) / 2e4
    text = f"{mean.min():.2f} to {mean.max():.2f} µm, median {mean.median():.2f}"
    if not mean.any():
        text = "0 in all particles: taken as in focus"
    elif mean.median() < 0:
        text += " (underfocus should be positive)"
    astigmatism = (ctf.defocus_u_angstrom - ctf.defocus_v_angstrom).abs().median()
    rows = [("defocus", text), ("astigmatism", f"median {astigmatism:.0f} Å")]
    shift = ctf.phase_shift_deg
    if shift.any():
        rows.append(("phase shift", f"{shift.min():.0f} to {shift.max():.0f}°"))
    return rows


def _poses(table: ParticleTable, particles: Particles) -> list[tuple[str, str]]:
    poses = particles.poses
    if poses is None:
        return []
    q = poses.quaternions
    distinct = _distinct(torch.where(q[:, 3:] < 0, -q, q))
    tilts = number_column(table, "rlnAngleTilt")
    span = "" if tilts is None else f", tilt {tilts.min():.0f} to {tilts.max():.0f}°"
    rms = float(poses.shifts_angstrom.square().mean().sqrt())
    largest = float(poses.shifts_angstrom.abs().max())
    size = particles.pixel_size_angstrom
    shifts = f"rms {rms:.2f} Å ({rms / size:.2f} px), at most {largest:.2f} Å ({largest / size:.2f} px)"
    unit = "pixels" if origins_in_pixels(table) else "Å"
    return [("orientations", f"{distinct} distinct{span}"), ("origins", f"{shifts}; given in {unit}")]


def _distinct(quaternions: Tensor) -> int:
    """Number of distinct unit quaternions (n, 4); one integer for each, as rows are slow to compare."""
    steps = (quaternions.double() / SAME_ORIENTATION).round().long()
    base = round(2 / SAME_ORIENTATION) + 1
    weights = base ** torch.arange(4)
    return len(torch.unique((steps * weights).sum(1)))


def _stacks(particles: Particles) -> list[tuple[str, str]]:
    names = Counter(split_image_name(name)[1] for name in particles.names)
    kinds = {
        f"{layout.dtype.name}{', compressed' if layout.is_packed else ''}"
        for layout in layouts_of(particles.images, torch.arange(len(particles)))
    }
    text = f"{len(names)} found, {' and '.join(sorted(kinds))}"
    listed = ", ".join(f"{name} ({count})" for name, count in list(names.items())[:STACKS_SHOWN])
    return [("stacks", f"{text}: {listed}{', …' if len(names) > STACKS_SHOWN else ''}")]
