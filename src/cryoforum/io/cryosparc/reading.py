"""cryoSPARC's particles in RELION's terms; `writing` is the way back.

alignments3D/pose is a rotation vector of the very rotation that `rotations` names (view to volume);
alignments3D/shift, in pixels of alignments3D/psize_A, has the sign of RELION's origin. Of several classes
the most probable counts. What RELION has no word for stays in the records, which the table carries along.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cryoforum.dataset.columns import ANGLE_COLUMNS, CLASS_NUMBER, ORIGIN_COLUMNS, OWN
from cryoforum.dataset.particle_table import ParticleTable, and_further_rows, format_numbers, with_columns
from cryoforum.errors import InputError
from cryoforum.geometry.rotations import rotvec_to_unitquat, unitquat_to_relion_euler
from cryoforum.io.cryosparc.classes import class_counts, with_most_probable_class
from cryoforum.io.cryosparc.faults import refuse_faults, rows_without_faults
from cryoforum.io.cryosparc.records import (
    field_names,
    have_particles_in_common,
    is_named_passthrough,
    merged_records,
    numbers,
    passthrough_of,
    read_records,
    texts,
)

logger = logging.getLogger(__name__)

MOST_NAMED = 3  # fields of one part
_BLOB = ("blob/path", "blob/idx", "blob/psize_A")
_NEEDED = (*_BLOB, "ctf/df1_A", "alignments3D/pose")
CTF_OF_GROUPS = {
    "ctf/accel_kv": "rlnVoltage",
    "ctf/cs_mm": "rlnSphericalAberration",
    "ctf/amp_contrast": "rlnAmplitudeContrast",
}
CTF_OF_PARTICLES = {  # fields in radians are columns in degrees
    "ctf/df1_A": "rlnDefocusU",
    "ctf/df2_A": "rlnDefocusV",
    "ctf/df_angle_rad": "rlnDefocusAngle",
    "ctf/phase_shift_rad": "rlnPhaseShift",
}
_ABERRATIONS = ("ctf/tilt_A", "ctf/trefoil_A", "ctf/tetra_A", "ctf/anisomag")
_FILAMENT, _POSITION = "filament/filament_uid", "filament/position_A"
_CLASS_2D = "alignments2D/class"
# Beside what is read, these hold how a job went, or say in other words what is read.
_NOT_MISSED = ("uid", "blob/", "ctf/", "location/", "alignments3D/", f"{OWN}/", _FILAMENT, _POSITION)
_WITHOUT_IMAGES = {  # a field that tells another kind of dataset
    "map/path": "volumes; give the particles of the same job",
    "movie_blob/path": "movies; give particles",
    "location/center_x_frac": "picks without images; extract the particles first",
    "micrograph_blob/path": "micrographs; give particles",
}


def read_cryosparc(path: Path, companions: Sequence[Path] = (), drop_unusable: bool = False) -> ParticleTable:
    """The particles of a .cs file, with the fields that companions (passthrough files) add by uid.

    Where none is given and images, CTF or poses are missing, the passthrough file of the same job beside it
    is taken, if there is just one. InputError, or with ``drop_unusable`` a warning, where values cannot be
    right.
    """
    path = Path(path)
    records = read_records(path)
    candidates: Sequence[Path] = ()
    if not companions and not set(_NEEDED) <= set(field_names(records)):
        candidates = passthrough_of(path)
        companions = candidates if len(candidates) == 1 else ()
    records = merged_records(path, records, companions)
    missing = [name for name in _BLOB if name not in field_names(records)]
    if missing:
        several = ", ".join(other.name for other in candidates)
        found = f"several passthrough files: {several}" if several else "none, nor a passthrough file beside"
        _refuse_other_kinds(path, records)
        raise InputError(
            f"{path}: expected a field {missing[0]}, found {found}; "
            f"merge the right one: cryoforum convert {path.name} PASSTHROUGH.cs --out merged.cs"
        )
    if drop_unusable:
        records = records[rows_without_faults(path, with_most_probable_class(records))]
    refuse_faults(path, with_most_probable_class(records))
    _give_notice(path, records)
    return table_from_records(path, records, tuple(companions))


def _refuse_other_kinds(path: Path, records: np.ndarray) -> None:
    """InputError where records without images are none of particles."""
    names = field_names(records)
    if any(name.startswith("alignments") for name in names):
        return
    for field, kind in _WITHOUT_IMAGES.items():
        if field in names:
            raise InputError(f"{path}: expected particles, found a dataset of {kind}")


def _give_notice(path: Path, records: np.ndarray) -> None:
    """A line where poses are those of the most probable class, and where a uid has several images."""
    classes = class_counts(records)
    if classes:
        counts = ", ".join(f"{number}: {count}" for number, count in classes.items())
        logger.warning(
            f"{path}: holds poses of several classes; of each particle those of the most probable class are "
            f"read (rlnClassNumber {counts})"
        )
    _, first_rows, group_of_row = np.unique(records["uid"], return_index=True, return_inverse=True)
    images = records[["blob/path", "blob/idx"]]
    first = first_rows[group_of_row]
    differ = first != np.arange(len(records))
    differ[differ] = images[differ] != images[first[differ]]
    if differ.any():
        row = int(differ.argmax())
        logger.warning(
            f"{path}: expected a uid of its own for every image, found {records['uid'][row]} in rows "
            f"{first[row] + 1} and {row + 1}{and_further_rows(differ)}; cryoSPARC takes them for one particle"
        )


def is_passthrough_of(path: Path, other: Path) -> bool:
    """Whether ``other`` says more of the particles of ``path``, rather than the same of some of them.

    By its name, as it has images, CTF or poses that ``path`` lacks, or as it has no images of its own.
    """
    records, others = read_records(path), read_records(other)
    if not have_particles_in_common(records, others):
        return False
    known, added = (set(_NEEDED) & set(field_names(table)) for table in (records, others))
    return is_named_passthrough(other) or bool(added - known) or not set(_BLOB) <= added


def lost_in_table(table: ParticleTable) -> tuple[str, ...]:
    """Fields of cryoSPARC that change the CTF and that the table does not say."""
    if table.dataset is None:
        return ()
    known = field_names(table.dataset)
    return tuple(name for name in _ABERRATIONS if name in known and table.dataset[name].any())


def left_out_of_star(table: ParticleTable) -> list[str]:
    """Fields that say more of the particles and have no column in a STAR file, by the part of their name."""
    if table.dataset is None:
        return []
    parts: dict[str, list[str]] = {}
    said = (*_NOT_MISSED, _CLASS_2D) if CLASS_NUMBER in table.particles else _NOT_MISSED
    for name in field_names(table.dataset):
        if not name.startswith(said):
            part, _, rest = name.partition("/")
            parts.setdefault(part, []).append(rest)
    return [
        f"{part}/{rest}" if rest else part
        for part, rests in parts.items()
        for rest in (rests if len(rests) <= MOST_NAMED else ["…"])
    ]


def table_from_records(path: Path, records: np.ndarray, companions: tuple[Path, ...] = ()) -> ParticleTable:
    """RELION's tables of the records; ``path`` and companions are where they were read."""
    dataset, records = records, with_most_probable_class(records)
    names = field_names(records)
    files = texts(records["blob/path"])
    slices = numbers(path, records, "blob/idx").astype(np.int64).tolist()
    images = [f"{number + 1:06d}@{file}" for number, file in zip(slices, files, strict=True)]
    particles = pd.DataFrame({"rlnImageName": images}, dtype=str)
    optics, group_of_row = _optics(path, records)
    columns = _location_columns(path, records) | {"rlnOpticsGroup": group_of_row + 1}
    columns |= _class_column(path, records) | _filament_columns(path, records)
    for field, column in CTF_OF_PARTICLES.items():
        if field in names:
            values = numbers(path, records, field)
            columns[column] = np.rad2deg(values) if field.endswith("_rad") else values
    if "alignments3D/pose" in names:
        columns |= _pose_columns(path, records)
    for name in names:
        if name.startswith(f"{OWN}/"):
            columns[OWN + name.removeprefix(f"{OWN}/")] = numbers(path, records, name)
    return with_columns(ParticleTable(path, optics, particles, dataset, companions), columns)


