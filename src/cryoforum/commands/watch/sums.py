"""Running half maps: sums on disk that hold a list of what was added, so that nothing is added twice."""

import json
import logging
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from cryoforum.dataset.particles import Particles
from cryoforum.reconstruction.inversion import HalfSums, add_to_sums, empty_sums
from cryoforum.storage.files import replacing

logger = logging.getLogger(__name__)

FORMAT = "cryo-forum sums 2"
SAVED_EVERY = 100_000  # particles added, where many are: what a kill may cost


def updated_sums(
    path: Path,
    wanted: Sequence[str],
    particles_of: Callable[[str], Particles | None],
    is_settled: bool = True,
) -> HalfSums | None:
    """The sums of all ``wanted`` entries, saved in ``path``; None where they hold no particle.

    An entry is added once, from the particles that ``particles_of`` it gives (None: no particle counts). Sums
    that hold anything else cannot be corrected, and begin anew; where ``is_settled`` this is news.
    """
    found = load_sums(path)
    if found is not None and not set(found[1]) <= set(wanted):
        if is_settled:
            logger.info("particles of the map have changed: it is summed up anew")
        found = None
    sums, held = (None, []) if found is None else found
    known, unsaved = set(held), 0
    for entry in (entry for entry in wanted if entry not in known):
        particles = particles_of(entry)
        held.append(entry)
        if particles is not None:
            sums = sums or empty_sums(particles.box, particles.pixel_size_angstrom)
            add_to_sums(sums, particles)
            unsaved += len(particles)
        if unsaved >= SAVED_EVERY and sums is not None:
            save_sums(path, sums, held)
            unsaved = 0
    if sums is not None and unsaved:
        save_sums(path, sums, held)
    return sums


def save_sums(path: Path, sums: HalfSums, held: Sequence[str]) -> None:
    """Write sums and what they hold in one file, atomically."""
    about = {
        "format": FORMAT,
        "box": sums.box,
        "pixel_size_angstrom": sums.pixel_size_angstrom,
        "held": list(held),
    }
    with replacing(path) as temporary:
        np.savez(
            temporary, about=np.array(json.dumps(about)), data=sums.data.numpy(), weight=sums.weight.numpy()
        )


def load_sums(path: Path) -> tuple[HalfSums, list[str]] | None:
    """Sums and what they hold; None where there is no file, or a power cut damaged it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            if about["format"] != FORMAT:
                return None
            data, weight = torch.from_numpy(file["data"]), torch.from_numpy(file["weight"])
    except (FileNotFoundError, zipfile.BadZipFile, ValueError, KeyError, EOFError):
        return None
    return HalfSums(about["box"], about["pixel_size_angstrom"], data, weight), about["held"]
