"""Atoms and maps become volumes of the right place, axes, sum, symmetry and size."""

import gzip
import runpy
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch
from helpers.messages import logged, silence
from scipy.spatial.transform import Rotation

from cryoforum.dataset.resampling import resample_volume
from cryoforum.dataset.volumes import Volume
from cryoforum.io.mrc.maps import write_volume
from cryoforum.molecules.potential import Atoms, atoms_to_volume, load_molecule, read_atoms
from cryoforum.molecules.structures import load_structure

SCRIPT = Path(__file__).parents[2] / "scripts" / "pack_molecules.py"
PDB_ATOM = (
    "ATOM  {serial:5d}  {element:<3s} GLY A{serial:4d}    {x:8.3f}{y:8.3f}{z:8.3f}"
    "  1.00 20.00          {element:>2s}\n"
)


def atoms_at(positions: list[list[float]], elements: list[int]) -> Atoms:
    count = len(elements)
    return Atoms(
        np.array(positions, dtype=np.float32),
        np.array(elements, dtype=np.uint8),
        np.full(count, 20.0, dtype=np.float32),
    )


def write_pdb(path: Path, atoms: Atoms) -> Path:
    lines = [
        PDB_ATOM.format(serial=row + 1, element=gemmi.Element(int(number)).name.upper(), x=x, y=y, z=z)
        for row, (number, (x, y, z)) in enumerate(
            zip(atoms.elements, atoms.positions_angstrom.tolist(), strict=True)
        )
    ]
    path.write_text("".join(lines) + "END\n")
    return path


def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])


