"""cryoSPARC's .cs files as they are: NumPy records, one a particle, each with a 64-bit uid."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from cryoforum.errors import InputError

# A .cs file is an .npy file; its header names every field, and NumPy's own limit is a few dozen fields. What
# cryoSPARC writes has a few thousand bytes; NumPy reads the text as Python's literals, which takes memory.
_LARGEST_HEADER = 1_000_000
_STREAM = re.compile(rb"[\x80-\xff]CSDAT")  # the first byte has changed from version to version
_OTHER_KINDS = {
    b"PAR1": "a Parquet file; load it with cryosparc-tools and save it in the NumPy format",
    b"PK\x03\x04": "a ZIP archive; unpack it first",
}
_JOB = re.compile(r"^(?:P\d+_)?(J\d+)_")  # P3_J12_passthrough_particles.cs lies beside J12_005_particles.cs
_PASSTHROUGH = "passthrough"


def read_records(path: Path) -> np.ndarray:
    """The records (n,) of a .cs file; InputError where it is none, or cut off."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"particle file {path} not found")
    with open(path, "rb") as file:
        start = file.read(6)
    for magic, kind in _OTHER_KINDS.items():
        if start.startswith(magic):
            raise InputError(f"{path}: expected a .cs file in the NumPy format, found {kind}")
    if _STREAM.match(start):
        raise InputError(
            f"{path}: expected a .cs file in the NumPy format, found cryoSPARC's stream format; save it anew "
            "with cryosparc-tools: from cryosparc.dataset import Dataset; "
            f"Dataset.load({path.name!r}).save({f'{path.stem}_numpy.cs'!r})"
        )
    if start != b"\x93NUMPY":
        raise InputError(f"{path}: expected a cryoSPARC .cs file, found something else or a damaged one")
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False, max_header_size=_LARGEST_HEADER)
    except (ValueError, EOFError, OSError, SyntaxError, TypeError) as error:
        if "object" in str(error):
            raise InputError(
                f"{path}: expected plain records, found Python objects, which could run code; save the "
                "dataset again with cryosparc-tools"
            ) from error
        raise InputError(f"{path}: the file is damaged or cut off; copy it again ({error})") from error
    if mapped.dtype.names is None or mapped.ndim != 1:
        raise InputError(
            f"{path}: expected the records of a cryoSPARC dataset, found an array of {mapped.dtype} "
            f"with shape {mapped.shape}"
        )
    if "uid" not in mapped.dtype.names:
        fields = ", ".join(mapped.dtype.names[:5])
        raise InputError(f"{path}: expected a field uid in a cryoSPARC dataset, found only {fields}, …")
    if not len(mapped):
        raise InputError(f"{path}: expected particles, found an empty dataset")
    return np.array(mapped)


def field_names(records: np.ndarray) -> tuple[str, ...]:
    """Names of the fields, in their order."""
    return records.dtype.names or ()


def numbers(path: Path, records: np.ndarray, field: str, shape: tuple[int, ...] = ()) -> np.ndarray:
    """A field as float64 (n, *shape); InputError where it is something else."""
    kind = records.dtype[field]
    if kind.base.kind not in "biuf" or kind.shape != shape:
        expected = f"{shape[0]} numbers" if shape else "a number"
        raise InputError(f"{path}: expected {expected} a particle in field {field}, found {kind}")
    return records[field].astype(np.float64)


def write_records(records: np.ndarray, path: Path) -> None:
    """Write records as cryoSPARC does."""
    with open(path, "wb") as file:  # given a name, NumPy would append .npy
        np.save(file, records, allow_pickle=False)


def passthrough_of(path: Path) -> tuple[Path, ...]:
    """The files beside ``path`` that, by their names, hold what its job passed through."""
    path = Path(path)
    if is_named_passthrough(path):
        return ()
    beside = sorted(path.parent.glob(f"*{_PASSTHROUGH}_particles*.cs"))
    return tuple(other for other in beside if _job(other) == _job(path))


def is_named_passthrough(path: Path) -> bool:
    """Whether cryoSPARC, or who followed it, named the file as what a job passed through."""
    return _PASSTHROUGH in Path(path).name


