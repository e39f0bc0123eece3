"""Hand-made cryoSPARC records, field by field as its own files have them."""

from pathlib import Path

import numpy as np

FORMATS = {
    "blob/idx": "<u4",
    "blob/shape": "<u4",
    "ctf/exp_group_id": "<u4",
    "alignments3D/split": "<u4",
    "location/micrograph_shape": "<u4",
    "uid": "<u8",
}


def refined(count: int = 6, seed: int = 0, **changes: object) -> dict[str, np.ndarray]:
    """Fields of ``count`` particles of a refinement; changes name a field with __ for /."""
    draw = np.random.default_rng(seed)
    fields: dict[str, object] = {
        "uid": draw.integers(1, 2**63, count),
        "blob/path": np.array([b">J1/extract/stack.mrcs"] * count),
        "blob/idx": np.arange(count),
        "blob/shape": np.full((count, 2), 32),
        "blob/psize_A": np.full(count, 1.345),
        "blob/sign": np.full(count, -1.0),
        "ctf/exp_group_id": np.arange(count) % 2 + 3,
        "ctf/accel_kv": np.full(count, 300.0),
        "ctf/cs_mm": np.full(count, 2.7),
        "ctf/amp_contrast": np.full(count, 0.1),
        "ctf/df1_A": draw.uniform(1e4, 2e4, count),
        "ctf/df2_A": draw.uniform(1e4, 2e4, count),
        "ctf/df_angle_rad": draw.uniform(-3, 3, count),
        "ctf/phase_shift_rad": draw.uniform(0, 1, count),
        "ctf/tilt_A": draw.normal(size=(count, 2)),
        "alignments3D/split": np.arange(count) // 2 % 2,
        "alignments3D/pose": rotation_vectors(draw, count),
        "alignments3D/shift": draw.normal(0, 4, (count, 2)),
        "alignments3D/psize_A": np.full(count, 2.69),
        "alignments3D/alpha": draw.uniform(0.5, 1.5, count),
    }
    fields |= {name.replace("__", "/"): values for name, values in changes.items()}
    return {name: formatted(name, values) for name, values in fields.items()}


def rotation_vectors(draw: np.random.Generator, count: int) -> np.ndarray:
    """Axes in all directions, with angles up to just below a half turn."""
    axes = draw.normal(size=(count, 3))
    return axes / np.linalg.norm(axes, axis=1, keepdims=True) * draw.uniform(0, 3.14, (count, 1))


def formatted(name: str, values: object) -> np.ndarray:
    array = np.asarray(values)
    return array if array.dtype.kind in "SU" else array.astype(FORMATS.get(name, "<f4"))


def only(fields: dict[str, np.ndarray], *prefixes: str) -> dict[str, np.ndarray]:
    """The uid and the fields of some prefixes."""
    return {name: values for name, values in fields.items() if name.startswith(("uid", *prefixes))}


def records(fields: dict[str, np.ndarray]) -> np.ndarray:
    kinds = [(name, values.dtype, values.shape[1:]) for name, values in fields.items()]
    array = np.empty(len(fields["uid"]), dtype=kinds)
    for name, values in fields.items():
        array[name] = values
    return array


def write(path: Path, fields: dict[str, np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.save(file, records(fields))
    return path
