"""A part is added in one file, from outside the package; the commands take it like their own."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.untyped import untyped

from cryoforum.commands.convert import ConvertRequest, convert
from cryoforum.commands.filter import STATISTICS, FilterRequest, filter_particles
from cryoforum.dataset.particle_table import ParticleTable, number_column, with_columns
from cryoforum.dataset.predictions import Predictions
from cryoforum.distributions.bingham import OrientationPosterior
from cryoforum.io import particle_files, predictions
from cryoforum.io.particle_files import ParticleFormat, read_particle_file, write_particle_file
from cryoforum.io.predictions import prediction_columns, with_predictions


def some_table(folder: Path, count: int = 4) -> ParticleTable:
    optics = pd.DataFrame({"rlnOpticsGroup": ["1"], "rlnImagePixelSize": ["2"], "rlnImageSize": ["8"]})
    names = [f"{row + 1:06d}@stack.mrcs" for row in range(count)]
    particles = pd.DataFrame({"rlnImageName": names, "rlnOpticsGroup": "1"}, dtype=str)
    return ParticleTable(folder / "some.star", optics, particles)


def test_a_file_dialect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comma-separated values, with the optics groups' columns in every row."""

    def read(path: Path) -> ParticleTable:
        return ParticleTable(path, None, pd.read_csv(path, dtype=str))

    def write(table: ParticleTable, path: Path) -> None:
        optics = table.optics if table.optics is not None else pd.DataFrame({"rlnOpticsGroup": []})
        table.particles.merge(optics, on="rlnOpticsGroup").to_csv(path, index=False)

    monkeypatch.setitem(particle_files.FORMATS, ".csv", ParticleFormat(read, write))
    write_particle_file(some_table(tmp_path), tmp_path / "some.csv")
    assert convert(ConvertRequest([tmp_path / "some.csv"], tmp_path / "back.star")) == 4
    back = read_particle_file(tmp_path / "back.star")
    assert back.particles["rlnImageName"].tolist() == some_table(tmp_path).particles["rlnImageName"].tolist()
    assert number_column(back, "rlnImagePixelSize").tolist() == [2.0] * 4


def test_a_junk_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How far the two surest directions are from the least sure one: a column that `filter` can go by."""
    name = "cryoforumAnisotropy"

    def anisotropy(found: Predictions) -> torch.Tensor:
        return found.posterior.dispersion[:, 0] / found.posterior.dispersion[:, -1]

    monkeypatch.setitem(predictions.COLUMNS, name, anisotropy)
    monkeypatch.setitem(STATISTICS, "anisotropy", name)
    sureness = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 9.0], [2.0, 3.0, 4.0], [1.0, 1.0, 2.0]])
    posterior = OrientationPosterior(torch.diag_embed(torch.cat([sureness, torch.zeros(4, 1)], 1)))
    found = prediction_columns(Predictions(posterior, torch.full((4,), 0.1)))
    np.testing.assert_allclose(found[name], [1, 9, 2, 2], rtol=1e-5)
    write_particle_file(with_predictions(some_table(tmp_path), found), tmp_path / "p.star")
    request = FilterRequest(tmp_path / "p.star", tmp_path / "k.star", 0.25, untyped("anisotropy"))
    result = filter_particles(request)
    assert (result.kept, result.dropped) == (1, 3)
    kept = read_particle_file(tmp_path / "k.star")
    assert kept.particles["rlnImageName"].tolist() == ["000001@stack.mrcs"]
    again = with_predictions(
        with_columns(kept, {name: np.array([5.0])}), {k: v[:1] for k, v in found.items()}
    )
    assert number_column(again, name).tolist() == [1.0]  # that of an earlier prediction is replaced