def _optics(path: Path, records: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """data_optics, a row for every exposure group and optics that occur together; and each particle's row."""
    names = field_names(records)
    known = CTF_OF_GROUPS | {"blob/psize_A": "rlnImagePixelSize"}
    columns = {column: numbers(path, records, field) for field, column in known.items() if field in names}
    if "blob/shape" in names:
        columns["rlnImageSize"] = numbers(path, records, "blob/shape", (2,))[:, -1]
    exposure_groups = records["ctf/exp_group_id"] if "ctf/exp_group_id" in names else np.zeros(len(records))
    table = np.stack([exposure_groups, *columns.values()], axis=-1).astype(np.float64)
    groups, group_of_row = np.unique(table, axis=0, return_inverse=True)
    repeated = len(np.unique(groups[:, 0])) < len(groups)
    optics = pd.DataFrame(
        {
            "rlnOpticsGroupName": [
                f"exposureGroup{exposure_group:.0f}" + (f"_{row}" if repeated else "")
                for row, exposure_group in enumerate(groups[:, 0], 1)
            ],
            "rlnOpticsGroup": [str(row + 1) for row in range(len(groups))],
        }
        | {column: format_numbers(groups[:, at]) for at, column in enumerate(columns, 1)}
        | {"rlnImageDimensionality": "2"},
        dtype=str,
    )
    if "rlnImageSize" in optics:
        optics["rlnImageSize"] = [f"{size:.0f}" for size in groups[:, -1]]
    return optics, group_of_row.reshape(-1)


def _location_columns(path: Path, records: np.ndarray) -> dict[str, np.ndarray | list[str]]:
    """Micrograph and, where its shape is known, coordinates in its pixels (row by row as in the file)."""
    names = field_names(records)
    columns: dict[str, np.ndarray | list[str]] = {}
    if "location/micrograph_path" in names:
        columns["rlnMicrographName"] = texts(records["location/micrograph_path"])
    if {"location/micrograph_shape", "location/center_x_frac", "location/center_y_frac"} <= set(names):
        height, width = numbers(path, records, "location/micrograph_shape", (2,)).T
        columns["rlnCoordinateX"] = numbers(path, records, "location/center_x_frac") * width
        columns["rlnCoordinateY"] = numbers(path, records, "location/center_y_frac") * height
    return columns


def _class_column(path: Path, records: np.ndarray) -> dict[str, np.ndarray]:
    """Number of the class, from 1, where there are several: in 3D or, without poses, in 2D."""
    names = field_names(records)
    field = "alignments3D/class" if "alignments3D/pose" in names else _CLASS_2D
    if field not in names or len(np.unique(records[field])) < 2:
        return {}
    return {CLASS_NUMBER: numbers(path, records, field).astype(np.int64) + 1}


def _filament_columns(path: Path, records: np.ndarray) -> dict[str, np.ndarray]:
    """Number of the filament in its micrograph, from 1, and how far along it each segment lies."""
    names = field_names(records)
    columns: dict[str, np.ndarray] = {}
    if _FILAMENT in names:
        place = "location/micrograph_path" if "location/micrograph_path" in names else "blob/path"
        frame = pd.DataFrame({"micrograph": texts(records[place]), "filament": records[_FILAMENT]})
        of_micrograph = frame.groupby("micrograph", sort=False)["filament"]
        columns["rlnHelicalTubeID"] = of_micrograph.rank("dense").to_numpy().astype(np.int64)
    if _POSITION in names:
        columns["rlnHelicalTrackLengthAngst"] = numbers(path, records, _POSITION)
    return columns


def _pose_columns(path: Path, records: np.ndarray) -> dict[str, np.ndarray]:
    """Angles, origins in Å and, where there are two half sets, to which of them each belongs."""
    names = field_names(records)
    vectors = torch.from_numpy(numbers(path, records, "alignments3D/pose", (3,)))
    angles = unitquat_to_relion_euler(rotvec_to_unitquat(vectors)).numpy()
    columns = dict(zip(ANGLE_COLUMNS, angles.T, strict=True))
    if "alignments3D/shift" in names:
        # The refinement may have worked on smaller images: its pixels are not those of the stack.
        size = "alignments3D/psize_A" if "alignments3D/psize_A" in names else "blob/psize_A"
        shifts = numbers(path, records, "alignments3D/shift", (2,)) * numbers(path, records, size)[:, None]
        columns |= dict(zip(ORIGIN_COLUMNS, shifts.T, strict=True))
    if "alignments3D/split" in names and len(np.unique(records["alignments3D/split"])) == 2:
        columns["rlnRandomSubset"] = records["alignments3D/split"].astype(np.int64) + 1
    return columns
