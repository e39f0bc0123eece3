"""What a user's script may look like: simulate, train with a callback, look, a head of one's own, project.

    python scripts/example.py

Type checkers see every name of the package; the tests run this file, and mypy checks it.
"""

from dataclasses import replace

import torch

import cryoforum as cf


def on_step(progress: cf.TrainingProgress) -> bool:
    """Two steps are enough to see that it works."""
    return progress.step == 2


def matrices(numbers: torch.Tensor) -> torch.Tensor:
    """Symmetric matrices (n, 4, 4), of a Bingham distribution, from numbers (n, 10)."""
    root = numbers.new_zeros(len(numbers), 4, 4)
    rows, columns = torch.tril_indices(4, 4)
    root[:, rows, columns] = numbers
    return root @ root.mT


def main() -> None:
    cf.register_matrix_head("mine", 10, matrices)
    preset = cf.preset("tiny")
    config = replace(preset, network=replace(preset.network, head="mine"))
    volume = cf.load_structure("4v5d", 32, 11.2)
    particles = cf.simulate(volume, cf.SimulationConfig(count=80))
    split = cf.split_rows(len(particles), 0.25, 0.25)
    options = cf.TrainingOptions(on_step=on_step, progress=True)
    model = cf.train(particles, config, split, options)
    test = particles.select(split.test)
    predictions = cf.predict(model, test)
    print(predictions.table(test, test.poses).describe())
    if test.poses is not None:
        print(cf.project(volume, test.poses, test.ctf).shape)


if __name__ == "__main__":
    main()
