"""The FSC to publish: what a mask adds is taken away, as RELION does it."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoforum.dataset.volumes import HalfMaps, Volume
from cryoforum.imaging.masks import soft_spherical_mask
from cryoforum.imaging.shells import shell_index
from cryoforum.io.mrc.maps import write_volume
from cryoforum.io.relion.star_text import read_tables
from cryoforum.reconstruction.postprocess import corrected_fsc, phases_randomised

BOX, PIXEL_SIZE = 48, 3.0


def noise(seed: int) -> torch.Tensor:
    return torch.randn(BOX, BOX, BOX, generator=torch.Generator().manual_seed(seed))


def halves(signal: float) -> HalfMaps:
    """A textured ball that fades towards high frequency, under independent noise."""
    decay = torch.exp(-(shell_index(BOX).float() / 6).square() / 2)
    texture = torch.fft.irfftn(torch.fft.rfftn(noise(11)) * decay, s=(BOX,) * 3)
    ball = signal * soft_spherical_mask(BOX, BOX / 5, 2) * (1 + texture / texture.std())
    first, second = (ball + 0.5 * noise(seed) for seed in (1, 2))
    full = Volume((first + second) / 2, PIXEL_SIZE)
    return HalfMaps(Volume(first, PIXEL_SIZE), Volume(second, PIXEL_SIZE), full, independent=True)


def test_random_phases_keep_amplitudes_and_low_shells() -> None:
    voxels = noise(0)
    randomised = phases_randomised(voxels, 9, torch.Generator().manual_seed(7))
    before, after = torch.fft.rfftn(voxels), torch.fft.rfftn(randomised)
    torch.testing.assert_close(after.abs(), before.abs(), rtol=1e-3, atol=1e-2)
    low = shell_index(BOX) < 9
    torch.testing.assert_close(after[low], before[low], rtol=1e-3, atol=1e-2)
    high = before[~low].flatten()
    correlation = (after[~low].flatten() * high.conj()).real.sum() / high.abs().square().sum()
    assert abs(float(correlation)) < 0.05


def test_a_tight_mask_lifts_the_fsc_and_the_correction_takes_it_away() -> None:
    tight = soft_spherical_mask(BOX, BOX / 10, 1)
    found = corrected_fsc(halves(2.0), tight)
    assert found.first_shell is not None
    beyond = slice(found.first_shell + 2, BOX // 2)
    assert float(found.randomised[beyond].mean()) > 0.05
    lifted = found.curve.masked[beyond] - found.curve.unmasked[beyond]
    assert float((found.curve.masked - found.corrected)[beyond].mean()) > 0.03 and float(lifted.mean()) > 0
    torch.testing.assert_close(found.corrected[: found.first_shell], found.curve.masked[: found.first_shell])
    assert found.resolution_angstrom >= found.curve.masked_resolution_angstrom


def test_maps_that_agree_everywhere_are_not_corrected() -> None:
    one = halves(2.0).full
    same = corrected_fsc(HalfMaps(one, one, one, independent=False))
    assert same.first_shell is None and torch.equal(same.corrected, same.curve.masked)


def test_the_table_has_a_column_of_each_curve() -> None:
    table = corrected_fsc(halves(2.0)).table()
    assert list(table.columns)[-4:] == ["fsc_unmasked", "fsc_masked", "fsc_randomised", "fsc_corrected"]
    assert len(table) == BOX // 2 + 1 and bool(np.isfinite(table["fsc_corrected"]).all())


def test_relion_corrects_alike(relion: Path, tmp_path: Path) -> None:
    program = relion.with_name("relion_postprocess")
    if not program.exists():
        pytest.skip("RELION is installed without relion_postprocess")
    maps = halves(2.0)
    ours = corrected_fsc(maps)
    for name, volume in (
        ("half1", maps.half1),
        ("half2", maps.half2),
        ("mask", Volume(ours.mask, PIXEL_SIZE)),
    ):
        write_volume(volume, tmp_path / f"{name}.mrc")
    files = ["--i", "half1.mrc", "--i2", "half2.mrc", "--mask", "mask.mrc", "--o", "theirs"]
    command = [program, *files, "--angpix", str(PIXEL_SIZE), "--force_mask"]
    # It ends with an error where the program that draws its PDF is not installed, after it wrote the curves.
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (tmp_path / "theirs.star").exists(), done.stdout + done.stderr
    curve = (
        dict(read_tables(tmp_path / "theirs.star"))["fsc"]["rlnFourierShellCorrelationCorrected"]
        .astype(float)
        .to_numpy()
    )
    theirs = int((curve[1:] < 0.143).argmax()) + 1
    corrected = ours.corrected.numpy()
    assert abs(int((corrected[1:] < 0.143).argmax()) + 1 - theirs) <= 1
    np.testing.assert_allclose(corrected[: theirs - 2], curve[: theirs - 2], atol=0.06)
