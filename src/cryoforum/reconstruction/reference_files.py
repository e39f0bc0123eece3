"""References as a model folder keeps them: of all training particles, and of each of their classes.

reference.mrc         the map of all training particles: weighted, masked, cut at its resolution
reference_half1.mrc   the same of either half of them, so that half sets can stay independent
reference_half2.mrc
reference.json        FSC, highest frequency, symmetry, noise power and signal scale
class1, class2, …     the same of the particles of each class, where there are several
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryoforum.errors import InputError, require
from cryoforum.imaging.noise_model import NoiseModel
from cryoforum.io.mrc.maps import read_volume, write_volume
from cryoforum.reconstruction.reference_map import Reference
from cryoforum.storage.class_folders import class_folder, class_folders
from cryoforum.storage.files import reason_of, replacing

REFERENCE = "reference.mrc"
HALVES = ("reference_half1.mrc", "reference_half2.mrc")
DESCRIPTION = "reference.json"
REFERENCE_FILES = (DESCRIPTION, REFERENCE, *HALVES)
FORMAT = "cryo-forum reference 1"


def reference_files(folder: Path) -> list[Path]:
    """All files that belong to references of a model folder."""
    places = [Path(folder), *class_folders(folder, DESCRIPTION)]
    return [place / name for place in places for name in REFERENCE_FILES if (place / name).is_file()]


def forget_references(folder: Path) -> None:
    """Remove the references of a model folder, if there are any."""
    classes = class_folders(folder, DESCRIPTION)
    for path in reference_files(folder):
        path.unlink()
    for each in classes:
        if not any(each.iterdir()):  # what else is in it is somebody's own
            each.rmdir()


def load_references(folder: Path) -> tuple[Reference, ...]:
    """What images are compared with: the reference of each class, or the one of all; none without any.

    InputError where one is damaged.
    """
    found = [load_reference(each) for each in class_folders(folder, DESCRIPTION) or [Path(folder)]]
    return tuple(reference for reference in found if reference is not None)


def save_class_references(references: Sequence[Reference], folder: Path) -> None:
    """Write the reference of each class into a folder of its own."""
    for number, reference in enumerate(references, 1):
        place = class_folder(folder, number)
        place.mkdir(exist_ok=True)
        save_reference(reference, place)


def save_reference(reference: Reference, folder: Path) -> None:
    """Write the files of a reference with halves and noise; each replaces an earlier one only when whole."""
    folder = Path(folder)
    if reference.halves is None or reference.noise is None or reference.fsc is None:
        raise InputError("expected a reference made from particles, found a map from elsewhere")
    for volume, name in zip((reference.full, *reference.halves), (REFERENCE, *HALVES), strict=True):
        write_volume(volume, folder / name)
    noise, extent = reference.noise, len(reference.full.voxels) * reference.full.pixel_size_angstrom
    description = {
        "format": FORMAT,
        "symmetry": reference.symmetry,
        "highest_frequency": reference.highest_frequency,
        "resolution_angstrom": extent / reference.highest_frequency,
        "origin_reach_angstrom": reference.origin_reach_angstrom,
        "fsc": _rounded(reference.fsc),
        "optics_groups": list(noise.groups),
        "noise_power": _rounded(noise.power),
        "signal_power": _rounded(noise.signal),
        "signal_scale": _rounded(noise.scale),
    }
    with replacing(folder / DESCRIPTION) as temporary:
        temporary.write_text(json.dumps(description) + "\n")


def load_reference(folder: Path) -> Reference | None:
    """The reference of a model folder; None where it was trained without. InputError where it is damaged."""
    folder = Path(folder)
    if not (folder / DESCRIPTION).exists():
        return None
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        if description["format"] != FORMAT:
            raise InputError(f"its format is {description['format']!r}, not {FORMAT!r}")
        full, half1, half2 = (read_volume(folder / name) for name in (REFERENCE, *HALVES))
        spectra = [torch.tensor(description[key]) for key in ("noise_power", "signal_power", "signal_scale")]
        noise = NoiseModel(tuple(description["optics_groups"]), *spectra)
        if not full.voxels.shape == half1.voxels.shape == half2.voxels.shape:
            raise InputError("its three maps are not of one box")
        expected = (1 + len(noise.groups), len(full.voxels) // 2 + 1)
        if any(spectrum.shape != expected for spectrum in spectra):
            raise InputError(f"{DESCRIPTION} does not hold noise and signal of {expected[0]} x {expected[1]}")
        box, reach = len(full.voxels), description["origin_reach_angstrom"]
        highest = int(description["highest_frequency"])
        require(1 <= highest < box / 2, f"a highest_frequency of 1 to below {box // 2}", highest)
        if not all(bool(spectrum.isfinite().all()) for spectrum in spectra):
            raise InputError(f"{DESCRIPTION} holds noise or signal that is no finite number")
        return Reference(
            full=full,
            halves=(half1, half2),
            highest_frequency=highest,
            symmetry=str(description["symmetry"]),
            fsc=torch.tensor(description["fsc"]),
            noise=noise,
            origin_reach_angstrom=None if reach is None else float(reach),
        )
    except KeyError as error:
        reason = f"{DESCRIPTION} lacks {error}"
    except OSError as error:
        reason = reason_of(error)
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
    raise InputError(f"expected the reference written by 'cryoforum train' in {folder}: {reason}")


def _rounded(values: Tensor) -> list[Any]:
    """Six digits of each number: as many as float32 has, and a file that can be read."""
    if values.ndim > 1:
        return [_rounded(row) for row in values]
    return [float(f"{value:.6g}") for value in values.tolist()]
