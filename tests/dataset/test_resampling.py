"""Images at another box and pixel size: the same picture, to the limit of both samplings."""

import numpy as np
import pytest
import scipy.signal
import torch
from helpers.clean_images import seeded
from torch import Tensor

from cryoforum.dataset.image_grid import ImageGrid
from cryoforum.dataset.resampling import resample_volume, resampled, resampling_matrix
from cryoforum.dataset.volumes import Volume
from cryoforum.geometry.rotations import random_unitquat
from cryoforum.imaging.fft import crop_or_pad, phase_shift, to_fourier, to_real
from cryoforum.imaging.projection import cropped_transform, project
from cryoforum.molecules.structures import load_structure

FINE, COARSE = ImageGrid(96, 1.5), ImageGrid(64, 2.25)  # one field of view


def at(images: Tensor, old: ImageGrid, new: ImageGrid) -> Tensor:
    return resampled(images, old, new)[torch.arange(len(images))]


def noise(count: int, box: int) -> Tensor:
    return torch.randn(count, box, box, generator=seeded(1))


def blobs(sampling: ImageGrid, width_angstrom: float = 9.0) -> Tensor:
    """Three Gaussians off the centre, as their formula says at each pixel: no frequency beyond either
    Nyquist has a part in them above 1e-6.
    """
    axis = (
        torch.arange(sampling.box, dtype=torch.float64) - sampling.box // 2
    ) * sampling.pixel_size_angstrom
    image = torch.zeros(sampling.box, sampling.box, dtype=torch.float64)
    for x, y, height in ((-12.0, 5.0, 1.0), (3.3, -14.7, 0.6), (10.1, 9.9, 1.4)):
        distance = (axis[:, None] - y) ** 2 + (axis - x) ** 2
        image += height * torch.exp(-distance / (2 * width_angstrom**2))
    return image.float()[None]


