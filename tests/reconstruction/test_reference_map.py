"""References: weights that a Wiener filter has, halves that stay apart, files that come back."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.clean_images import PIXEL_SIZE, blobs, clean_images, random_ctf, random_poses, seeded
from helpers.messages import logged, silence
from torch import Tensor

from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.volumes import HalfMaps, Volume
from cryoforum.imaging.masks import soft_spherical_mask
from cryoforum.imaging.noise_model import NoiseModel
from cryoforum.io.mrc.maps import write_volume
from cryoforum.reconstruction import reference_map as reference_module
from cryoforum.reconstruction.fsc import FscCurve, chance_of_fsc, fourier_shell_correlation, fsc_curve
from cryoforum.reconstruction.inversion import reconstruct
from cryoforum.reconstruction.reference_files import forget_references, load_reference, save_reference
from cryoforum.reconstruction.reference_map import (
    Reference,
    noise_of_halves,
    origin_reach_angstrom,
    reference_from_half_maps,
    reference_from_map,
    without_visible_noise,
)

BOX, COUNT = 24, 120
FILES = ("reference.json", "reference.mrc", "reference_half1.mrc", "reference_half2.mrc")


def shells_of(box: int) -> Tensor:
    """Integer shell of every element of `torch.fft.fftn`."""
    axis = torch.fft.fftfreq(box, d=1 / box)
    return (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt().round().long()


def half_maps(first: Tensor, second: Tensor) -> HalfMaps:
    """Two maps and their mean."""
    half1, half2, full = (Volume(voxels, PIXEL_SIZE) for voxels in (first, second, (first + second) / 2))
    return HalfMaps(half1, half2, full, independent=True)


def noisy_halves(deviation: float = 0.03) -> HalfMaps:
    """The blobs twice, each with noise of its own, and their mean."""
    noise = deviation * torch.randn(2, BOX, BOX, BOX, generator=seeded(0))
    return half_maps(*(blobs(BOX) + noise))


def particles(deviation: float = 1.0, seed: int = 0, strength: float = 1.0) -> Particles:
    quaternions, origins = random_poses(COUNT, seed=3)
    ctf = random_ctf(COUNT)
    clean = strength * clean_images(blobs(BOX), quaternions, origins, ctf)
    images = clean + deviation * torch.randn(clean.shape, generator=seeded(seed))
    names = tuple(str(row) for row in range(COUNT))
    poses = Poses(quaternions, origins * PIXEL_SIZE)
    return Particles(images, PIXEL_SIZE, names, poses, ctf, torch.arange(COUNT) % 2 + 1)


@pytest.fixture
def without_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask of ones, so that shells of a map can be told apart."""
    monkeypatch.setattr(reference_module, "soft_mask", lambda volume: torch.ones(BOX, BOX, BOX))


@pytest.fixture(scope="module")
def made() -> Reference:
    """A reference from particles, with their noise."""
    found = particles(deviation=0.3)
    reference = reference_from_half_maps(reconstruct(found), "C1")
    noise = noise_of_halves(reference, found)
    assert found.poses is not None
    return replace(reference, noise=noise, origin_reach_angstrom=origin_reach_angstrom(found.poses))


