"""Alignments of a classification in 3D: of every particle those of its most probable class."""

import re
from collections.abc import Mapping

import numpy as np

from cryoforum.io.cryosparc.records import field_names, with_fields

SINGLE, MULTI = "alignments3D", "alignments3D_multi"
_OF_CLASS = re.compile(r"alignments_class3D_(\d+)/(\w+)")  # of versions that had fields for each class
_READ = ("pose", "shift", "psize_A", "split")


def class_counts(records: np.ndarray) -> dict[int, int]:
    """How many particles have each class, by its number from 1, as their most probable one; empty for one."""
    chosen = _chosen(records)
    if chosen is None:
        return {}
    numbers, counts = np.unique(chosen["class"] + 1, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def with_most_probable_class(records: np.ndarray) -> np.ndarray:
    """The records with alignments3D/… of each particle's most probable class, where they have none."""
    chosen = _chosen(records)
    if chosen is None:
        return records
    return with_fields(records, {f"{SINGLE}/{name}": values for name, values in chosen.items()})


def _chosen(records: np.ndarray) -> dict[str, np.ndarray] | None:
    """Fields (n, …) of the most probable class, and its number from 0; None where there is one alignment."""
    names = field_names(records)
    if f"{SINGLE}/pose" in names:
        return None
    classes = _of_multi(records) if f"{MULTI}/pose" in names else _of_classes(records)
    if not {"pose", "class_posterior"} <= set(classes):
        return None
    best = classes["class_posterior"].argmax(axis=1)
    rows = np.arange(len(records))
    chosen = {name: classes[name][rows, best] for name in _READ if name in classes}
    return chosen | {"class": classes["class"][rows, best] if "class" in classes else best}


def _of_multi(records: np.ndarray) -> Mapping[str, np.ndarray]:
    """Fields (n, classes, …); those that all classes share are repeated."""
    prefix = f"{MULTI}/"
    fields = {
        name.removeprefix(prefix): records[name] for name in field_names(records) if name.startswith(prefix)
    }
    if fields["pose"].ndim == 2:  # of a single class
        return {name: values[:, None] for name, values in fields.items()}
    count = fields["pose"].shape[1]
    shared = [name for name in ("psize_A", "split") if name in fields and fields[name].ndim == 1]
    return fields | {name: np.repeat(fields[name][:, None], count, axis=1) for name in shared}


def _of_classes(records: np.ndarray) -> Mapping[str, np.ndarray]:
    """Fields (n, classes, …) from those of each class; empty where there are none."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for name in field_names(records):
        match = _OF_CLASS.fullmatch(name)
        if match:
            found.setdefault(match[2], {})[int(match[1])] = records[name]
    numbers = sorted(found.get("class_posterior", {}))
    fields = {
        name: np.stack([of_class[number] for number in numbers], axis=1)
        for name, of_class in found.items()
        if numbers and sorted(of_class) == numbers
    }
    # the number of a class is that in the names of its fields, whatever its field "class" says
    return fields | {"class": np.tile(np.array(numbers, dtype="<u4"), (len(records), 1))}
