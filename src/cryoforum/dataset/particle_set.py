"""The particles of one or several files: their table, and all that it says, parsed once."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from cryoforum.dataset.columns import HALF_SET
from cryoforum.dataset.particle_table import ParticleTable, select_rows, with_columns
from cryoforum.dataset.particles import Particles
from cryoforum.errors import InputError
from cryoforum.fields.rows import Index, as_rows


@dataclass(frozen=True)
class ParticleSet:
    """A table and its particles, row by row.

    table: every column, as the text that was read. particles: images (read on demand), CTF parameters, poses
    and half sets of the same rows. InputError where the two differ in length.
    """

    table: ParticleTable
    particles: Particles

    def __post_init__(self) -> None:
        if len(self.table) != len(self.particles):
            raise InputError(
                f"expected as many particles as rows, found {len(self.particles)} and {len(self.table)}"
            )

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"ParticleSet({self.particles!r}, {self.table.particles.shape[1]} columns of {self.path})"

    @property
    def path(self) -> Path:
        """Where the table was read, for messages."""
        return self.table.path

    def __getitem__(self, index: Index) -> "ParticleSet":
        return self.select(index)

    def select(self, index: Index) -> "ParticleSet":
        """The given rows in that order, as `Particles.select` takes them; images stay where they are."""
        rows = as_rows(index, len(self))
        return ParticleSet(select_rows(self.table, rows), self.particles.select(rows))

    def with_half_sets(self, half_sets: Tensor) -> "ParticleSet":
        """The same set with ``half_sets`` (n,), 1 or 2, in the table (rlnRandomSubset) and the particles."""
        table = with_columns(self.table, {HALF_SET: half_sets})
        return ParticleSet(table, replace(self.particles, half_sets=half_sets))
