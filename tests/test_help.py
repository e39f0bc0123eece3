"""What `help` says of every public name: each parameter, field, method and property."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

import cryoforum


def undescribed(name: str) -> Iterator[str]:
    """Parts of a public name that `help` shows without a word."""
    found = getattr(cryoforum, name)
    if inspect.isclass(found):
        text = inspect.getdoc(found) or ""
        if is_dataclass(found):
            yield from (f"{name}.{entry.name}" for entry in fields(found) if not is_told(entry.name, text))
        for part, member in vars(found).items():
            value = getattr(found, part) if isinstance(member, staticmethod | classmethod) else member
            if not part.startswith("_") and (callable(value) or isinstance(value, property)):
                yield from undescribed_parts(f"{name}.{part}", value)
    elif callable(found):
        yield from undescribed_parts(name, found)


def undescribed_parts(name: str, member: Any) -> Iterator[str]:
    text = inspect.getdoc(member) or ""
    if not text:
        yield name
    elif callable(member):
        for parameter in inspect.signature(member).parameters:
            if parameter not in ("self", "cls") and not is_told(parameter, text):
                yield f"{name}({parameter})"


def is_told(word: str, text: str) -> bool:
    """By its name, or where a text says whose parameters it shares."""
    return bool(re.search(rf"\b{word}\b", text)) or bool(re.search(r"\bas (of|for|in|`)", text))


@pytest.mark.parametrize("name", sorted(cryoforum.__all__))
def test_help_tells_every_part(name: str) -> None:
    assert not list(undescribed(name))