@pytest.mark.parametrize("new", [FINE, COARSE, ImageGrid(50, 2.1), ImageGrid(128, 1.3), ImageGrid(120, 1.9)])
@pytest.mark.parametrize("old", [FINE, COARSE, ImageGrid(88, 1.81)])
def test_a_smooth_picture_is_what_its_formula_says_at_any_sampling(old: ImageGrid, new: ImageGrid) -> None:
    found = at(blobs(old), old, new)
    assert found.shape == (1, new.box, new.box)
    inside = slice(new.box // 2 - 10, new.box // 2 + 10)  # further out old boxes end, and the blobs with them
    assert torch.allclose(found[:, inside, inside], blobs(new)[:, inside, inside], atol=2e-3)


def test_the_same_sampling_gives_the_same_images_to_the_bit() -> None:
    images = noise(2, 96)
    assert resampled(images, FINE, ImageGrid(96, 1.5 * (1 + 5e-5))) is images


@pytest.mark.parametrize("new_box", [48, 96, 128, 160])
def test_in_one_field_of_view_it_is_the_cropping_or_padding_of_the_transform(new_box: int) -> None:
    images = noise(3, 96)
    found = at(images, FINE, ImageGrid(new_box, 1.5 * 96 / new_box))
    if new_box == 96:
        assert torch.equal(found, images)
        return
    expected = to_real(crop_or_pad(to_fourier(images), 96, new_box), new_box)
    assert torch.allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(("new_box", "pixel_size"), [(96, 1.0), (24, 4.0)])
def test_integer_ratios_agree_with_scipy(new_box: int, pixel_size: float) -> None:
    smooth = to_real(crop_or_pad(to_fourier(noise(1, 22)), 22, 48), 48)  # nothing at either Nyquist frequency
    found = at(smooth, ImageGrid(48, 2.0), ImageGrid(new_box, pixel_size))[0].numpy()
    # scipy keeps pixel 0 where it is, we pixel n // 2
    from_origin = np.fft.ifftshift(smooth[0].numpy())
    theirs = scipy.signal.resample(scipy.signal.resample(from_origin, new_box, axis=0), new_box, axis=1)
    assert np.allclose(np.fft.fftshift(theirs), found, atol=1e-5)


@pytest.mark.parametrize("new", [ImageGrid(48, 7.5), ImageGrid(64, 4.7)])
def test_projections_of_a_map_at_either_sampling_agree(new: ImageGrid) -> None:
    old = ImageGrid(64, 5.6)
    fine = load_structure("4v5d", old.box, old.pixel_size_angstrom)
    quaternions = random_unitquat(6, generator=seeded(2))
    images = to_real(project(cropped_transform(fine.voxels), quaternions, old.box), old.box)
    voxels = resample_volume(fine, new.box, new.pixel_size_angstrom).voxels
    expected = to_real(project(cropped_transform(voxels), quaternions, new.box), new.box)
    for mine, other in zip(at(images, old, new), expected, strict=True):
        assert np.corrcoef(mine.flatten(), other.flatten())[0, 1] > 0.999


def test_shifts_in_angstrom_commute_with_resampling() -> None:
    images, shift = noise(4, 96), torch.tensor([[4.1, -7.3]]).expand(4, 2)
    shift_first = at(to_real(phase_shift(to_fourier(images), shift / 1.5), 96), FINE, COARSE)
    shift_last = to_real(phase_shift(to_fourier(at(images, FINE, COARSE)), shift / 2.25), 64)
    assert torch.allclose(shift_first, shift_last, atol=1e-4)


@pytest.mark.parametrize(("old", "new"), [(FINE, ImageGrid(60, 2.0)), (ImageGrid(60, 2.0), FINE)])
def test_there_and_back_keeps_what_both_hold(old: ImageGrid, new: ImageGrid) -> None:
    image = blobs(old)
    again = at(at(image, old, new), new, old)
    inside = slice(old.box // 2 - 12, old.box // 2 + 12)
    assert torch.allclose(again[:, inside, inside], image[:, inside, inside], atol=2e-3)


def test_white_noise_keeps_its_power_per_area_and_frequency() -> None:
    coarser = at(noise(64, 96), FINE, ImageGrid(48, 3.0))
    assert float(coarser.std()) == pytest.approx(1.5 / 3.0, rel=0.05)
    wider = at(noise(64, 96), FINE, ImageGrid(144, 1.5))  # mirrored outside: as strong there as within
    assert float(wider[:, :20].std()) == pytest.approx(1.0, rel=0.1)
    assert float(wider[:, 40:100, 40:100].std()) == pytest.approx(1.0, rel=0.05)


def test_nothing_lies_beyond_the_coarser_nyquist_frequency() -> None:
    found = to_fourier(at(noise(2, 64), COARSE, FINE)).abs()
    assert float(found[:, 33:63].max()) < 1e-3 and float(found[:, :, 33:].max()) < 1e-3
    assert float(found[:, :20, :20].mean()) > 10


@pytest.mark.parametrize("new", [ImageGrid(64, 1.0), ImageGrid(48, 1.5)])
def test_odd_boxes_lose_their_last_row_and_column(new: ImageGrid) -> None:
    """So a particle that is centred on pixel n // 2 of 65 px is centred on pixel n // 2 of the new box."""
    odd = torch.zeros(1, 65, 65)
    odd[0, 32, 32] = 1.0
    found = resampled(odd, ImageGrid(65, 1.0), new)[torch.tensor([0])][0]
    assert divmod(int(found.argmax()), new.box) == (new.box // 2, new.box // 2)
    noise = torch.randn(2, 65, 65, generator=torch.Generator().manual_seed(0))
    expected = resampled(noise[:, :64, :64], ImageGrid(64, 1.0), new)[torch.arange(2)]
    torch.testing.assert_close(resampled(noise, ImageGrid(65, 1.0), new)[torch.arange(2)], expected)


def test_images_are_not_brought_to_an_odd_box() -> None:
    with pytest.raises(ValueError, match="expected an even box to bring images to, found 95 px"):
        resampling_matrix(COARSE, ImageGrid(95, 1.0))


@pytest.mark.parametrize("ratio", [1e-7, 1e7])
def test_pixel_sizes_that_can_only_be_wrong_are_refused(ratio: float) -> None:
    expected = "none is more than 100 times the other, found 16 px and 1 Å/px"
    with pytest.raises(ValueError, match=expected):
        resampling_matrix(ImageGrid(16, 1.0), ImageGrid(16, ratio))
    with pytest.raises(ValueError, match=expected):
        resample_volume(Volume(torch.ones(16, 16, 16), 1.0), 16, ratio)
