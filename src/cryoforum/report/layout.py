"""The parts of a page: sections of text, exhibits (figures with one caption) and tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Panel:
    """One drawing, ``markup`` as `canvas.svg` or `canvas.picture` gives it, under its ``label``."""

    label: str
    markup: str


@dataclass(frozen=True)
class Exhibit:
    """Panels that share a caption; ``columns``: how many stand side by side on a wide screen."""

    panels: Sequence[Panel]
    caption: str
    columns: int = 2


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of each row is its heading.

    Attributes
    ----------
    folded
        Closed until a reader opens it.
    prose
        Cells are sentences, aligned on the left, which may wrap.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False
    prose: bool = False


@dataclass(frozen=True)
class Section:
    """A heading with text, exhibits and tables.

    Attributes
    ----------
    anchor
        Its address in the page.
    command
        A line for the terminal, shown below the text as it is.
    """

    anchor: str
    title: str
    text: str
    exhibits: Sequence[Exhibit] = ()
    tables: Sequence[Table] = ()
    command: str = ""


def markdown(section: Section) -> str:
    """Text and tables of a section as Markdown; exhibits are left to the page."""
    parts = [f"# {section.title}", section.text]
    for table in section.tables:
        rows = [table.header, ("---", *["---:"] * (len(table.header) - 1)), *table.rows]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        parts += [f"## {table.caption}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def flattened(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted name, text) of every value in nested dictionaries; long lists are cut short."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            rows += flattened(value, f"{name}.")
        elif isinstance(value, (list, tuple)):
            shown = ", ".join(str(entry) for entry in value[:8])
            rows.append((name, f"{shown}, … ({len(value)} values)" if len(value) > 8 else shown))
        else:
            rows.append((name, str(value)))
    return rows
