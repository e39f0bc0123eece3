"""`import cryoforum`: one list of names, said twice."""

import ast
from pathlib import Path

import pytest

import cryoforum

SOURCE = ast.parse(Path(cryoforum.__file__).read_text())


def homes_for_type_checkers() -> dict[str, str]:
    """Name → module of what the TYPE_CHECKING block imports."""
    (block,) = (node for node in SOURCE.body if isinstance(node, ast.If))
    return {
        alias.asname or alias.name: str(line.module).removeprefix("cryoforum.")
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }


def test_type_checkers_are_told_what_python_is_told() -> None:
    assert homes_for_type_checkers() == cryoforum._HOMES
    assert cryoforum.__all__ == sorted(cryoforum._HOMES)
    assert dir(cryoforum) == sorted(cryoforum.__all__)


@pytest.mark.parametrize("name", sorted(cryoforum._HOMES))
def test_every_name_is_defined_where_it_is_said_to_live(name: str) -> None:
    found = getattr(cryoforum, name)
    assert found.__module__ == f"cryoforum.{cryoforum._HOMES[name]}" and found.__doc__


def test_other_names_are_missed_by_name() -> None:
    with pytest.raises(AttributeError, match="module 'cryoforum' has no attribute 'match'"):
        _ = cryoforum.match  # type: ignore[attr-defined]
