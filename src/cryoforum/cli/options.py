"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from cryoforum import choices

Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
Root = Annotated[Path | None, typer.Option(help="Folder that image names are relative to.")]
KeepRamp = Annotated[
    bool,
    typer.Option(
        "--keep-ramp", help="Leave in each image the ramp of its background, which else is removed."
    ),
]
DropUnusable = Annotated[
    bool, typer.Option("--drop-unusable", help="Leave out particles with values that cannot be.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Shard = Annotated[str | None, typer.Option(help="Only one of n parts of the rows: 1/4 … 4/4.")]
BatchSize = Annotated[int, typer.Option(help="Images at a time.")]
Resolution = Annotated[float | None, typer.Option(help="Resolution in Å up to which the given map is used.")]
MapPixelSize = Annotated[
    float | None,
    typer.Option(help="Å per voxel of the given map, where its header lacks the size or is wrong."),
]
ScratchFolder = Annotated[
    Path | None,
    typer.Option("--scratch", metavar="DIR", help="Fast disk that the stacks are first copied to."),
]
KeepScratch = Annotated[
    bool, typer.Option("--keep-scratch", help="Leave the copies in --scratch for the next run.")
]
RefineDefocus = Annotated[
    bool, typer.Option("--refine-defocus", help="Find each particle's own defocus (rlnDefocusU/V), too.")
]
RefineScale = Annotated[
    bool, typer.Option("--refine-scale", help="Refine each particle at its own signal scale.")
]
MaxShift = Annotated[
    float | None,
    typer.Option(
        help="Largest shift along x and y that is searched, pixels; "
        "default: 3, or that of the training particles where the model's own reference says more."
    ),
]
Preset = Annotated[choices.PresetName, typer.Option(help="Settings to start from.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file that changes the preset.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one setting, as network.pooling=gem; may be repeated."),
]


def particles_in_folder(path: Path) -> Path:
    """A folder that `refine` has written stands for the particle file in it."""
    is_of_refine = (path / "rounds.csv").is_file()
    return path / "predictions.star" if is_of_refine else path


def _particles_in_folders(paths: list[Path]) -> list[Path]:
    return [particles_in_folder(path) for path in paths]


Particles = Annotated[
    list[Path],
    typer.Argument(
        metavar="PARTICLES...",
        help="Files .star of RELION or .cs of cryoSPARC, or a folder of refine; several are joined.",
        callback=_particles_in_folders,
    ),
]
Device = Annotated[str, typer.Option(help="Where the network runs: auto, cpu, cuda, cuda:1 or mps.")]
Precision = Annotated[
    choices.Precision,
    typer.Option(help="Of the network's products; auto: bfloat16 on a GPU that computes in it."),
]
Devices = Annotated[
    int,
    typer.Option(
        min=1, help="GPUs of this machine, or processes on CPUs, that share every batch; see docs/scaling.md."
    ),
]
Classes = Annotated[int, typer.Option(min=1, help="Maps at once, where the molecule has several states.")]
Symmetry = Annotated[str, typer.Option(help="Point group as in RELION: C1, C4, D2, T, O, I1 ...")]
Split = Annotated[
    str | None,
    typer.Option(
        help="Percentages to learn from, validate and test, as 50,17,33 (default: 90,10,0), or a split.csv."
    ),
]
