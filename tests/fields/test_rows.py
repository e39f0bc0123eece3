"""One way to say which rows are meant, for every noun; and what is none is refused in one line."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cryoforum.dataset.images import Images, SelectedImages
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.predictions import Predictions
from cryoforum.distributions.bingham import OrientationPosterior
from cryoforum.errors import InputError
from cryoforum.fields.rows import as_rows, concatenate
from cryoforum.geometry.rotations import random_unitquat

COUNT = 6
MASK = [False, True, False, False, True, False]
# The natural ways, and the rows that they mean.
WAYS: list[tuple[Any, list[int]]] = [
    (2, [2]),
    (-1, [5]),
    (np.int64(3), [3]),
    (torch.tensor(4), [4]),
    (slice(4), [0, 1, 2, 3]),
    (slice(None, None, -2), [5, 3, 1]),
    ([4, 1, 1], [4, 1, 1]),
    ([], []),
    (range(1, 3), [1, 2]),
    (MASK, [1, 4]),
    (np.array([5, -6]), [5, 0]),
    (np.array(MASK), [1, 4]),
    (torch.tensor([3, 0], dtype=torch.int32), [3, 0]),
    (torch.tensor(MASK), [1, 4]),
    (pd.Series(MASK), [1, 4]),
    (np.array([1, 2, 3])[::-1], [3, 2, 1]),
]
IDS = [f"{type(index).__name__} {index!s:.30}".replace("\n", " ") for index, _ in WAYS]


@pytest.fixture(scope="module")
def particles() -> Particles:
    generator = torch.Generator().manual_seed(0)
    images = torch.arange(COUNT).float()[:, None, None].expand(COUNT, 4, 4).clone()
    names = tuple(f"{row + 1}@stack.mrcs" for row in range(COUNT))
    poses = Poses(random_unitquat(COUNT, generator=generator), torch.rand(COUNT, 2, generator=generator))
    return Particles(images, 2.0, names, poses, half_sets=torch.arange(COUNT) % 2 + 1)


@pytest.mark.parametrize(("index", "rows"), WAYS, ids=IDS)
def test_every_natural_way_to_say_which_rows(particles: Particles, index: Any, rows: list[int]) -> None:
    assert particles.poses is not None and particles.half_sets is not None
    assert as_rows(index, COUNT).tolist() == rows
    for chosen in (particles[index], particles.select(index)):
        assert chosen.names == tuple(particles.names[row] for row in rows) and len(chosen) == len(rows)
        assert chosen.images[:].shape == (len(rows), 4, 4)
        assert chosen.images[:][:, 0, 0].tolist() == rows
        assert chosen.poses is not None and chosen.half_sets is not None
        assert torch.equal(chosen.poses.quaternions, particles.poses.quaternions[rows])
        assert torch.equal(chosen.half_sets, particles.half_sets[rows])
    assert torch.equal(particles.poses[index].shifts_angstrom, particles.poses.shifts_angstrom[rows])
    posterior = OrientationPosterior(torch.eye(4) * torch.arange(COUNT)[:, None, None])
    predictions = Predictions(posterior, torch.arange(COUNT) / 10)[index]
    assert predictions.expected_error_rad.tolist() == (torch.arange(COUNT) / 10)[rows].tolist()
    assert predictions.posterior.concentration[:, 0, 0].tolist() == rows


@pytest.mark.parametrize(("index", "rows"), WAYS, ids=IDS)
def test_images_that_are_read_when_asked_for_are_indexed_as_tensors_are(
    particles: Particles, index: Any, rows: list[int]
) -> None:
    """A number gives one image, without the axis of the stack."""
    lazy: Images = SelectedImages(particles.images, torch.arange(COUNT))
    in_memory = particles.images[:][
        np.asarray(index).copy() if not isinstance(index, slice | list) else list(rows)
    ]
    assert lazy[index].shape == (in_memory.shape if isinstance(in_memory, Tensor) else (4, 4))
    assert torch.equal(lazy[index].reshape(-1, 4, 4)[:, 0, 0], torch.tensor(rows).float())


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (COUNT, "expected rows from 0 to 5, found 6"),
        (-COUNT - 1, "expected rows from 0 to 5, found -7"),
        ([0, 6], "expected rows from 0 to 5, found 6"),
        (MASK[:-1], "expected a mask of 6 booleans, found 5 values"),
        (
            torch.ones(6, 1, dtype=torch.bool),
            r"expected a mask of 6 booleans, found values of shape \(6, 1\)",
        ),
        (True, "expected row numbers or a mask, found True"),
        (1.0, "expected row numbers or a mask, found 1.0"),
        (torch.tensor([0.0, 1.0]), "expected row numbers or a mask, found 2 values of torch.float32"),
        ("3", "expected row numbers or a mask"),
        (None, "expected row numbers or a mask, found None"),
        ([[0], [1, 2]], "expected row numbers or a mask"),
        (slice("a"), "expected a slice of row numbers"),
        (([0, 1], [1]), "expected row numbers or a mask"),
    ],
)
def test_what_means_no_rows_is_refused_in_one_line(particles: Particles, index: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}[^\n]*$"):
        as_rows(index, COUNT)
    with pytest.raises(InputError, match=message):
        particles[index]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.booleans(), max_size=12), st.integers(0, 12), st.sampled_from([list, np.array, torch.tensor])
)
def test_no_mask_of_another_length_passes(mask: list[bool], count: int, kind: Any) -> None:
    index = kind(mask) if mask else torch.zeros(0, dtype=torch.bool)
    if len(mask) == count:
        assert as_rows(index, count).tolist() == np.flatnonzero(mask).tolist()
    else:
        with pytest.raises(InputError, match="a mask of"):
            as_rows(index, count)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-8, 8), min_size=1, max_size=6), st.integers(0, 6))
def test_rows_are_those_of_a_list_and_no_other(rows: list[int], count: int) -> None:
    known = list(range(count))
    try:
        expected = [known[row] for row in rows]
    except IndexError:
        with pytest.raises(IndexError):
            as_rows(rows, count)
        return
    assert as_rows(rows, count).tolist() == expected


@settings(max_examples=200, deadline=None)
@given(st.slices(6))
def test_slices_are_those_of_a_list(index: slice) -> None:
    assert as_rows(index, 6).tolist() == list(range(6))[index]


def test_a_loop_goes_through_the_rows_one_by_one(particles: Particles) -> None:
    assert [one.names for one in particles] == [(name,) for name in particles.names]  # type: ignore[attr-defined]


def test_what_is_chosen_is_not_checked_again(monkeypatch: pytest.MonkeyPatch, particles: Particles) -> None:
    """Batches are cut thousands of times."""

    def refuse(noun: Any) -> None:
        raise AssertionError("checked again")

    poses = particles.poses
    assert poses is not None
    for kind in (Poses, Particles):
        monkeypatch.setattr(kind, "__post_init__", refuse)
    assert len(particles[:3]) == 3 and len(poses[1:]) == 5


@dataclass(frozen=True)
class Optional:
    values: Tensor | None


def test_a_field_in_some_parts_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="in all of 2 parts or in none"):
        concatenate([Optional(None), Optional(torch.ones(1))])
