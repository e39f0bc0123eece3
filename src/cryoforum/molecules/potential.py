"""The potential of atoms as a map: PDB and mmCIF files, read and laid on a grid of voxels."""

import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError

PACKED_STEP_ANGSTROM = 0.05
_MARGIN_PIXELS = 2.0  # the blurred edge of an atom, nearly three standard deviations
_DENSITY_CUTOFF = 1e-6  # where an atom ends; leaves out less than 0.2% of the sum


@dataclass(frozen=True)
class Atoms:
    """A molecule with its centre of mass at the origin.

    positions_angstrom: (n, 3) float32, x, y, z. elements: (n,) uint8 atomic numbers.
    b_factors: (n,) float32 isotropic, Å².
    """

    positions_angstrom: NDArray[np.float32]
    elements: NDArray[np.uint8]
    b_factors: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.elements)


MOLECULES = (  # that are shipped with the package
    "4v5d",  # Thermus thermophilus 70S ribosome with mRNA and three tRNAs
    "6z6u",  # human heavy-chain apoferritin, 24 subunits, octahedral with RELION's axes
)


def load_molecule(name: str) -> Atoms:
    """A shipped molecule; coordinates to 0.05 Å and B-factors to 1 Å². See ``data/README.md``."""
    if name not in MOLECULES:
        raise InputError(f"expected one of the shipped molecules {', '.join(MOLECULES)}, found {name!r}")
    with (
        files("cryoforum.molecules.data").joinpath(f"{name}.npz").open("rb") as file,
        np.load(file) as packed,
    ):
        # Steps from atom to atom are small: zigzag-coded, low bytes apart from high ones, they compress well.
        low, high = packed["step_bytes"].astype(np.uint16)
        zigzag = low | (high << 8)
        steps = (zigzag >> 1).view(np.int16) ^ -(zigzag & 1).view(np.int16)
        positions = np.cumsum(steps, axis=-1, dtype=np.int16).T * np.float32(PACKED_STEP_ANGSTROM)
        return Atoms(positions, packed["elements"], packed["b_factors"].astype(np.float32))


def read_atoms(path: Path | str) -> Atoms:
    """The atoms of a PDB or mmCIF file (gzipped or not), centred at their centre of mass.

    Takes the first model and the first of alternative conformations, and ignores occupancies. What is
    not in the file is not added: a file that holds one asymmetric unit of a symmetric particle has to
    be expanded first, for example with ``gemmi convert --assembly=1``.
    """
    try:
        structure = gemmi.read_structure(str(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: expected a PDB or mmCIF file, found: {error}") from error
    if len(structure) == 0 or structure[0].count_atom_sites() == 0:
        raise InputError(f"{path}: expected atoms, found none; give a file with coordinates")
    structure.remove_alternative_conformations()
    atoms = [site.atom for site in structure[0].all()]
    unknown = [atom for atom in atoms if atom.element.c4322 is None or atom.element.atomic_number == 0]
    if unknown:
        raise InputError(
            f"{path}: expected atoms of known elements, found {len(unknown)} others, first "
            f"{unknown[0].name!r} (serial {unknown[0].serial}); fill in the element column or remove them"
        )
    positions = np.array([atom.pos.tolist() for atom in atoms])
    masses = np.array([atom.element.weight for atom in atoms])
    return Atoms(
        positions_angstrom=(positions - masses @ positions / masses.sum()).astype(np.float32),
        elements=np.array([atom.element.atomic_number for atom in atoms], dtype=np.uint8),
        b_factors=np.array([atom.b_iso for atom in atoms], dtype=np.float32),
    )


def atoms_to_volume(atoms: Atoms, box: int, pixel_size_angstrom: float) -> Volume:
    """Electrostatic potential of atoms on a grid, their origin at voxel ``box // 2``.

    Values are positive, in electron scattering length (Å) per Å³ (International Tables C, 4.3.2.2): their
    sum times the voxel volume is the sum of the atoms' form factors at zero angle. All atoms are blurred by
    the one B-factor that gives the sharpest of them 4π²·pixel², a standard deviation of 0.71 pixels, so that
    their transforms have fallen to exp(-π²/4) = 0.085 at Nyquist and little is aliased.
    Raises InputError where the molecule would leave the box in some orientation.
    """
    if box < 2 or not pixel_size_angstrom > 0:
        raise InputError(f"expected a box and a pixel size above 0, found {box} and {pixel_size_angstrom} Å")
    radius = float(np.linalg.norm(atoms.positions_angstrom, axis=1).max()) / pixel_size_angstrom
    smallest = 2 * math.ceil(radius + _MARGIN_PIXELS)
    if box < smallest:
        raise InputError(
            f"the molecule, {2 * radius * pixel_size_angstrom:.0f} Å across, does not fit in {box} pixels of "
            f"{pixel_size_angstrom:.4g} Å; use a box of at least {smallest}, or larger pixels"
        )
    return Volume(_blurred_potential(atoms, box, pixel_size_angstrom), pixel_size_angstrom)


def _blurred_potential(atoms: Atoms, box: int, pixel_size_angstrom: float) -> Tensor:
    """The voxels of `atoms_to_volume` (box, box, box), for atoms that fit."""
    width = box * pixel_size_angstrom
    calculator = gemmi.DensityCalculatorE()
    calculator.grid.set_unit_cell(gemmi.UnitCell(width, width, width, 90, 90, 90))
    calculator.grid.spacegroup = gemmi.SpaceGroup("P1")
    calculator.grid.set_size(box, box, box)
    calculator.cutoff = _DENSITY_CUTOFF
    calculator.blur = max(0.0, 4 * math.pi**2 * pixel_size_angstrom**2 - float(atoms.b_factors.min()))
    elements = {int(number): gemmi.Element(int(number)) for number in np.unique(atoms.elements)}
    positions = atoms.positions_angstrom.astype(np.float64) + box // 2 * pixel_size_angstrom
    columns = (positions.tolist(), atoms.elements.tolist(), atoms.b_factors.tolist())
    atom = gemmi.Atom()
    for position, number, b_factor in zip(*columns, strict=True):
        atom.pos = gemmi.Position(*position)
        atom.element = elements[number]
        atom.b_iso = b_factor
        calculator.add_atom_density_to_grid(atom)
    voxels = np.ascontiguousarray(calculator.grid.array.T, dtype=np.float32)  # gemmi indexes x, y, z
    return torch.from_numpy(voxels)