def smooth_volume(box: int, pixel_size_angstrom: float) -> Volume:
    """Two Gaussians, of 12 and 9 Å, off the centre and off each other."""
    axis = (torch.arange(box, dtype=torch.float64) - box // 2) * pixel_size_angstrom
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    first = torch.exp(-((x - 10) ** 2 + y**2 + (z + 5) ** 2) / (2 * 12**2))
    second = torch.exp(-((x + 7) ** 2 + (y - 15) ** 2 + (z - 9) ** 2) / (2 * 9**2))
    return Volume((first + second).float(), pixel_size_angstrom)


@pytest.mark.parametrize(("name", "count"), [("4v5d", 148_020), ("6z6u", 32_618)])
def test_shipped_molecules_are_whole_and_centred(name: str, count: int) -> None:
    atoms = load_molecule(name)
    assert len(atoms) == count
    assert atoms.positions_angstrom.shape == (count, 3)
    assert (atoms.positions_angstrom.dtype, atoms.elements.dtype) == (np.float32, np.uint8)
    assert set(atoms.elements.tolist()) <= {6, 7, 8, 11, 12, 15, 16, 30}
    masses = np.array([gemmi.Element(int(number)).weight for number in atoms.elements])
    np.testing.assert_allclose(masses @ atoms.positions_angstrom / masses.sum(), 0, atol=0.01)


@pytest.mark.parametrize(("name", "box", "pixel_size"), [("4v5d", 64, 5.6), ("6z6u", 64, 2.5)])
def test_volume_keeps_the_sum_and_the_centre(name: str, box: int, pixel_size: float) -> None:
    atoms = load_molecule(name)
    volume = atoms_to_volume(atoms, box, pixel_size)
    voxels = volume.voxels.double()
    assert volume.voxels.dtype == torch.float32 and volume.pixel_size_angstrom == pixel_size
    # c4322: the sum of the Gaussians' amplitudes is the form factor at zero angle
    form_factors = [sum(gemmi.Element(int(number)).c4322.a) for number in atoms.elements]
    assert float(voxels.sum()) * pixel_size**3 == pytest.approx(sum(form_factors), rel=3e-3)
    offsets = torch.arange(box, dtype=torch.float64) - box // 2
    for axis in range(3):
        profile = voxels.sum(dim=[other for other in range(3) if other != axis])
        assert abs(float((profile * offsets).sum() / profile.sum())) < 0.1


@pytest.mark.parametrize("box", [24, 25])
def test_atoms_land_on_their_voxels_in_z_y_x_order(box: int) -> None:
    pixel_size = 2.0
    atoms = atoms_at([[0, 0, 0], [6, 0, 0], [0, 10, 0], [0, 0, -14]], [6, 7, 8, 16])
    voxels = atoms_to_volume(atoms, box, pixel_size).voxels
    centre = box // 2
    strongest = {
        tuple(int(i) for i in np.unravel_index(flat, voxels.shape))
        for flat in voxels.flatten().topk(4)[1].tolist()
    }
    assert strongest == {
        (centre, centre, centre),
        (centre, centre, centre + 3),
        (centre, centre + 5, centre),
        (centre - 7, centre, centre),
    }


def test_volume_is_band_limited_at_any_pixel_size() -> None:
    # An atom between voxels must weigh as much as one on a voxel: the map is wide enough for its grid.
    for offset in (0.0, 0.5):
        atoms = atoms_at([[offset * 4.0, 0, 0]], [6])
        voxels = atoms_to_volume(atoms, 16, 4.0).voxels.double()
        spectrum = torch.fft.rfftn(voxels).abs()
        assert float(spectrum[0, 0, 8] / spectrum[0, 0, 0]) < 0.2
        assert float(voxels.sum()) * 4.0**3 == pytest.approx(sum(gemmi.Element("C").c4322.a), rel=0.01)


def test_apoferritin_has_octahedral_symmetry_with_fourfold_along_z() -> None:
    atoms = load_molecule("6z6u")
    volume = atoms_to_volume(atoms, 64, 2.5).voxels
    for rotation in Rotation.create_group("O"):
        turned = Atoms(
            rotation.apply(atoms.positions_angstrom).astype(np.float32), atoms.elements, atoms.b_factors
        )
        assert correlation(volume, atoms_to_volume(turned, 64, 2.5).voxels) > 0.99
    # An element outside the group must not pass: the test above could fail.
    turned_positions = Rotation.from_rotvec([0, 0, np.pi / 4]).apply(atoms.positions_angstrom)
    turned = Atoms(turned_positions.astype(np.float32), atoms.elements, atoms.b_factors)
    assert correlation(volume, atoms_to_volume(turned, 64, 2.5).voxels) < 0.9


def test_array_rotation_about_z_agrees_with_the_axis_order() -> None:
    volume = atoms_to_volume(load_molecule("6z6u"), 64, 2.5).voxels[1:, 1:, 1:]  # odd: centred on a voxel
    assert correlation(volume, torch.rot90(volume, 1, dims=(1, 2))) > 0.99


def test_molecule_that_does_not_fit_names_the_smallest_box() -> None:
    atoms = load_molecule("6z6u")
    with pytest.raises(ValueError, match=r"does not fit in 32 pixels of 2 Å; use a box of at least 72"):
        atoms_to_volume(atoms, 32, 2.0)
    assert atoms_to_volume(atoms, 72, 2.0).voxels.shape == (72, 72, 72)


@pytest.mark.parametrize("packing", ["", ".gz"])
@pytest.mark.parametrize("form", ["pdb", "cif"])
def test_atoms_are_read_and_centred_at_their_mass(tmp_path: Path, form: str, packing: str) -> None:
    pdb = write_pdb(tmp_path / "toy.pdb", atoms_at([[10, 20, 30], [14, 20, 30], [10, 26, 38]], [6, 6, 8]))
    path = tmp_path / f"toy.{form}"
    if form == "cif":
        gemmi.read_structure(str(pdb)).make_mmcif_document().write_file(str(path))
    if packing:
        packed = tmp_path / f"toy.{form}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    atoms = read_atoms(path)
    masses = np.array([12.011, 12.011, 15.999])
    assert atoms.elements.tolist() == [6, 6, 8]
    np.testing.assert_allclose(atoms.b_factors, 20)
    np.testing.assert_allclose(masses @ atoms.positions_angstrom / masses.sum(), 0, atol=1e-3)
    np.testing.assert_allclose(
        atoms.positions_angstrom[1] - atoms.positions_angstrom[0], [4, 0, 0], atol=1e-5
    )
    expected = atoms_to_volume(atoms, 16, 3.0).voxels
    assert torch.equal(load_structure(str(path), 16, 3.0).voxels, expected)


def test_unreadable_structures_are_refused_by_name(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pdb"
    empty.write_text("END\n")
    unknown = tmp_path / "unknown.pdb"
    unknown.write_text(PDB_ATOM.format(serial=7, element="X", x=0, y=0, z=0))
    broken = tmp_path / "broken.cif"
    broken.write_text("loop_ nothing")
    for path, reason in [
        (empty, "found none"),
        (unknown, "known elements"),
        (broken, "expected a PDB or mmCIF"),
        (tmp_path / "absent.pdb", "expected a PDB or mmCIF"),
    ]:
        with pytest.raises(ValueError, match=reason) as error:
            load_structure(str(path), 16, 3.0)
        assert path.name in str(error.value)


def test_unknown_names_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="4v5d, 6z6u"):
        load_structure("ribosome", 64, 5.6)
    with pytest.raises(ValueError, match="4v5d, 6z6u"):
        load_molecule("1abc")
    with pytest.raises(ValueError, match="above 0"):
        load_structure("6z6u", 64, 0.0)


def test_shipped_name_in_capitals_is_the_same_molecule() -> None:
    assert torch.equal(load_structure("6Z6U", 48, 3.2).voxels, load_structure("6z6u", 48, 3.2).voxels)


@pytest.mark.parametrize(
    ("box", "new_box", "new_pixel"),
    [(48, 48, 3.0), (48, 40, 3.0), (48, 63, 3.0), (48, 36, 4.1), (48, 80, 1.9)],
)
def test_resampling_gives_the_map_sampled_there(box: int, new_box: int, new_pixel: float) -> None:
    resampled = resample_volume(smooth_volume(box, 3.0), new_box, new_pixel)
    assert resampled.pixel_size_angstrom == new_pixel
    torch.testing.assert_close(resampled.voxels, smooth_volume(new_box, new_pixel).voxels, atol=2e-3, rtol=0)


def test_map_file_is_resampled_with_a_notice_only_when_needed(tmp_path: Path) -> None:
    path = tmp_path / "map.mrc"
    write_volume(smooth_volume(48, 3.0), path)
    with silence():
        same = load_structure(str(path), 48, 3.0)
    torch.testing.assert_close(same.voxels, smooth_volume(48, 3.0).voxels, atol=1e-5, rtol=0)
    with logged("resampled from 48 voxels of 3 Å to 36 of 4 Å"):
        coarse = load_structure(str(path), 36, 4.0)
    torch.testing.assert_close(coarse.voxels, smooth_volume(36, 4.0).voxels, atol=2e-3, rtol=0)


def test_packing_and_loading_return_the_atoms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Steps of more than 1638 Å overflow int16 in the difference and come back by the same wrap.
    atoms = atoms_at([[-900, 3, 0.07], [900, -4, 0], [0.12, 1, -0.07]], [6, 8, 15])
    monkeypatch.setattr("cryoforum.molecules.potential.files", lambda package: tmp_path)
    monkeypatch.setattr("cryoforum.molecules.potential.MOLECULES", ("toy",))
    pack_atoms = runpy.run_path(str(SCRIPT))["pack_atoms"]
    pack_atoms(atoms, tmp_path / "toy.npz")
    loaded = load_molecule("toy")
    np.testing.assert_allclose(loaded.positions_angstrom, atoms.positions_angstrom, atol=0.0251)
    assert loaded.elements.tolist() == [6, 8, 15] and loaded.b_factors.tolist() == [20, 20, 20]
    with pytest.raises(ValueError, match="within 1638"):
        pack_atoms(atoms_at([[2000, 0, 0]], [6]), tmp_path / "far.npz")
    assert {path.name for path in tmp_path.iterdir()} == {"toy.npz"}
