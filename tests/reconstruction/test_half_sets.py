"""Half sets are drawn in one place, by what an image is."""

from dataclasses import replace

import pytest
import torch

from cryoforum.dataset.particles import Particles
from cryoforum.reconstruction.half_sets import checked_half_sets, drawn_half_sets

NAMES = [f"{row + 1:06d}@Extract/job1/stack.mrcs" for row in range(2000)]


def test_both_halves_are_about_equally_large_and_the_seed_draws_others() -> None:
    first, other = drawn_half_sets(NAMES), drawn_half_sets(NAMES, seed=7)
    assert set(first.tolist()) == {1, 2}
    for halves in (first, other):
        assert abs(int((halves == 1).sum()) - 1000) < 4 * 2000**0.5 / 2  # four standard deviations
    agreement = int((first == other).sum())
    assert abs(agreement - 1000) < 4 * 2000**0.5 / 2
    within = drawn_half_sets([name for name, half in zip(NAMES, first, strict=True) if half == 1], seed=7)
    assert 0.4 < float((within == 1).float().mean()) < 0.6  # halves of a half, by another seed


def test_an_image_keeps_its_half_wherever_the_project_lies_and_however_it_is_spelt() -> None:
    moved = [name.replace("Extract/job1/", "/elsewhere/Particles/") for name in NAMES]
    short = [name.lstrip("0").replace("Extract", "./Extract") for name in NAMES]
    assert torch.equal(drawn_half_sets(moved), drawn_half_sets(NAMES))
    assert torch.equal(drawn_half_sets(short), drawn_half_sets(NAMES))
    some = torch.randperm(2000, generator=torch.Generator().manual_seed(0))[:50].tolist()
    assert torch.equal(drawn_half_sets([NAMES[row] for row in some]), drawn_half_sets(NAMES)[some])


def test_given_half_sets_count_and_wrong_ones_are_refused() -> None:
    images, names = torch.zeros(4, 8, 8), tuple(NAMES[:4])
    own = torch.tensor([2, 1, 1, 2])
    assert torch.equal(checked_half_sets(Particles(images, 1.0, names, half_sets=own)), own)
    with pytest.raises(ValueError, match="expected random subset 1 or 2, found 3 at row 1"):
        checked_half_sets(Particles(images, 1.0, names, half_sets=torch.tensor([1, 3, 2, 2])))
    with pytest.raises(ValueError, match="expected particles in both halves, found 4 in one"):
        checked_half_sets(Particles(images, 1.0, names, half_sets=torch.ones(4, dtype=torch.long)))


def test_copies_of_an_image_are_drawn_into_one_half_under_all_their_names() -> None:
    copies = [f"1@link{number}.mrcs" for number in range(20)]
    assert len(drawn_half_sets(copies).unique()) == 2
    sources = torch.zeros(20, dtype=torch.long)
    assert len(drawn_half_sets(copies, sources=sources).unique()) == 1
    some = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    again = drawn_half_sets([copies[row] for row in some.tolist()], sources=sources)
    assert torch.equal(again, drawn_half_sets(copies, sources=sources))
    apart = torch.arange(20)
    assert torch.equal(drawn_half_sets(copies, sources=apart), drawn_half_sets(copies))
    assert drawn_half_sets(["a/s.mrcs"]).tolist() == drawn_half_sets(["000001@s.mrcs"]).tolist()


def test_an_image_in_both_halves_is_refused() -> None:
    particles = Particles(
        torch.zeros(4, 8, 8),
        1.0,
        ("1@a", "2@a", "1@./a", "2@a"),
        half_sets=torch.tensor([1, 2, 2, 2]),
        sources=torch.tensor([5, 6, 5, 6]),
    )
    with pytest.raises(
        ValueError, match=r"copies of one image in one half set, found 1@a in both, rows 1 and 3"
    ):
        checked_half_sets(particles)
    together = replace(particles, half_sets=torch.tensor([1, 2, 1, 2]))
    assert checked_half_sets(together).tolist() == [1, 2, 1, 2]
