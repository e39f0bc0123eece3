"""cryoSPARC's records of a particle table: those it came from, brought up to date, or new ones."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from cryoforum.dataset.columns import (
    ANGLE_COLUMNS,
    CLASS_NUMBER,
    CTF_COLUMNS,
    ORIGIN_COLUMNS,
    ORIGIN_PIXEL_COLUMNS,
    OWN,
)
from cryoforum.dataset.particle_table import ParticleTable, missing_columns, number_column
from cryoforum.dataset.poses import Poses
from cryoforum.errors import InputError
from cryoforum.geometry.rotations import unitquat_to_rotvec
from cryoforum.io.cryosparc.reading import CTF_OF_GROUPS, CTF_OF_PARTICLES, table_from_records
from cryoforum.io.cryosparc.records import field_names, with_fields, without_fields, write_records
from cryoforum.io.located_images import parsed_image_names
from cryoforum.io.relion.lengths import pixel_sizes_from_table
from cryoforum.io.relion.particles import (
    ctf_from_table,
    half_sets_from_table,
    poses_from_table,
)
from cryoforum.storage.files import replacing

Fields = dict[str, np.ndarray]

# Columns that fields of cryoSPARC say, besides our own.
SAID_BY_FIELDS = {
    *("rlnImageName", "rlnImageSize", "rlnImagePixelSize", "rlnDetectorPixelSize", "rlnMagnification"),
    *("rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginX", "rlnOriginY", *ANGLE_COLUMNS),
    *("rlnOpticsGroup", "rlnPhaseShift", "rlnRandomSubset", CLASS_NUMBER, *CTF_COLUMNS),
    *("rlnOpticsGroupName", "rlnImageDimensionality", "rlnMicrographOriginalPixelSize"),  # not missed there
}

# Of each field that an import makes: its number format, and its value where the table does not say.
_BLOB: dict[str, tuple[str, object]] = {
    "blob/sign": ("<f4", -1),  # light particles, as every stack for RELION has them
    "blob/import_sig": ("<u8", 0),
}
_CTF: dict[str, tuple[str, object]] = {
    "ctf/type": ("S9", b"imported"),
    "ctf/exp_group_id": ("<u4", 0),
    "ctf/accel_kv": ("<f4", 0),
    "ctf/cs_mm": ("<f4", 0),
    "ctf/amp_contrast": ("<f4", 0),
    "ctf/df1_A": ("<f4", 0),
    "ctf/df2_A": ("<f4", 0),
    "ctf/df_angle_rad": ("<f4", 0),
    "ctf/phase_shift_rad": ("<f4", 0),
    "ctf/scale": ("<f4", 1),
    "ctf/scale_const": ("<f4", 0),
    "ctf/shift_A": ("(2,)<f4", 0),
    "ctf/tilt_A": ("(2,)<f4", 0),
    "ctf/trefoil_A": ("(2,)<f4", 0),
    "ctf/tetra_A": ("(4,)<f4", 0),
    "ctf/anisomag": ("(4,)<f4", 0),
    "ctf/bfactor": ("<f4", 0),
}
_ALIGNMENTS: dict[str, tuple[str, object]] = {
    "alignments3D/split": ("<u4", 0),
    "alignments3D/shift": ("(2,)<f4", 0),
    "alignments3D/pose": ("(3,)<f4", 0),
    "alignments3D/psize_A": ("<f4", 0),
    "alignments3D/error": ("<f4", 0),
    "alignments3D/error_min": ("<f4", 0),
    "alignments3D/resid_pow": ("<f4", 0),
    "alignments3D/slice_pow": ("<f4", 0),
    "alignments3D/image_pow": ("<f4", 0),
    "alignments3D/cross_cor": ("<f4", 0),
    "alignments3D/alpha": ("<f4", 1),
    "alignments3D/alpha_min": ("<f4", 1),
    "alignments3D/weight": ("<f4", 0),
    "alignments3D/pose_ess": ("<f4", 0),
    "alignments3D/shift_ess": ("<f4", 0),
    "alignments3D/class_posterior": ("<f4", 1),
    "alignments3D/class": ("<u4", 0),
    "alignments3D/class_ess": ("<f4", 1),
}


def write_cryosparc(table: ParticleTable, path: Path) -> None:
    """Write the particles as a .cs file, atomically; see `records_from_table`."""
    with replacing(path) as temporary:
        write_records(records_from_table(table), temporary)


def lost_in_records(table: ParticleTable) -> list[str]:
    """Columns that new records do not say; records that the particles came from keep their own."""
    if table.dataset is not None:
        return []
    said = SAID_BY_FIELDS
    if missing_columns(table, ANGLE_COLUMNS):  # half sets and classes are fields of the poses
        said = said - {"rlnRandomSubset", CLASS_NUMBER}
    columns = [*table.particles, *(() if table.optics is None else table.optics)]
    return [name for name in dict.fromkeys(columns) if name not in said and not name.startswith(OWN)]


def records_from_table(table: ParticleTable) -> np.ndarray:
    """cryoSPARC's records of the particles, (n,).

    Those that the particles came from, with whatever has changed in the table since; or new ones, as an
    import of the table would make them.
    """
    if table.dataset is None:
        records, before = _new_records(table), pd.DataFrame()
    else:
        records, before = table.dataset, table_from_records(table.path, table.dataset).particles
    changed = _changed_columns(table.particles, before)
    if changed & {*CTF_COLUMNS[:3], "rlnPhaseShift"}:
        records = with_fields(records, _ctf_fields(table, records))
    poses = poses_from_table(table)
    has_new_poses = bool(changed & {*ANGLE_COLUMNS, *ORIGIN_COLUMNS, *ORIGIN_PIXEL_COLUMNS})
    if poses is not None and has_new_poses and "alignments3D/pose" not in field_names(records):
        changed = changed | set(table.particles)  # fields that are new hold nothing yet
        sizes = {"alignments3D/psize_A": pixel_sizes_from_table(table)}
        records = with_fields(with_fields(records, _filled(len(table), _ALIGNMENTS)), sizes)
    if poses is not None and "alignments3D/pose" in field_names(records):
        records = with_fields(records, _alignment_fields(table, poses, records, changed))
    return _with_own_columns(table, records)


def _changed_columns(particles: pd.DataFrame, before: pd.DataFrame) -> set[str]:
    """Columns that are new or say something else than before."""
    return {
        name for name in particles if name not in before or particles[name].tolist() != before[name].tolist()
    }


def _ctf_fields(table: ParticleTable, records: np.ndarray) -> Fields:
    """Defocus and phase shift, and the whole CTF where there was none."""
    if ctf_from_table(table) is None:
        missing = missing_columns(table, CTF_COLUMNS)
        raise InputError(f"{table.path}: expected {missing[0]} for the CTF, found none; add the column")
    columns, fields = CTF_OF_PARTICLES, Fields()
    if "ctf/df1_A" not in field_names(records):
        fields = _filled(len(table), _CTF)
        columns = CTF_OF_PARTICLES | CTF_OF_GROUPS | {"ctf/exp_group_id": "rlnOpticsGroup"}
    for field, column in columns.items():
        values = number_column(table, column)
        if values is not None:
            fields[field] = np.deg2rad(values) if field.endswith("_rad") else values
    return _like(fields, _CTF)


def _alignment_fields(table: ParticleTable, poses: Poses, records: np.ndarray, changed: set[str]) -> Fields:
    """Pose, shift and half set, each where the table says something new of it."""
    fields: Fields = {}
    if changed & set(ANGLE_COLUMNS):
        fields["alignments3D/pose"] = unitquat_to_rotvec(poses.quaternions.double()).numpy()
    if any(name.startswith("rlnOrigin") for name in changed):
        known = "alignments3D/psize_A" in field_names(records)
        sizes = records["alignments3D/psize_A"] if known else pixel_sizes_from_table(table)
        if not (sizes > 0).all():  # a field that nobody filled, beside shifts of 0
            sizes = fields["alignments3D/psize_A"] = np.where(sizes > 0, sizes, pixel_sizes_from_table(table))
        fields["alignments3D/shift"] = poses.shifts_angstrom.double().numpy() / sizes[:, None]
    half_sets = half_sets_from_table(table)
    if "rlnRandomSubset" in changed and half_sets is not None:
        fields["alignments3D/split"] = half_sets.numpy() - 1
    classes = number_column(table, CLASS_NUMBER) if CLASS_NUMBER in changed else None
    if classes is not None:
        fields["alignments3D/class"] = classes.clip(min=1) - 1
    return _like(fields, _ALIGNMENTS)


def _with_own_columns(table: ParticleTable, records: np.ndarray) -> np.ndarray:
    """The records with our columns of the table, instead of those of an earlier prediction."""
    fields: Fields = {}
    for column in table.particles:
        values = number_column(table, column) if column.startswith(OWN) else None
        if values is not None:
            fields[f"{OWN}/{column.removeprefix(OWN)}"] = values.astype("<f4")
    return with_fields(without_fields(records, f"{OWN}/", fields), fields)


def _new_records(table: ParticleTable) -> np.ndarray:
    """Records of the images alone, with a uid that is the same for the same image name.

    Further copies of an image, as in a symmetry-expanded set, have uids of their own.
    """
    slices, stacks = parsed_image_names(table)
    images = table.particles["rlnImageName"]
    copies = images.groupby(images).cumcount()
    names = (
        (f"{name} {copy}" if copy else name).encode("utf-8", "surrogateescape")
        for name, copy in zip(images, copies, strict=True)
    )
    digests = (hashlib.blake2b(name, digest_size=8) for name in names)
    uids = np.array([int.from_bytes(digest.digest(), "little") for digest in digests], dtype="<u8")
    fields: Fields = {
        "blob/path": np.array([stack.encode("utf-8", "surrogateescape") for stack in stacks]),
        "blob/idx": np.array(slices, dtype="<u4"),
        "blob/psize_A": pixel_sizes_from_table(table).astype("<f4"),
    }
    boxes = number_column(table, "rlnImageSize")
    if boxes is not None:
        fields["blob/shape"] = np.stack([boxes, boxes], axis=-1).astype("<u4")
    return with_fields(uids.view([("uid", "<u8")]), fields | _filled(len(table), _BLOB))


def _filled(count: int, defaults: Mapping[str, tuple[str, object]]) -> Fields:
    """The default fields, ``count`` times."""
    kinds = {name: np.dtype(kind) for name, (kind, _) in defaults.items()}
    return {name: np.full((count, *kind.shape), defaults[name][1], kind.base) for name, kind in kinds.items()}


def _like(fields: Fields, defaults: Mapping[str, tuple[str, object]]) -> Fields:
    """The same fields in the number formats of the defaults."""
    return {name: values.astype(np.dtype(defaults[name][0]).base) for name, values in fields.items()}
