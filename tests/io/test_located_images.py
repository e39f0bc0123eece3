"""An image is a real file and a slice: where names lead, and which of them mean the same image."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.messages import logged, silence

from cryoforum.dataset.particle_table import ParticleTable
from cryoforum.errors import InputError
from cryoforum.io.image_paths import StackFinder, find_file, say_base
from cryoforum.io.located_images import image_numbers, located_images, numbers_by_name, numbers_by_place
from cryoforum.io.mrc.stacks import write_stack


def table(folder: Path, *names: str) -> ParticleTable:
    return ParticleTable(folder / "x.star", None, pd.DataFrame({"rlnImageName": list(names)}, dtype=str))


def touched(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(folder: Path, root: Path | None, *names: str) -> list[Path]:
    return located_images(table(folder, *names), root).stacks


def test_a_moved_project_is_found_by_the_longest_part_of_its_old_paths(tmp_path: Path) -> None:
    """Also where a stack of the same base name lies further up."""
    root = tmp_path / "new"
    stacks = [root / "job1" / "mic.mrcs", root / "job2" / "mic.mrcs"]
    touched(*stacks, root / "mic.mrcs")
    names = ["1@/old/disk/job1/mic.mrcs", "1@/old/disk/job2/mic.mrcs"]
    assert found(tmp_path, root, *names) == stacks
    assert found(tmp_path, root, *names[::-1]) == stacks[::-1]


def test_a_stack_is_no_image(tmp_path: Path) -> None:
    """A name without a slice is that of a single image; 2D stacks of RELION 5 hold a tilt series each."""
    write_stack(tmp_path / "three.mrcs", [torch.zeros(3, 8, 8)], 3, 8, 1.0)
    write_stack(tmp_path / "one.mrcs", [torch.zeros(1, 8, 8)], 1, 8, 1.0)
    assert found(tmp_path, None, "one.mrcs", "2@three.mrcs") == [
        tmp_path / "one.mrcs",
        tmp_path / "three.mrcs",
    ]
    expected = r"row 2 \(three.mrcs\): expected the slice of one image, as in 000001@three.mrcs.* holds 3; 2D"
    with pytest.raises(InputError, match=expected):
        found(tmp_path, None, "one.mrcs", "three.mrcs")


def test_a_stack_missing_in_a_moved_project_is_not_taken_from_elsewhere_in_it(tmp_path: Path) -> None:
    root = tmp_path / "new"
    touched(root / "job1" / "mic.mrcs", root / "mic.mrcs")
    with pytest.raises(InputError, match=r"row 2 .*/old/disk/job2/mic.mrcs not found, nor any part .*--root"):
        found(tmp_path, root, "1@/old/disk/job1/mic.mrcs", "1@/old/disk/job2/mic.mrcs")


def test_stacks_of_two_folders_that_would_be_one_file_below_the_root_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "flat"
    touched(root / "a.mrcs", root / "b.mrcs")
    first, second = "1@/old/job1/a.mrcs", "2@/old/job2/a.mrcs"
    with pytest.raises(
        InputError, match=r"row 3 .*/old/job1/a.mrcs and /old/job2/a.mrcs .*--root"
    ) as refusal:
        found(tmp_path, root, first, "1@/old/job1/b.mrcs", second)
    assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="two files"):  # nor does their name alone decide
        image_numbers(table(tmp_path, first, second), root)
    (root / "c.mrcs").symlink_to(root / "b.mrcs")
    with pytest.raises(InputError, match=r"/old/job1/b.mrcs and /old/job1/c.mrcs are two files"):
        found(tmp_path, root, "1@/old/job1/b.mrcs", "1@/old/job1/c.mrcs")
    assert (
        found(tmp_path, root, first, "1@/old/./job1//a.mrcs") == [root / "a.mrcs"] * 2
    )  # one name, spelt twice


def test_the_first_stack_fixes_the_folder_of_all(tmp_path: Path) -> None:
    """`b` lies only further up: it is that of other images, and is not taken for the one that is missing."""
    job = tmp_path / "project" / "job"
    touched(job / "a.mrcs", tmp_path / "project" / "a.mrcs", tmp_path / "project" / "b.mrcs")
    with pytest.raises(InputError, match=rf"row 2 .*b.mrcs not found below {job}, where a.mrcs was .*--root"):
        found(job, None, "1@a.mrcs", "1@b.mrcs")
    assert found(job, tmp_path / "project", "1@a.mrcs", "1@b.mrcs") == [
        tmp_path / "project" / "a.mrcs",
        tmp_path / "project" / "b.mrcs",
    ]
    finder = StackFinder(job)
    assert finder.base is None
    finder.find("a.mrcs")
    assert finder.base == job


def test_another_folder_than_that_of_the_file_is_told_once(tmp_path: Path) -> None:
    say_base.cache_clear()
    job = tmp_path / "project" / "job"
    touched(job / "beside.mrcs", tmp_path / "project" / "above.mrcs")
    with silence():
        found(job, None, "1@beside.mrcs")
    with logged(f"stacks are found from {tmp_path / 'project'}") as told:
        found(job, None, "1@above.mrcs", "2@above.mrcs")
        found(job, None, "3@above.mrcs")
    assert len(told) == 1


def test_a_missing_name_lists_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=rf"gone.mrcs not found; .*{tmp_path}/r/gone.mrcs, {tmp_path}/gone.mrcs"
    ):
        find_file("gone.mrcs", tmp_path, tmp_path / "r")
    with pytest.raises(
        InputError, match="/gone/a.mrcs not found; give the folder it was moved to with --root"
    ):
        find_file("/gone/a.mrcs", tmp_path)


def test_all_spellings_of_an_image_have_one_number(tmp_path: Path) -> None:
    touched(tmp_path / "a" / "s.mrcs", tmp_path / "a" / "t.mrcs")
    (tmp_path / "link.mrcs").symlink_to("a/s.mrcs")
    (tmp_path / "b").symlink_to("a")
    same = [
        "1@a/s.mrcs",
        "000001@./a//s.mrcs",
        "a/s.mrcs",
        "1@link.mrcs",
        "1@b/s.mrcs",
        f"1@{tmp_path}/a/s.mrcs",
    ]
    numbers = numbers_by_place(table(tmp_path, *same, "2@a/s.mrcs", "1@a/t.mrcs"))
    assert numbers is not None
    assert len(numbers[: len(same)].unique()) == 1 and len(numbers.unique()) == 3


def test_where_stacks_are_gone_names_count_however_they_are_spelt(tmp_path: Path) -> None:
    names = table(tmp_path, "1@gone/s.mrcs", "000001@./gone/x/../s.mrcs", "gone/s.mrcs", "2@gone/s.mrcs")
    assert numbers_by_place(names) is None
    numbers = image_numbers(names)
    assert torch.equal(numbers, numbers_by_name(names))
    assert len(numbers[:3].unique()) == 1 and len(numbers.unique()) == 2
