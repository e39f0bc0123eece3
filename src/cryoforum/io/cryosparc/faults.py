"""Rows of cryoSPARC's records whose values cannot be right: not finite, never filled, in another unit.

cryosparc-tools fills the fields that it makes with zeros, and who writes a .cs file by hand may forget some.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoforum.dataset.columns import OWN
from cryoforum.dataset.particle_table import and_further_rows, numbers_of_rows
from cryoforum.errors import InputError
from cryoforum.io.cryosparc.classes import SINGLE
from cryoforum.io.cryosparc.records import field_names, numbers, texts
from cryoforum.io.relion.units import ABERRATION, AMPLITUDE_CONTRAST, DEFOCUS, VOLTAGE

logger = logging.getLogger(__name__)

_SHAPES: dict[str, tuple[int, ...]] = {  # of the fields that are read
    "blob/idx": (),
    "blob/psize_A": (),
    "blob/shape": (2,),
    "ctf/accel_kv": (),
    "ctf/cs_mm": (),
    "ctf/amp_contrast": (),
    "ctf/df1_A": (),
    "ctf/df2_A": (),
    "ctf/df_angle_rad": (),
    "ctf/phase_shift_rad": (),
    f"{SINGLE}/pose": (3,),
    f"{SINGLE}/shift": (2,),
    f"{SINGLE}/psize_A": (),
    "location/micrograph_shape": (2,),
    "location/center_x_frac": (),
    "location/center_y_frac": (),
}
_QUANTITIES = {
    "ctf/accel_kv": VOLTAGE,
    "ctf/cs_mm": ABERRATION,
    "ctf/amp_contrast": AMPLITUDE_CONTRAST,
    "ctf/df1_A": DEFOCUS[0],
    "ctf/df2_A": DEFOCUS[1],
}


@dataclass(frozen=True)
class _Fault:
    """Rows that are wrong, (n,) bool; what was expected there, and what was found in the first."""

    wrong: np.ndarray
    expected: str
    found: str


def refuse_faults(path: Path, records: np.ndarray) -> None:
    """InputError that names the first fault, its rows and what to do; read alignments are alignments3D/…."""
    for fault in _faults(path, records):
        row = int(fault.wrong.argmax())
        others = ", or leave such particles out with cryoforum convert --drop-unusable"
        raise InputError(
            f"{path}, row {row + 1} (uid {records['uid'][row]}): expected {fault.expected}, "
            f"found {fault.found}{and_further_rows(fault.wrong)}; correct the field"
            f"{'' if fault.wrong.all() else others}"
        )


def rows_without_faults(path: Path, records: np.ndarray) -> np.ndarray:
    """Mask (n,) of the rows that can be used; every fault is logged. InputError where none is left."""
    usable = np.ones(len(records), dtype=bool)
    for fault in _faults(path, records):
        logger.warning(
            f"{path}: {fault.wrong.sum()} of {len(records)} particles are left out "
            f"(rows {numbers_of_rows(fault.wrong)}): expected {fault.expected}, found {fault.found}"
        )
        usable &= ~fault.wrong
    if not usable.any():
        raise InputError(f"{path}: expected particles that can be used, found none")
    return usable


def _faults(path: Path, records: np.ndarray) -> Iterator[_Fault]:
    names = field_names(records)
    empty = np.array([not name for name in texts(records["blob/path"])])
    if empty.any():
        yield _Fault(empty, "the name of a stack in field blob/path", "an empty one")
    own = {name: () for name in names if name.startswith(f"{OWN}/")}
    for name, shape in (_SHAPES | own).items():
        if name not in names:
            continue
        values = numbers(path, records, name, shape)
        wrong = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if wrong.any():
            yield _Fault(wrong, f"a number in field {name}", f"{values[wrong][0]}")
        quantity = _QUANTITIES.get(name)
        if quantity is None:
            continue
        wrong = quantity.is_impossible(values)
        if wrong.any():
            value = values[wrong][0]
            yield _Fault(wrong, quantity.expected(f"field {name}"), f"{value:g}{quantity.remedy(value)}")
    # In what unit a pixel size is, is asked where it is used: `convert` may have to correct it.
    sizes = numbers(path, records, "blob/psize_A")
    if (sizes <= 0).any():
        yield _Fault(sizes <= 0, "a pixel size > 0 Å in field blob/psize_A", f"{sizes[sizes <= 0][0]:g}")
    yield from _unknown_shifts(path, records)


def _unknown_shifts(path: Path, records: np.ndarray) -> Iterator[_Fault]:
    """Shifts in pixels of which nobody knows the size: the image's own may be another."""
    shift, size = f"{SINGLE}/shift", f"{SINGLE}/psize_A"
    if not {shift, size} <= set(field_names(records)):
        return
    wrong = records[shift].any(axis=1) & ~(numbers(path, records, size) > 0)
    if wrong.any():
        yield _Fault(
            wrong,
            f"a pixel size > 0 Å in field {size}, in whose pixels {shift} is counted",
            f"{records[size][wrong][0]:g}",
        )
