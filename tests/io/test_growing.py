"""A STAR file that grows: at every moment that of all its parts in one, whatever their optics."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from cryoforum.dataset.particle_table import ParticleTable, number_column, select_rows
from cryoforum.io.relion.growing import GrowingStar, joined
from cryoforum.io.relion.star_files import read_star


def part(
    first: int, count: int, groups: Sequence[tuple[str, str]] = (("1", "300"),), extra: str = ""
) -> ParticleTable:
    """Rows of each optics group (number, voltage) in turn."""
    optics = pd.DataFrame([{"rlnOpticsGroup": number, "rlnVoltage": kv} for number, kv in groups], dtype=str)
    rows = [
        {"rlnImageName": f"{row:06d}@p.mrcs", "rlnOpticsGroup": groups[row % len(groups)][0]}
        | ({extra: "x"} if extra else {})
        for row in range(first, first + count)
    ]
    return ParticleTable(Path(f"part{first}.star"), optics, pd.DataFrame(rows, dtype=str))


def test_appending_writes_what_writing_anew_does(tmp_path: Path) -> None:
    parts = [part(1, 3), select_rows(part(4, 1), []), part(5, 2), part(7, 1)]
    grown, anew = GrowingStar(tmp_path / "grown.star"), GrowingStar(tmp_path / "anew.star")
    assert not grown.append(parts)
    grown.rewrite(lambda: parts[:1])
    assert grown.append(parts[1:2]) and grown.append(parts[2:])
    anew.rewrite(lambda: parts)
    assert grown.path.read_bytes() == anew.path.read_bytes()
    assert len(read_star(grown.path)) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["anew.star", "grown.star"]


def test_optics_groups_keep_their_values_whatever_their_numbers(tmp_path: Path) -> None:
    parts = [part(1, 4, [("1", "300"), ("2", "200")]), part(5, 4, [("1", "200"), ("2", "120")])]
    expected = [voltage for each in parts for voltage in number_column(each, "rlnVoltage")]  # type: ignore[union-attr]
    grown = GrowingStar(tmp_path / "grown.star")
    grown.rewrite(lambda: parts[:1])
    before = grown.path.read_bytes()
    assert not grown.append(parts[1:])
    assert grown.path.read_bytes() == before
    grown.rewrite(lambda: parts)
    for found in (read_star(grown.path), joined(parts)):
        voltages = number_column(found, "rlnVoltage")
        assert voltages is not None and voltages.tolist() == expected
        assert found.optics is not None and len(found.optics) == 3


def test_columns_that_only_some_have_are_left_out(tmp_path: Path) -> None:
    parts = [part(1, 2, extra="rlnLogLikeliContribution"), part(3, 2)]
    grown = GrowingStar(tmp_path / "grown.star")
    grown.rewrite(lambda: parts)
    assert list(read_star(grown.path).particles.columns) == ["rlnImageName", "rlnOpticsGroup"]


def named(table: ParticleTable, voltage: str, number: str = "1") -> ParticleTable:
    optics = table.optics.assign(rlnVoltage=voltage, rlnOpticsGroupName="first", rlnOpticsGroup=number)  # type: ignore[union-attr]
    return ParticleTable(table.path, optics, table.particles)


def test_what_a_missing_column_means_is_written(tmp_path: Path) -> None:
    plate, plain = part(1, 2), part(3, 1)
    plate.particles["rlnPhaseShift"] = "90"
    plate.optics["rlnBeamTiltX"] = "0.5"  # type: ignore[index]
    grown = GrowingStar(tmp_path / "grown.star")
    grown.rewrite(lambda: [plate, plain])
    assert grown.append([part(4, 1)])
    found = read_star(grown.path)
    for name, values in (("rlnPhaseShift", [90, 90, 0, 0]), ("rlnBeamTiltX", [0.5, 0.5, 0, 0])):
        column = number_column(found, name)
        assert column is not None and column.tolist() == values


def test_equal_names_of_other_groups_are_told_apart_and_found_again(tmp_path: Path) -> None:
    parts = [named(part(1, 2), "300"), named(part(3, 1), "200"), named(part(4, 2), "200")]
    grown = GrowingStar(tmp_path / "grown.star")
    grown.rewrite(lambda: parts[:2])
    assert grown.append(parts[2:])
    found = read_star(grown.path)
    assert found.optics is not None
    assert found.optics["rlnOpticsGroupName"].tolist() == ["first", "first_2"]
    voltages = number_column(found, "rlnVoltage")
    assert voltages is not None and voltages.tolist() == [300, 300, 200, 200, 200]


def test_group_numbers_may_be_written_as_any_number(tmp_path: Path) -> None:
    parts = [part(1, 2), named(part(3, 2), "200", "1.000000")]
    grown = GrowingStar(tmp_path / "grown.star")
    grown.rewrite(lambda: parts)
    voltages = number_column(read_star(grown.path), "rlnVoltage")
    assert voltages is not None and voltages.tolist() == [300, 300, 200, 200]


def test_dialects_are_not_mixed() -> None:
    old = ParticleTable(Path("old.star"), None, part(1, 2).particles)
    with pytest.raises(ValueError, match="old.star: expected data_optics as in part1.star"):
        joined([part(1, 2), old])


def test_nothing_to_write_is_no_file(tmp_path: Path) -> None:
    grown = GrowingStar(tmp_path / "grown.star")
    grown.rewrite(lambda: [part(1, 1)])
    grown.rewrite(lambda: [select_rows(part(1, 1), [])])
    assert list(tmp_path.iterdir()) == []
