"""The network alone on particles as they are: how much is lost, and to which of their imperfections.

    python benchmarks/network_realistic.py --out DIR [--seeds 1] [--minutes 10] [--snr 0.05]
        [--imperfections all,none,without ramp,…] [--set TABLE.NAME=VALUE …]

Each set has 4000 labelled particles (3600 to learn from, 400 to validate) and 1000 new ones of the 70S
ribosome; noise-free projections by `relion_project` where it is installed. Prints a Markdown row a training.
"""

import argparse
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from realistic import with_projections_of_relion
from scipy.stats import spearmanr
from tables import head, percent, row

from cryoforum.commands.pose_files import PoseOutput
from cryoforum.commands.predict import predict
from cryoforum.commands.predict_request import PredictRequest
from cryoforum.commands.simulate import PARTICLES, TRUTH, write_simulated_set
from cryoforum.commands.train import TrainRequest, train
from cryoforum.config import chosen_config
from cryoforum.dataset.columns import EXPECTED_ERROR
from cryoforum.dataset.particle_table import number_column, select_rows
from cryoforum.dataset.pose_errors import orientation_errors
from cryoforum.io.relion.particles import poses_from_table
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.molecules.structures import load_structure
from cryoforum.simulation.config import REALISTIC, Imperfections, SimulationConfig
from cryoforum.simulation.realistic import simulate_realistic

LABELLED, NEW = 4000, 1000
LOST_RAD = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--snr", type=float, default=0.05)
    parser.add_argument("--imperfections", default="all")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    head("imperfections", "settings", "seed", "median error", "> 0.3 rad", "expected / found rms", "Spearman")
    for name in arguments.imperfections.split(","):
        for seed in range(arguments.seeds):
            folder = arguments.out / f"{name.replace(' ', '-')}-{arguments.snr:g}-{seed}"
            make_set(folder, imperfections_called(name), arguments.snr, seed)
            errors, expected = train_and_predict(folder, arguments.minutes, arguments.settings)
            ratio = float(expected.square().mean().sqrt() / errors.square().mean().sqrt())
            lost, rank = (errors > LOST_RAD).float().mean(), spearmanr(expected, errors).statistic
            settings = " ".join(arguments.settings) or "–"
            found = f"{errors.median():.4f} rad", percent(float(lost)), f"{ratio:.2f}", f"{rank:.2f}"
            row(name, settings, seed, *found)


def imperfections_called(name: str) -> Imperfections:
    """Those of `--realistic`: "all", "none", "without NAME" or "only NAME" of a field."""
    how, _, which = name.partition(" ")
    if how in ("all", "none"):
        return REALISTIC if how == "all" else Imperfections()
    chosen = [entry.name for entry in fields(Imperfections) if which and which in entry.name]
    source, base = (REALISTIC, Imperfections()) if how == "only" else (Imperfections(), REALISTIC)
    assert chosen, f"expected a part of a field's name, found {which}"
    return replace(base, **{entry: getattr(source, entry) for entry in chosen})


def make_set(folder: Path, imperfections: Imperfections, snr: float, seed: int) -> None:
    """labelled.star, and new.star with its truth.star, unless they are there."""
    if (folder / "new.star").exists():
        return
    config = SimulationConfig(count=LABELLED + NEW, snr=snr, seed=seed)
    simulated = simulate_realistic(load_structure("4v5d", 128, 2.8), config, imperfections)
    write_simulated_set(with_projections_of_relion(simulated, folder / "relion"), folder, seed)
    particles = read_star(folder / PARTICLES)
    write_star(select_rows(particles, slice(0, LABELLED)), folder / "labelled.star")
    write_star(select_rows(read_star(folder / TRUTH), slice(LABELLED, None)), folder / "new_truth.star")
    write_star(select_rows(particles, slice(LABELLED, None)), folder / "new.star")


def train_and_predict(folder: Path, minutes: float, settings: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Errors and expected errors of the new particles in radians, by the network alone."""
    model, out = folder / "model", folder / "predicted.star"
    config = chosen_config("small", None, settings)
    labelled = [folder / "labelled.star"]
    train(TrainRequest(labelled, model, config, split="90,10,0", max_minutes=minutes, overwrite=True))
    predict(PredictRequest(model, [folder / "new.star"], PoseOutput(out, overwrite=True), refine=False))
    found, truth = poses_from_table(read_star(out)), poses_from_table(read_star(folder / "new_truth.star"))
    expected_deg = number_column(read_star(out), EXPECTED_ERROR)
    assert found is not None and truth is not None and expected_deg is not None
    errors = orientation_errors(found.quaternions, truth.quaternions)
    return errors, torch.from_numpy(np.deg2rad(expected_deg))


if __name__ == "__main__":
    main()