def have_particles_in_common(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two tables of records say something of the same particle."""
    return bool(np.isin(first["uid"].astype(np.uint64), second["uid"].astype(np.uint64)).any())


def merged_records(path: Path, records: np.ndarray, companions: Sequence[Path]) -> np.ndarray:
    """The records of ``path`` with the fields that only companions have, joined by uid.

    InputError where a companion lacks a uid, or says two things of one.
    """
    for companion in companions:
        other = read_records(companion)
        # as unsigned numbers: a comparison with signed ones would be one of rounded floats
        wanted, uids = records["uid"].astype(np.uint64), other["uid"].astype(np.uint64)
        rows = _rows_of_uids(path, wanted, companion, uids)
        new = [name for name in field_names(other) if name not in field_names(records)]
        _refuse_two_meanings(companion, other[new], uids, wanted)
        records = with_fields(records, {name: other[name][rows] for name in new})
    return records


def with_fields(records: np.ndarray, fields: Mapping[str, np.ndarray]) -> np.ndarray:
    """The same records with fields replaced, keeping their number format, or appended where new."""
    known = field_names(records)
    new = {name: values for name, values in fields.items() if name not in known}
    kinds = [(name, records.dtype[name]) for name in known]
    kinds += [(name, np.dtype((values.dtype, values.shape[1:]))) for name, values in new.items()]
    result = np.zeros(len(records), dtype=kinds)
    for name in known:
        result[name] = records[name]
    for name, values in fields.items():
        result[name] = values
    return result


def without_fields(records: np.ndarray, prefix: str, but: Collection[str] = ()) -> np.ndarray:
    """The same records without the fields whose names begin with ``prefix``, except those of ``but``."""
    known = field_names(records)
    kept = [name for name in known if name in but or not name.startswith(prefix)]
    return with_fields(records[kept], {}) if len(kept) < len(known) else records


def joined_records(tables: Sequence[np.ndarray]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The records of several tables in order, with the fields that all have in one form; and the others."""
    names = dict.fromkeys(name for table in tables for name in field_names(table) if name != "uid")
    lost = tuple(name for name in names if len({_form(table, name) for table in tables}) > 1)
    uids = np.concatenate([table["uid"].astype("<u8") for table in tables])
    fields = {name: np.concatenate([table[name] for table in tables]) for name in names if name not in lost}
    return with_fields(uids.view([("uid", "<u8")]), fields), lost


def _form(table: np.ndarray, name: str) -> tuple[str, tuple[int, ...]] | None:
    """Kind of number or text, and shape, of a field; None where there is none."""
    return (table[name].dtype.kind, table[name].shape[1:]) if name in field_names(table) else None


def texts(values: np.ndarray) -> list[str]:
    """A field of file names, in bytes or in Unicode; without the > that stands for the project folder."""
    if values.dtype.kind == "S":
        names = [name.decode("utf-8", "surrogateescape") for name in values.tolist()]
    else:
        names = [str(name) for name in values.tolist()]
    return [name.removeprefix(">") for name in names]


def _job(path: Path) -> str | None:
    """J12 of P3_J12_005_particles.cs."""
    found = _JOB.match(path.name)
    return found.group(1) if found else None


def _rows_of_uids(path: Path, wanted: np.ndarray, companion: Path, uids: np.ndarray) -> np.ndarray:
    """Row of each wanted uid among the companion's."""
    known, first_rows = np.unique(uids, return_index=True)
    rows = first_rows[np.searchsorted(known, wanted).clip(max=len(known) - 1)]
    lost = uids[rows] != wanted
    if lost.any():
        row = int(lost.argmax())
        raise InputError(
            f"{companion}: expected uid {wanted[row]} of row {row + 1} in {path}, found none "
            f"({lost.sum()} of {len(wanted)} are missing); give the passthrough file of the same job"
        )
    return rows


def _refuse_two_meanings(companion: Path, added: np.ndarray, uids: np.ndarray, wanted: np.ndarray) -> None:
    """InputError where rows of one uid say different things: whose they are cannot be told."""
    _, first_rows, group_of_row = np.unique(uids, return_index=True, return_inverse=True)
    again = np.flatnonzero(first_rows[group_of_row] != np.arange(len(uids)))
    for row in again[np.isin(uids[again], wanted)]:
        first = first_rows[group_of_row[row]]
        if added[row].tobytes() != added[first].tobytes():
            raise InputError(
                f"{companion}: expected a uid of its own for every particle, found {uids[row]} in rows "
                f"{first + 1} and {row + 1}, which differ; give every particle a uid of its own, in all files"
            )
