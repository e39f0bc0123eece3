"""Small CSV tables, written atomically."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryoforum.storage.files import replacing


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows under all columns that any of them has; the file appears whole or not at all."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows as text by column."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
