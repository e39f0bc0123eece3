"""Nouns are whole: what they hold fits together, is finite and of the right kind, or they are not made."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.untyped import untyped
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.dataset.images import SelectedImages
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.predictions import ImageEvidence, Predictions
from cryoforum.dataset.split import Split
from cryoforum.dataset.volumes import HalfMaps, Volume
from cryoforum.distributions.bingham import OrientationPosterior
from cryoforum.errors import InputError

N = 3
UPRIGHT = [[0, 0, 0, 1]] * N
NAMES = ("1@a.mrcs", "2@a.mrcs", "3@a.mrcs")


def poses(count: int = N) -> Poses:
    return Poses(untyped(np.tile([0, 0, 0, 1], (count, 1))), untyped(np.zeros((count, 2))))


def ctf(count: int = N) -> CtfParameters:
    return CtfParameters(*(untyped(np.full(count, 0.1)) for _ in range(7)))


def particles(**values: Any) -> Particles:
    given = {"images": torch.zeros(N, 4, 4), "pixel_size_angstrom": 2.0, "names": NAMES, "poses": poses()}
    return Particles(**(given | values))


def evidence(count: int = N, **values: Any) -> ImageEvidence:
    numbers = {name: np.ones(count) for name in ImageEvidence.__dataclass_fields__}
    numbers |= {"origin_covariance_angstrom2": np.ones((count, 2, 2)), "reference_half": [0] * count}
    return ImageEvidence(**(numbers | values))


def predictions(**values: Any) -> Predictions:
    return Predictions(
        **(
            {"posterior": OrientationPosterior(torch.eye(4).expand(N, 4, 4)), "expected_error_rad": [0.1] * N}
            | values
        )
    )


WRONG: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: Poses(torch.tensor(UPRIGHT) * 1.001, torch.zeros(N, 2)),
        "length 1, found 1.001 at row 0; divide",
    ),
    (lambda: Poses(torch.eye(3), torch.zeros(N, 2)), r"quaternions of shape \(n, 4\), found \(3, 3\)"),
    (
        lambda: poses(2) and Poses(UPRIGHT, np.zeros((2, 2))),
        r"shifts_angstrom of shape \(3, 2\), found \(2, 2\)",
    ),
    (lambda: Poses(UPRIGHT, [[0, 0], [0, math.nan], [0, 0]]), "finite shifts_angstrom, found .* at row 1"),
    (lambda: Poses([["a"] * 4], [[0, 0]]), "numbers for quaternions"),
    (lambda: Poses([[0, 0, 0, 1], [1]], [[0, 0]]), "numbers for quaternions"),
    (lambda: replace(ctf(), voltage_kv=np.ones(2)), r"voltage_kv of shape \(3,\), found \(2,\)"),
    (lambda: replace(ctf(), voltage_kv=[300, math.inf, 300]), "finite voltage_kv, found .* at row 1"),
    (lambda: Volume(torch.zeros(4, 4, 5), 1.0), "cubic map, found shape"),
    (lambda: Volume(torch.zeros(4, 4), 1.0), r"voxels of shape \(n, n, n\), found \(4, 4\)"),
    (lambda: Volume(torch.full((4, 4, 4), math.nan), 1.0), "finite voxels"),
    (lambda: Volume(torch.zeros(4, 4, 4), 0.0), "pixel_size_angstrom above 0, found 0.0"),
    (lambda: Volume(torch.zeros(4, 4, 4), math.nan), "pixel_size_angstrom above 0, found nan"),
    (
        lambda: HalfMaps(*[Volume(torch.zeros(4, 4, 4), size) for size in (1.0, 1.0, 2.0)], independent=True),
        "one box and pixel size",
    ),
    (lambda: particles(names=NAMES[:2]), "names of 3 particles, found 2"),
    (lambda: particles(names="abc"), "a name for each image"),
    (lambda: particles(poses=poses(2)), "poses of 3 particles, found 2"),
    (lambda: particles(poses=torch.zeros(N, 4)), "poses to be Poses, found Tensor"),
    (lambda: particles(ctf=ctf(4)), "ctf of 3 particles, found 4"),
    (lambda: particles(half_sets=[1, 2]), r"half_sets of shape \(3,\), found \(2,\)"),
    (lambda: particles(half_sets=[1, 2, 1.5]), "whole numbers for half_sets"),
    (lambda: particles(images=torch.zeros(N, 4, 5)), "square images"),
    (lambda: particles(images=np.full((N, 4, 4), np.nan)), "finite images"),
    (lambda: particles(images=None), "expected images, found NoneType"),
    (lambda: particles(pixel_size_angstrom=-1), "pixel_size_angstrom above 0, found -1"),
    (lambda: particles().with_poses(poses(2)), "poses of 3 particles, found 2"),
    (lambda: predictions(expected_error_rad=[0.1] * 2), r"expected_error_rad of shape \(3,\)"),
    (lambda: predictions(expected_error_rad=[0.1, -0.1, 0]), "expected_error_rad of 0 or more, found -0.1"),
    (lambda: predictions(evidence=evidence(2)), "evidence of 3 particles, found 2"),
    (lambda: predictions(posterior=torch.zeros(N, 4, 4)), "posterior to be OrientationPosterior"),
    (lambda: evidence(signal_scale=np.ones(2)), r"signal_scale of shape \(3,\)"),
    (lambda: Split([0, 1, 1], [2], []), "each row once in train of a split, found row 1"),
    (lambda: Split([0, 1], [2], [-1]), "rows of test from 0, found -1"),
    (lambda: Split([0.5], [2], []), "whole numbers for train"),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_what_does_not_fit_together_is_refused_in_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^[^\n]*{message}[^\n]*$"):
        make()


@pytest.mark.parametrize("kind", [lambda x: x, np.array, lambda x: np.array(x, dtype=np.float64)[::-1][::-1]])
def test_lists_and_arrays_are_converted_once(kind: Callable[[Any], Any]) -> None:
    made = Poses(kind(UPRIGHT), kind([[1.0, 2.0]] * N))
    assert made.quaternions.dtype == made.shifts_angstrom.dtype == torch.float32
    assert made.quaternions.tolist() == UPRIGHT and made.shifts_angstrom[2].tolist() == [1, 2]
    found = particles(images=kind(np.ones((N, 4, 4)).tolist()), half_sets=kind([1, 2, 1]), names=list(NAMES))
    assert isinstance(found.images, torch.Tensor) and found.images.dtype == torch.float32
    assert found.names == NAMES


def test_a_mask_keeps_names_beside_their_images() -> None:
    """A mask that was taken for row numbers gave predictions wrong names."""
    images = torch.arange(N).float()[:, None, None].expand(N, 4, 4)
    chosen = particles(images=images).select(torch.tensor([False, True, True]))
    assert chosen.names == NAMES[1:] and chosen.images[:][:, 0, 0].tolist() == [1, 2]


def test_tensors_are_taken_as_they_are_with_their_gradient() -> None:
    quaternions = torch.tensor(UPRIGHT, dtype=torch.float32, requires_grad=True)
    assert Poses(quaternions, torch.zeros(N, 2)).quaternions is quaternions


def test_images_that_are_read_later_stay_unread() -> None:
    class Unreadable(SelectedImages):
        def at(self, rows: torch.Tensor) -> torch.Tensor:
            raise AssertionError("read")

    stack = Unreadable(torch.zeros(N, 4, 4), torch.arange(N))
    assert particles(images=stack)[1:].images.shape == (2, 4, 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=6, max_size=6) | st.integers(0, 4).map(lambda count: [count] * 6))
def test_no_particles_of_unequal_lengths_are_made(lengths: list[int]) -> None:
    images, names, posed, described, halves, sources = lengths

    def make() -> Particles:
        return Particles(
            torch.zeros(images, 4, 4),
            1.0,
            tuple(map(str, range(names))),
            poses(posed),
            ctf(described),
            half_sets=torch.ones(halves, dtype=torch.long),
            sources=torch.arange(sources),
        )

    if len(set(lengths)) == 1:
        assert len(make()) == images
    else:
        with pytest.raises(InputError, match="expected"):
            make()