def test_shells_are_weighted_by_what_their_fsc_says(without_mask: None) -> None:
    maps = noisy_halves()
    reference = reference_from_half_maps(maps)
    fsc = fourier_shell_correlation(maps.half1, maps.half2).clamp(0, 1)
    shell = shells_of(BOX)
    assert reference.halves is not None and 3 < reference.highest_frequency < BOX // 2 - 1
    pairs = (
        (reference.full, maps.full, 2 * fsc / (1 + fsc)),
        (reference.halves[0], maps.half1, fsc),
        (reference.halves[1], maps.half2, fsc),
    )
    for found, plain, weight in pairs:
        expected = torch.where(shell <= reference.highest_frequency, weight[shell.clamp_max(BOX // 2)], 0.0)
        transform = torch.fft.fftn(plain.voxels) * expected
        torch.testing.assert_close(
            torch.fft.fftn(found.voxels), transform.to(torch.complex64), atol=1e-2, rtol=1e-3
        )


def test_the_weights_bring_the_map_nearest_to_the_truth(without_mask: None) -> None:
    """The best factor of a shell is the regression of the true map on the noisy one."""
    maps = noisy_halves()
    reference = reference_from_half_maps(maps)
    shell, truth = shells_of(BOX), torch.fft.fftn(blobs(BOX))
    assert reference.halves is not None
    for plain, weighted in ((maps.full, reference.full), (maps.half1, reference.halves[0])):
        noisy, filtered = torch.fft.fftn(plain.voxels), torch.fft.fftn(weighted.voxels)
        for at in range(2, reference.highest_frequency + 1):
            own = shell == at
            power = noisy[own].abs().square().sum()
            best = (truth[own] * noisy[own].conj()).real.sum() / power
            used = (filtered[own] * noisy[own].conj()).real.sum() / power
            assert float(used) == pytest.approx(float(best), abs=4 / int(own.sum()) ** 0.5)
    errors = [
        float((volume.voxels - blobs(BOX)).norm()) for volume in (reference.full, maps.full, maps.half1)
    ]
    assert errors[0] < 0.8 * errors[1] < 0.8 * errors[2]


def test_it_is_used_up_to_where_the_halves_agree() -> None:
    maps = noisy_halves()
    reference = reference_from_half_maps(maps)
    assert reference.fsc is not None
    highest = reference.highest_frequency
    assert bool((reference.fsc[1 : highest + 1] >= 0.143).all())
    beyond = slice(highest + 1, highest + 4)
    by_chance = fsc_curve(maps).unmasked[beyond] < 3 * chance_of_fsc(BOX // 2 + 1)[beyond]
    assert float(reference.fsc[highest + 1]) < 0.143 or bool(by_chance.all())
    perfect = half_maps(blobs(BOX), blobs(BOX))
    assert reference_from_half_maps(perfect).highest_frequency == BOX // 2 - 1
    strangers = torch.randn(2, BOX, BOX, BOX, generator=seeded(3))
    with pytest.raises(ValueError, match="half maps that agree"):
        reference_from_half_maps(half_maps(*strangers))


def test_what_a_mask_carries_beyond_the_shells_that_agree_is_not_used() -> None:
    """Halves of noise that share what is below shell 9, as those of noise aligned to one start do."""
    box, generator = 48, seeded(5)
    low = shells_of(box) < 9
    shared = torch.where(low, torch.fft.fftn(300 * blobs(box)), 0.0)
    noise = (torch.fft.fftn(torch.randn(box, box, box, generator=generator)) for _ in range(2))
    maps = half_maps(*(torch.fft.ifftn(shared + torch.where(low, 0.0, own)).real for own in noise))
    curve = fsc_curve(maps)
    assert float(curve.masked[9]) > 0.3 and float(curve.unmasked[9].abs()) < 0.2
    assert reference_from_half_maps(maps).highest_frequency == 8


def test_one_shell_without_signal_is_no_end() -> None:
    box, generator = 48, seeded(6)
    signal = torch.fft.fftn(100 * torch.randn(box, box, box, generator=generator))
    signal[shells_of(box) == 15] = 0
    noise = (torch.fft.fftn(torch.randn(box, box, box, generator=generator)) for _ in range(2))
    ball = half_maps(*(torch.fft.ifftn(signal + own).real for own in noise))
    curve = fsc_curve(ball, torch.ones(box, box, box))
    assert float(curve.unmasked[15].abs()) < 0.1
    assert not reference_module._agrees_by_chance(curve.unmasked, 1).any()


def test_a_half_holds_the_images_of_its_own_half_alone(
    without_mask: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What both halves share, mask and weights of the shells, is held still: the rest is their own."""

    def still(maps: HalfMaps, mask: Tensor) -> FscCurve:
        curve = torch.linspace(1, 0.2, BOX // 2 + 1)
        return FscCurve(BOX, PIXEL_SIZE, curve, curve)

    monkeypatch.setattr(reference_module, "fsc_curve", still)
    before = particles()
    other = particles(seed=5, strength=-2.0)
    assert before.half_sets is not None
    for half in (0, 1):
        images = before.images[torch.arange(COUNT)].clone()
        theirs = before.half_sets == 2 - half
        images[theirs] = other.images[torch.arange(COUNT)][theirs]
        after = replace(before, images=images)
        first, second = (reference_from_half_maps(reconstruct(found)) for found in (before, after))
        assert first.halves is not None and second.halves is not None
        assert torch.equal(first.halves[half].voxels, second.halves[half].voxels)
        assert not torch.allclose(first.halves[1 - half].voxels, second.halves[1 - half].voxels, atol=1e-3)
        assert not torch.allclose(first.full.voxels, second.full.voxels, atol=1e-3)


def test_the_own_noise_of_a_particle_does_not_pass_for_signal() -> None:
    """Of pure noise, maps are made of it too: a particle's own half seems to explain it, the other does not."""
    noise = particles(strength=0.0)
    maps = reconstruct(noise)
    reference = Reference(maps.full, (maps.half1, maps.half2), 8)
    assert noise.half_sets is not None
    fair = noise_of_halves(reference, noise)
    unfair = noise_of_halves(reference, replace(noise, half_sets=3 - noise.half_sets))
    shells = slice(2, 9)
    assert float(unfair.signal[0, shells].sum()) > 10 * float(fair.signal[0, shells].sum())
    assert float(fair.signal[0, shells].sum() / fair.power[0, shells].sum()) < 0.02
    with pytest.raises(ValueError, match="half maps and particles with poses"):
        noise_of_halves(reference_from_map(maps.full), noise)


def test_noise_and_scale_by_the_other_half_are_about_right(made: Reference) -> None:
    assert made.noise is not None
    low = slice(3, min(8, made.highest_frequency))
    ratio = made.noise.power[0, low] / (0.3**2 * BOX**2)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=0.35, rtol=0)
    assert 0.5 < float(made.noise.scale[0, low].mean()) < 1.3


def test_a_map_from_elsewhere_is_used_as_far_as_asked() -> None:
    volume = Volume(blobs(BOX), PIXEL_SIZE)
    extent = BOX * PIXEL_SIZE
    assert reference_from_map(volume).highest_frequency == int(0.9 * BOX / 2)
    for shell in (2, 5, 8):
        found = reference_from_map(volume, "D2", extent / shell)
        assert found.highest_frequency == shell and found.symmetry == "D2" and found.halves is None
        assert torch.equal(found.full.voxels, volume.voxels)
    assert reference_from_map(volume, "C1", 0.001).highest_frequency == BOX // 2 - 1
    for wrong in (0.0, -3.0, extent, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"at most {extent / 2:.0f} Å, found"):
            reference_from_map(volume, "C1", wrong)


def equal(first: NoiseModel | None, second: NoiseModel | None) -> None:
    assert first is not None and second is not None
    assert first.groups == second.groups
    for name in ("power", "signal", "scale"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=1e-5, atol=0)


def test_round_trip(made: Reference, tmp_path: Path) -> None:
    groups = torch.arange(3).float()[:, None] * torch.ones(BOX // 2 + 1) + 1
    noise = NoiseModel((4, 9), groups, 2 * groups, 3 * groups)
    for reference in (made, replace(made, symmetry="D7", noise=noise)):
        save_reference(reference, tmp_path)
        assert tuple(sorted(path.name for path in tmp_path.iterdir())) == FILES
        loaded = load_reference(tmp_path)
        assert loaded is not None and loaded.halves is not None and reference.halves is not None
        pairs = zip((loaded.full, *loaded.halves), (reference.full, *reference.halves), strict=True)
        for found, expected in pairs:
            assert torch.equal(found.voxels, expected.voxels)
            assert found.pixel_size_angstrom == pytest.approx(PIXEL_SIZE)
        assert loaded.highest_frequency == reference.highest_frequency
        assert loaded.symmetry == reference.symmetry
        assert loaded.origin_reach_angstrom == pytest.approx(reference.origin_reach_angstrom)
        assert loaded.fsc is not None and reference.fsc is not None
        torch.testing.assert_close(loaded.fsc.double(), reference.fsc.double(), rtol=1e-5, atol=1e-6)
        equal(loaded.noise, reference.noise)
    resolution = json.loads((tmp_path / "reference.json").read_text())["resolution_angstrom"]
    assert resolution == pytest.approx(BOX * PIXEL_SIZE / made.highest_frequency)


def test_a_folder_without_a_reference_has_none_and_forgetting_leaves_the_rest(
    made: Reference, tmp_path: Path
) -> None:
    assert load_reference(tmp_path) is None
    (tmp_path / "model.json").write_text("{}")
    save_reference(made, tmp_path)
    forget_references(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]
    forget_references(tmp_path)
    assert load_reference(tmp_path) is None


def test_the_reach_of_origins_leaves_out_one_in_a_hundred() -> None:
    shifts = 10 * torch.rand(500, 2, generator=seeded(0)) - 5
    far = shifts.clone()
    far[::250, 1] = -90
    for given, sign in ((shifts, 1), (far, 1), (shifts, -1)):
        poses = Poses(torch.tensor([[0.0, 0.0, 0.0, 1.0]]).expand(500, 4), sign * given)
        reach = origin_reach_angstrom(poses)
        assert 4.5 < reach <= 5
        within = (given.abs() <= reach).all(1)
        assert 0.985 < float(within.double().mean()) <= 0.995


def test_only_a_whole_reference_is_saved(made: Reference, tmp_path: Path) -> None:
    for part in (replace(made, noise=None), replace(made, halves=None), replace(made, fsc=None)):
        with pytest.raises(ValueError, match="found a map from elsewhere"):
            save_reference(part, tmp_path)
    assert list(tmp_path.iterdir()) == []


def edit(**changes: object) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        path = folder / "reference.json"
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in values.items() if value != "gone"}))

    return changed


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def other_map(name: str, box: int) -> Callable[[Path], object]:
    return lambda folder: write_volume(Volume(blobs(box), PIXEL_SIZE), folder / name)


def made_a_folder(folder: Path) -> None:
    (folder / "reference.json").unlink()
    (folder / "reference.json").mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no map": lambda folder: (folder / "reference.mrc").unlink(),
    "no half map": lambda folder: (folder / "reference_half2.mrc").unlink(),
    "map cut off": cut("reference.mrc"),
    "half map cut off": cut("reference_half1.mrc"),
    "empty map": lambda folder: (folder / "reference.mrc").write_bytes(b""),
    "half map of another box": other_map("reference_half1.mrc", 16),
    "no JSON": lambda folder: (folder / "reference.json").write_text("hello"),
    "empty description": lambda folder: (folder / "reference.json").write_text(""),
    "binary": lambda folder: (folder / "reference.json").write_bytes(b"\xff\x00"),
    "a list": lambda folder: (folder / "reference.json").write_text("[1]"),
    "a folder": made_a_folder,
    "too high a frequency": edit(highest_frequency=10**9),
    "a frequency below one": edit(highest_frequency=0),
    "noise that is no number": edit(noise_power=[[float("nan")] * (BOX // 2 + 1)]),
    "foreign JSON": lambda folder: (folder / "reference.json").write_text('{"a": 1}'),
    "of the future": edit(format="cryo-forum reference 2"),
    "without symmetry": edit(symmetry="gone"),
    "without noise": edit(noise_power="gone"),
    "noise null": edit(noise_power=None),
    "FSC null": edit(fsc=None),
    "noise of words": edit(noise_power="loud"),
    "uneven noise": edit(signal_scale=[[1.0], [1.0, 2.0]]),
    "noise of another box": edit(noise_power=[[1.0, 1.0, 1.0]]),
    "noise of fewer groups": edit(optics_groups=[1, 2, 3]),
    "groups null": edit(optics_groups=None),
    "frequency of words": edit(highest_frequency="high"),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damaged_folders_are_refused_in_one_line(made: Reference, tmp_path: Path, damage: str) -> None:
    save_reference(made, tmp_path)
    DAMAGES[damage](tmp_path)
    with pytest.raises(ValueError, match="expected the reference written by 'cryoforum train' in") as refusal:
        load_reference(tmp_path)
    message = str(refusal.value)
    assert str(tmp_path) in message and "\n" not in message and len(message) < 600


def textured_ball(box: int = 48) -> Tensor:
    """A molecule of a known place, with structure that fades towards high frequency."""
    noise = torch.randn(box, box, box, generator=seeded(0))
    decay = torch.exp(-(shells_of(box).float() / 8).square() / 2)
    texture = torch.fft.ifftn(torch.fft.fftn(noise) * decay).real
    return soft_spherical_mask(box, box / 5, 2) * (1 + texture / texture.std())


def test_a_map_with_noise_around_the_molecule_is_used_as_far_as_its_signal_goes() -> None:
    clean, box = textured_ball(), 48
    noise = 0.7 * torch.randn(clean.shape, generator=seeded(1))
    noisy = reference_from_map(Volume(clean + noise, PIXEL_SIZE))
    with logged("the reference has noise around the molecule"):
        found = without_visible_noise(noisy)
    assert 3 < found.highest_frequency < noisy.highest_frequency
    truth = fourier_shell_correlation(Volume(clean, PIXEL_SIZE), found.full)
    assert float(truth[1 : found.highest_frequency].min()) > 0.5  # where a map and the truth agree
    assert float(found.full.voxels[:4].abs().max()) == 0 and len(found.full.voxels) == box


def test_a_map_without_noise_around_the_molecule_stays_as_it_is() -> None:
    clean = reference_from_map(Volume(textured_ball(), PIXEL_SIZE))
    with silence():
        assert without_visible_noise(clean) is clean
