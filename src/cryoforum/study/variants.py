"""The runs of the studies: every variant is a few settings on top of a base, at one of two scales."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from cryoforum.config import Config, chosen_config
from cryoforum.errors import InputError

STUDIES = ("table1", "snr", "symmetry", "real")
SCALES = ("cpu", "paper")
SNRS = {"clean": 10_000.0, "1.0": 1.0, "0.7": 0.7, "0.4": 0.4, "0.2": 0.2, "0.1": 0.1}


@dataclass(frozen=True)
class Dataset:
    """Particles to learn from: simulated ones, or those of a file.

    Attributes
    ----------
    molecule
        "4v5d", "6z6u", or "d2": a subunit of the latter under D2.
    junk
        Share of the test part that shows another molecule under meaningless poses. The training part has
        none, as after a refinement.
    particle_file
        Particles of a refinement to use instead; all other attributes are then ignored.
    """

    molecule: str = "4v5d"
    snr: float = 0.1
    count: int = 5000
    box: int = 128
    pixel_size_angstrom: float = 2.8
    junk: float = 0.0
    particle_file: str = ""

    @property
    def name(self) -> str:
        """Folder name."""
        if self.particle_file:
            return Path(self.particle_file).stem
        junk = f"-junk{self.junk:g}" if self.junk else ""
        return f"{self.molecule}-{self.box}px-snr{self.snr:g}-n{self.count}{junk}"


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes
    ----------
    block, label
        Its names in tables: the part of the method that varies, and the variant.
    tta_copies
        Turned and mirrored copies of each test image that the network reads; 1: no test-time augmentation.
    """

    study: str
    block: str
    label: str
    dataset: Dataset
    preset: str
    settings: tuple[str, ...]
    seed: int
    scale: str
    tta_copies: int = 1

    @property
    def config(self) -> Config:
        """The configuration that the settings make."""
        return chosen_config(self.preset, None, self.settings)

    @property
    def name(self) -> str:
        """File name of its results."""
        words = f"{self.study}-{self.block}-{self.label}".lower()
        return re.sub(r"[^\w.-]", "_", words) + f"-{self.scale}-seed{self.seed}"


# Table 1 in its four blocks; the first of each is what the paper proposes. All change the base in one place.
BASE = "modified QCQP"
TABLE_1: dict[str, dict[str, tuple[str, ...]]] = {
    "rotation head": {
        BASE: (),
        "unit quaternion": ("network.head=quaternion",),
        "6D, Gram-Schmidt": ("network.head=gram_schmidt",),
        "9D, SVD": ("network.head=svd",),
        "QCQP without PSD": ("network.head=symmetric",),
        "Bingham likelihood": ("network.head=symmetric", "training.loss=likelihood"),
        "softmax over a grid": ("network.head=softmax_grid", "training.loss=likelihood"),
        "degree 2L, L = 3, eq. 4": ("network.head=exponential_family", "network.degree=3"),
        "degree 2L, L = 3, likelihood": (
            "network.head=exponential_family",
            "network.degree=3",
            "training.loss=likelihood",
        ),
    },
    "training": {
        "Siamese, auxiliary loss, curriculum": (),
        "Siamese, auxiliary loss, constant": ("training.auxiliary=constant",),
        "Siamese, random pairs": ("training.auxiliary=none", "training.pairs=random"),
        "single branch": ("training.loss=regression",),
        "auxiliary loss, stratified pairs": ("training.pairs=stratified",),
        "auxiliary loss, random pairs": ("training.pairs=random",),
    },
    "blurring layer": {
        "low-pass": (),
        "Gaussian": ("network.blur=gaussian",),
        "none": ("network.blur=none",),
    },
    "pooling": {
        "generalised mean": (),
        "max": ("network.pooling=max",),
        "max + average": ("network.pooling=max_average",),
    },
}

