"""Maps of the run: central sections, Fourier shell correlation, and which half maps are independent."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cryoforum.imaging.fft import frequency_grid
from cryoforum.io.mrc.maps import read_volume
from cryoforum.reconstruction.fsc import FSC_THRESHOLD
from cryoforum.report import figures
from cryoforum.report.canvas import picture
from cryoforum.report.inputs import read_csv, read_json
from cryoforum.report.layout import Exhibit, Panel, Section
from cryoforum.report.wording import listed

RECONSTRUCTIONS = {
    "true": "True poses",
    "network": "Network alone",
    "predicted": "Predicted poses",
    "filtered": "Predicted, filtered",
    figures.MAP: "Map",
}
REFINED_RECONSTRUCTIONS = RECONSTRUCTIONS | {
    "predicted": "Predicted and refined",
    "filtered": "Refined, filtered",
}
_CLASS = re.compile(r"class\d+")
_SECTIONS_CAPTION = (
    "Central sections of the maps, normal to z, y and x; density is bright. Where the FSC is known, a map is "
    "low-pass filtered to its unmasked resolution, so that noise beyond does not hide it. Blurred rims with "
    "a sharp middle show wrong orientations; a map that is blurred everywhere alike, wrong origins."
)
_FSC_CAPTION = (
    "Fourier shell correlation of two half maps: inside a soft mask around the molecule, without what the "
    "mask adds (corrected, by phase randomisation: the one to publish) and with it, and in the whole "
    "box. The resolution is where a curve falls below 0.143 (dotted line). Poses are as good as these images "
    "need where their curve lies on the curve of the true poses; a curve that lies above it shows that the "
    "half maps share more than the molecule."
)


def names_of_maps(folder: Path, refined: bool) -> dict[str, str]:
    """What to call the maps that the folder of a run may hold, by the name of their own folders."""
    found = (
        place.name for place in (folder / "reconstruction").glob("class*") if _CLASS.fullmatch(place.name)
    )
    classes = sorted(found, key=lambda name: int(name.removeprefix("class")))
    named = {name: f"Class {name.removeprefix('class')}" for name in classes}
    return (REFINED_RECONSTRUCTIONS if refined else RECONSTRUCTIONS) | named


def folder_of_map(folder: Path, kind: str) -> Path:
    """Where a reconstruction of a run lies: in map/, or in reconstruction/ by the kind of its poses."""
    return folder / figures.MAP if kind == figures.MAP else folder / "reconstruction" / kind


def read_resolutions(folder: Path, names: dict[str, str]) -> dict[str, Any]:
    """What resolution.json of each reconstruction says, by its kind; ``names`` as of `names_of_maps`."""
    found = {kind: read_json(folder_of_map(folder, kind) / "resolution.json") for kind in names}
    return {kind: values for kind, values in found.items() if values}


def reconstruction_section(folder: Path, names: dict[str, str]) -> Section | None:
    """Central sections and FSC curves of the maps (Fig. 4d-f); None where there is no map.

    Parameters
    ----------
    folder
        Of the run.
    names
        Reconstructions to show, by the name of their folder: as of `names_of_maps`.
    """
    sections = []
    curves: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {
        "corrected": {},
        "masked": {},
        "unmasked": {},
    }
    halves: dict[str, bool | None] = {}
    shown = [kind for kind in names if folder_of_map(folder, kind).is_dir()]
    for kind in shown:
        name = names[kind]
        place = folder_of_map(folder, kind)
        table = read_csv(place / "fsc.csv", ("frequency_per_angstrom", "fsc_unmasked"))
        if (place / "map.mrc").is_file():
            sections.append(Panel(name, central_sections(place / "map.mrc", name, table)))
        if table is not None:
            halves[name] = read_json(place / "resolution.json").get("independent")
            for masking, found in curves.items():
                if f"fsc_{masking}" in table:
                    fsc = table[f"fsc_{masking}"].to_numpy()
                    found[kind] = table["frequency_per_angstrom"].to_numpy(), fsc
    panels = [
        Panel(f"{masking.capitalize()} half maps", figures.fsc_curves(found, names, masking.capitalize()))
        for masking, found in curves.items()
        if found
    ]
    captioned = ((sections, _SECTIONS_CAPTION), (panels, _FSC_CAPTION))
    exhibits = [Exhibit(shown, caption) for shown, caption in captioned if shown]
    if not exhibits:
        return None
    text = ""
    if any(kind != figures.MAP and not _CLASS.fullmatch(kind) for kind in shown):
        text = (
            "Maps from the same images under different poses; filtered means that the least certain "
            "particles were left out. The true poses, where they are known, show what these images can give "
            "at best. "
        )
    return Section("reconstructions", "Reconstructions", text + _about_halves(halves), exhibits)


def _about_halves(halves: dict[str, bool | None]) -> str:
    """A sentence on which half maps are independent, by the name of their map; None: not known."""
    shared = [f"“{name}”" for name, independent in halves.items() if independent is False]
    apart = [f"“{name}”" for name, independent in halves.items() if independent]
    text = ""
    if shared:
        text += (
            f"The half maps are not independent in {listed(shared)}: one model or one reference aligned both "
            "half sets, the maps share its mistakes, and the resolution is optimistic. "
        )
    if apart:
        text += f"The half maps are independent in {listed(apart)}."
    if not shared and not apart:
        text = (
            "Read the FSC of predicted poses with care: where one model aligned both half sets, the "
            "half maps share its mistakes, and the resolution is optimistic."
        )
    return text


def central_sections(path: Path, name: str, fsc: pd.DataFrame | None) -> str:
    """Central sections of a map as HTML, low-pass filtered to the unmasked resolution where it is known.

    Parameters
    ----------
    path
        Of the map.
    name
        For screen readers.
    fsc
        Table with frequency_per_angstrom and fsc_unmasked; None to show the map unfiltered.
    """
    volume = read_volume(path)
    voxels = volume.voxels
    if fsc is not None:
        below = fsc["fsc_unmasked"].to_numpy() < FSC_THRESHOLD
        if below.any():
            cutoff = float(fsc["frequency_per_angstrom"].iloc[below.argmax()])
            voxels = _low_passed(voxels, cutoff * volume.pixel_size_angstrom)
    middle = len(voxels) // 2
    sections = torch.stack([voxels[middle], voxels[:, middle], voxels[:, :, middle]])
    return picture(sections, f"Central z, y and x sections of the map from {name.lower()}")


def _low_passed(voxels: torch.Tensor, cutoff: float) -> torch.Tensor:
    """A map (n, n, n) without what is finer than ``cutoff`` cycles per voxel; a Gaussian, 1/2 there."""
    y, x = frequency_grid(len(voxels))
    z = y[:, None]
    decay = (z**2 + y**2 + x**2) / max(cutoff, 1 / len(voxels)) ** 2
    return torch.fft.irfftn(torch.fft.rfftn(voxels) * torch.exp(-math.log(2) * decay), s=voxels.shape)
