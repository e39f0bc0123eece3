"""What was understood of a particle file, in rows of a table."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from cryoforum.io.files import find_file
from cryoforum.io.mrcheader import read_header
from cryoforum.io.star import CTF_COLUMNS, ParticleStar, missing_columns, number_column
from cryoforum.particles import Particles

MICROSCOPE = {
    "rlnVoltage": "{:g} kV",
    "rlnSphericalAberration": "Cs {:g} mm",
    "rlnAmplitudeContrast": "amplitude contrast {:g}",
}
STACKS_SHOWN = 3
SAME_ORIENTATION = 1e-4  # of quaternion components: hundredths of a degree


def inventory(star: ParticleStar, particles: Particles, root: Path | None) -> list[tuple[str, str]]:
    """(what, what was understood) of a file, the missing things last."""
    size = particles.pixel_size_angstrom
    rows = [
        ("particles", f"{len(particles)}"),
        ("images", f"{particles.box} px of {size:.4g} Å, {particles.box * size:.0f} Å wide"),
        *_optics_groups(star),
        *_ctf(star, particles),
        *_poses(star, particles),
    ]
    if particles.subsets is not None:
        counts = [int((particles.subsets == half).sum()) for half in (1, 2)]
        rows.append(("half sets", f"{counts[0]} and {counts[1]}"))
    rows += _stacks(star, root)
    absent = missing(star, particles)
    return [*rows, ("missing", "; ".join(absent))] if absent else rows


def missing(star: ParticleStar, particles: Particles) -> list[str]:
    """What the file lacks, and what that means."""
    absent = []
    if particles.poses is None:
        absent.append("poses (rlnAngleRot, Tilt, Psi): to predict, not to train")
    elif missing_columns(star, ("rlnOriginXAngst",)) and missing_columns(star, ("rlnOriginX",)):
        absent.append("origins (rlnOriginXAngst, YAngst): taken as 0")
    if particles.optics is None:
        absent.append(f"CTF ({', '.join(missing_columns(star, CTF_COLUMNS))}): images taken as corrected")
    if particles.subsets is None:
        absent.append("half sets (rlnRandomSubset): drawn where they are needed")
    return absent


def origins_in_pixels(star: ParticleStar) -> bool:
    """Whether origins are RELION 3.0's, in pixels."""
    return bool(missing_columns(star, ("rlnOriginXAngst",))) and not missing_columns(star, ("rlnOriginX",))


def _optics_groups(star: ParticleStar) -> list[tuple[str, str]]:
    known = [column for column in MICROSCOPE if not missing_columns(star, (column,))]
    if not known:
        return []
    values = np.stack([column for name in known if (column := number_column(star, name)) is not None], 1)
    labels = np.array(star.particles.get("rlnOpticsGroup", np.full(len(star), "1")))
    rows = []
    for group in dict.fromkeys(labels.tolist()):
        own = values[labels == group]
        text = [
            MICROSCOPE[name].format(own[0, at])
            if np.ptp(own[:, at]) == 0
            else f"{MICROSCOPE[name].format(own[:, at].min())} to {own[:, at].max():g}"
            for at, name in enumerate(known)
        ]
        rows.append((f"optics group {group}", f"{len(own)} particles, {', '.join(text)}"))
    return rows


def _ctf(star: ParticleStar, particles: Particles) -> list[tuple[str, str]]:
    optics = particles.optics
    if optics is None:
        return []
    mean = (optics.defocus_u_angstrom + optics.defocus_v_angstrom) / 2e4
    text = f"{mean.min():.2f} to {mean.max():.2f} µm, median {mean.median():.2f}"
    if mean.median() < 0:
        text += " (underfocus should be positive)"
    astigmatism = (optics.defocus_u_angstrom - optics.defocus_v_angstrom).abs().median()
    rows = [("defocus", text), ("astigmatism", f"median {astigmatism:.0f} Å")]
    shift = optics.phase_shift_deg
    if shift.any():
        rows.append(("phase shift", f"{shift.min():.0f} to {shift.max():.0f}°"))
    return rows


def _poses(star: ParticleStar, particles: Particles) -> list[tuple[str, str]]:
    poses = particles.poses
    if poses is None:
        return []
    q = poses.quaternions
    q = torch.where(q[:, 3:] < 0, -q, q)
    distinct = len(torch.unique((q / SAME_ORIENTATION).round(), dim=0))
    tilts = number_column(star, "rlnAngleTilt")
    span = "" if tilts is None else f", tilt {tilts.min():.0f} to {tilts.max():.0f}°"
    rms = float(poses.shifts_angstrom.square().mean().sqrt())
    largest = float(poses.shifts_angstrom.abs().max())
    size = particles.pixel_size_angstrom
    shifts = f"rms {rms:.2f} Å ({rms / size:.2f} px), at most {largest:.2f} Å ({largest / size:.2f} px)"
    unit = "pixels" if origins_in_pixels(star) else "Å"
    return [("orientations", f"{distinct} distinct{span}"), ("origins", f"{shifts}; given in {unit}")]


def _stacks(star: ParticleStar, root: Path | None) -> list[tuple[str, str]]:
    names = Counter(name.rpartition("@")[2] for name in star.particles["rlnImageName"])
    folder = star.path.absolute().parent
    kinds = {_kind(find_file(name, folder, root)) for name in names}
    text = f"{len(names)} found, {' and '.join(sorted(kinds))}"
    some = list(names.items())[:STACKS_SHOWN]
    listed = ", ".join(f"{name} ({count})" for name, count in some)
    return [("stacks", f"{text}: {listed}{', …' if len(names) > STACKS_SHOWN else ''}")]


def _kind(path: Path) -> str:
    layout = read_header(path).layout
    return f"{layout.dtype.name}, compressed" if layout.is_packed else layout.dtype.name
