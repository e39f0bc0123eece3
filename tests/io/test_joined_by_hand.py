"""STAR files that people or programs put together: no row, no name and no optics group is lost in silence."""

from pathlib import Path

import pytest
from helpers.messages import logged

from cryoforum.dataset.particle_table import number_column, with_columns
from cryoforum.errors import InputError
from cryoforum.io.particle_files import particle_set_of
from cryoforum.io.relion.lengths import pixel_sizes_from_table
from cryoforum.io.relion.star_files import read_star, write_star

COLUMNS = ("rlnImageName", "rlnOpticsGroup", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
OPTICS = "data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnVoltage\n_rlnImagePixelSize\n1 {voltage} 1.5\n\n"
WIDE_BLANKS = ("micrograph\u3000one", "no\u00a0break", "next\u2003quad")


def particles(*rows: str, columns: tuple[str, ...] = COLUMNS) -> str:
    return "data_particles\n\nloop_\n" + "".join(f"_{name}\n" for name in columns) + "\n".join(rows) + "\n\n"


def star(path: Path, *blocks: str) -> Path:
    path.write_text("".join(blocks), encoding="utf-8")
    return path


def test_two_files_one_behind_the_other_give_the_rows_of_both(tmp_path: Path) -> None:
    optics = OPTICS.format(voltage=300)
    path = star(
        tmp_path / "both.star",
        optics,
        particles("1@a.mrcs 1 10 20 30"),
        optics,
        particles(
            "40 50 60 2@a.mrcs 1",
            "1 2 3 3@a.mrcs 1",
            columns=(*COLUMNS[2:], "rlnImageName", "rlnOpticsGroup"),
        ),
    )
    with logged(r"2 tables of particles; all their rows are read \(1 \+ 2\)"):
        table = read_star(path)
    assert table.particles["rlnImageName"].tolist() == ["1@a.mrcs", "2@a.mrcs", "3@a.mrcs"]
    assert table.particles["rlnAngleRot"].tolist() == ["10", "40", "1"]


@pytest.mark.parametrize("differ", ["optics", "columns"])
def test_two_files_that_mean_other_things_are_refused(tmp_path: Path, differ: str) -> None:
    second = OPTICS.format(voltage=200 if differ == "optics" else 300)
    rows = (
        particles("2@a.mrcs 1 0", columns=COLUMNS[:3])
        if differ == "columns"
        else particles("2@a.mrcs 1 1 2 3")
    )
    first = OPTICS.format(voltage=300), particles("1@a.mrcs 1 10 20 30")
    with pytest.raises(InputError, match="found 2 and 2.*give the files themselves"):
        read_star(star(tmp_path / "both.star", *first, second, rows))


def test_two_tables_before_optics_groups_are_read_as_well(tmp_path: Path) -> None:
    blocks = [particles(f"{n}@a.mrcs 1 1 2 3").replace("data_particles", "data_images") for n in (1, 2)]
    assert len(read_star(star(tmp_path / "both.star", *blocks))) == 2


def test_blanks_beyond_ascii_are_part_of_a_name(tmp_path: Path) -> None:
    path = star(tmp_path / "a.star", OPTICS.format(voltage=300), particles("1@a.mrcs 1 1 2 3"))
    for number, name in enumerate(WIDE_BLANKS):
        table = with_columns(read_star(path), {"rlnMicrographName": [name], "myNote": [f"{name}'s"]})
        out = tmp_path / f"{number}.star"
        write_star(table, out)
        assert f" {name} " in out.read_text(encoding="utf-8")  # bare, as RELION reads it
        assert read_star(out).particles.equals(table.particles)


@pytest.mark.parametrize(
    ("optics", "columns", "told"),
    [
        ("", COLUMNS, "name optics groups, but there is no data_optics: put that"),
        ("", ("rlnImageName",), "add the column to the table of particles"),
        ("data_optics\n\nloop_\n_rlnOpticsGroup\n1\n\n", COLUMNS, "add the column to data_optics"),
    ],
)
def test_what_is_missing_is_asked_for_where_it_belongs(
    tmp_path: Path, optics: str, columns: tuple[str, ...], told: str
) -> None:
    row = " ".join(("1@a.mrcs", "1", "10", "20", "30")[: len(columns)])
    path = star(tmp_path / "a.star", optics, particles(row, columns=columns))
    with pytest.raises(
        InputError, match="rlnDetectorPixelSize .µm. and rlnMagnification, found none; .*" + told
    ):
        pixel_sizes_from_table(read_star(path))


def test_half_of_a_ctf_is_asked_for_where_it_belongs(tmp_path: Path) -> None:
    columns = (*COLUMNS, "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
    path = star(
        tmp_path / "a.star",
        OPTICS.format(voltage=300),
        particles("1@a.mrcs 1 1 2 3 1e4 1e4 0", columns=columns),
    )
    with pytest.raises(InputError, match="expected rlnSphericalAberration .* add the column to data_optics"):
        particle_set_of(read_star(path))


def test_wrong_numbers_are_counted_and_their_rows_named(tmp_path: Path) -> None:
    rows = [f"{n}@a.mrcs 1 {'nan' if n % 2 else 10} 20 30" for n in range(1, 14)]
    table = read_star(star(tmp_path / "a.star", OPTICS.format(voltage=300), particles(*rows)))
    with pytest.raises(
        InputError, match=r"row 1 .*found 'nan' \(so it is in 7 of 13 rows: 1, 3, 5, 7, 9, …\)"
    ):
        number_column(table, "rlnAngleRot")