# At CPU scale Table 1 keeps the paper's kinds of layers, losses and one-cycle schedule. Images, filters,
# blocks and passes are cut; to learn in time, phases are flipped, images turned and mirrored, without dropout
# and with less L2.
TABLE_1_PRESET = "paper"
TABLE_1_SETTINGS: dict[str, tuple[str, ...]] = {
    "paper": (),
    "cpu": (
        "preprocessing.box=32",
        "preprocessing.phase_flip=true",
        "network.widths=[16, 32, 64, 64, 128, 128]",
        "network.dropout=0.0",
        "training.batch_size=64",
        "training.l2=1e-4",
        "training.grid_nside=4",
        "training.max_learning_rate=0.003",
        "training.image_passes=60000",
        "augmentation.rotate=true",
        "augmentation.mirror=true",
        "augmentation.max_shift_pixel=0.5",
    ),
}
# Studies that compare data sets and not parts: the paper's network on a GPU, the package's own on a CPU.
OWN_PRESET = {"paper": "paper", "cpu": "small"}
# Settings identify the results of a run, so those that a preset may change are written out.
OWN_SETTINGS: dict[str, tuple[str, ...]] = {
    "paper": (),
    "cpu": ("training.image_passes=160000", "training.max_learning_rate=0.0005"),
}
OWN_TTA_COPIES = {"paper": 1, "cpu": 8}


def runs_on(particle_file: Path, symmetry: str, scale: str, seeds: int) -> list[Run]:
    """Study "real" on the particles of a refinement of the user's own (Cryo-forum, 4.4)."""
    _check(scale, seeds)
    dataset = Dataset(particle_file=str(particle_file))
    settings = _stratified(scale) if symmetry == "C1" else (*_stratified(scale), f"symmetry={symmetry}")
    run = _own_run("real", "resolution", dataset.name, dataset, scale, *settings)
    return [replace(run, seed=seed) for seed in range(seeds)]


def planned_runs(study: str, scale: str, seeds: int, only: str | None = None) -> list[Run]:
    """All runs of a study, seed by seed, so that an early end leaves whole tables.

    Parameters
    ----------
    study
        One of `STUDIES`, or "all".
    scale
        One of `SCALES`.
    seeds
        Trainings of each variant.
    only
        Choose the runs whose block or label contains this text.

    Raises
    ------
    InputError
        Where there is no such study or scale, or no run remains.
    """
    _check(scale, seeds)
    known = {"table1": _table1, "snr": _snr, "symmetry": _symmetry, "real": _real}
    if study != "all" and study not in known:
        raise InputError(f"expected a study out of {', '.join(known)} or all, found '{study}'")
    names = list(known) if study == "all" else [study]
    runs = [replace(run, seed=seed) for name in names for seed in range(seeds) for run in known[name](scale)]
    chosen = [run for run in runs if only is None or only.lower() in f"{run.block} {run.label}".lower()]
    if not chosen:
        raise InputError(f"expected part of a block's or variant's name, found --only '{only}'")
    return chosen


def _check(scale: str, seeds: int) -> None:
    if scale not in SCALES:
        raise InputError(f"expected --scale {' or '.join(SCALES)}, found '{scale}'")
    if seeds < 1:
        raise InputError(f"expected 1 seed or more, found {seeds}")


def _table1(scale: str) -> list[Run]:
    own = TABLE_1_SETTINGS[scale]
    return [
        Run("table1", block, label, Dataset(), TABLE_1_PRESET, (*own, *settings), 0, scale)
        for block, variants in TABLE_1.items()
        for label, settings in variants.items()
        if settings or label == BASE  # the base is one training, whatever a block calls it
    ]


def _own_run(study: str, block: str, label: str, dataset: Dataset, scale: str, *settings: str) -> Run:
    every = (*OWN_SETTINGS[scale], *settings)
    return Run(study, block, label, dataset, OWN_PRESET[scale], every, 0, scale, OWN_TTA_COPIES[scale])


def _snr(scale: str) -> list[Run]:
    return [_own_run("snr", "network alone", label, Dataset(snr=snr), scale) for label, snr in SNRS.items()]


def _symmetry(scale: str) -> list[Run]:
    sets = {
        "D2": Dataset("d2", box=96, pixel_size_angstrom=1.6),
        "O": Dataset("6z6u", box=96, pixel_size_angstrom=1.9),
    }
    return [
        _own_run("symmetry", group, way, found, scale, f"symmetry={group}", f"symmetry_handling={way}")
        for group, found in sets.items()
        for way in ("domain", "group")
    ]


def _real(scale: str) -> list[Run]:
    sets = {"SNR 0.1": Dataset(), "SNR 0.1, half of the new images junk": Dataset(junk=0.5)}
    return [
        _own_run("real", "resolution", label, found, scale, *_stratified(scale))
        for label, found in sets.items()
    ]


def _stratified(scale: str) -> tuple[str, ...]:
    """The paper draws stratified pairs of real particles; at CPU scale the loss has no pairs."""
    return ("training.pairs=stratified",) if scale == "paper" else ()
