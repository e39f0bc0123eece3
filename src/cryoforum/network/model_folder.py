"""A trained model as a folder that explains itself and cannot run code.

weights.safetensors   the network's tensors
model.json            configuration, image size, pixel size, validation error, versions
log.csv               the course of training
split.csv             which particle was used for what, by its name and by a number for its place on disk

Models of two half sets are two such folders in one, half1 and half2.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cryoforum.config import Config, as_plain_dict, updated
from cryoforum.dataset.particles import Particles
from cryoforum.network import OrientationNetwork
from cryoforum.network.heads import Head, head_of
from cryoforum.network.preprocessing import Intensity
from cryoforum.storage.files import reason_of, replacing

FORMAT = "cryo-forum model 2"
PARTS = ("train", "validation", "test")  # of a split
HALF_FOLDERS = ("half1", "half2")
WEIGHTS, DESCRIPTION, LOG, SPLIT = "weights.safetensors", "model.json", "log.csv", "split.csv"


@dataclass(frozen=True)
class TrainedModel:
    """A network with all it needs to be used on other particles of the same molecule.

    box and pixel_size_angstrom: of the particles it learned from. validation_median_rad: error of the
    saved weights. log: one dictionary a line of `log.csv`. parts: image name → part of the split.
    sources: the same by `Particles.sources`, for images read from disk. intensity: of the training set,
    where it was standardised as a whole. sharpness: factor of all concentrations, that of `calibrated`.
    """

    network: OrientationNetwork
    config: Config
    box: int
    pixel_size_angstrom: float
    validation_median_rad: float
    log: Sequence[Mapping[str, float]]
    parts: Mapping[str, str]
    intensity: Intensity | None = None
    sources: Mapping[int, str] = field(default_factory=dict)
    sharpness: float = 1.0

    @property
    def head(self) -> Head:
        """What reads the network's numbers."""
        return head_of(self.config.network, self.config.learned_symmetry)


def save_model(model: TrainedModel, folder: Path) -> None:
    """Write the model folder; an existing file in it is replaced only by a complete new one."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as temporary:
        tensors = {name: t.contiguous() for name, t in model.network.state_dict().items()}
        try:
            save_file(tensors, temporary)
            temporary.chmod(0o644)  # the library makes it private, but a model is shared in a lab
        except SafetensorError as error:  # its way to say that the disk is full
            raise OSError(f"cannot write {folder / WEIGHTS}: {error}") from error
    description = {
        "format": FORMAT,
        "cryo-forum": version("cryo-forum"),
        "torch": torch.__version__,
        "box": model.box,
        "pixel_size_angstrom": model.pixel_size_angstrom,
        "validation_median_rad": model.validation_median_rad,
        "sharpness": model.sharpness,
        "intensity": None if model.intensity is None else asdict(model.intensity),
        "config": as_plain_dict(model.config),
    }
    with replacing(folder / DESCRIPTION) as temporary:
        temporary.write_text(json.dumps(description, indent=2) + "\n")
    _write_csv(folder / LOG, model.log)
    write_split(folder / SPLIT, model.parts, model.sources)


def load_model(folder: Path) -> TrainedModel:
    """Read a model folder; ValueError says what is missing or wrong in it."""
    folder = Path(folder)
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        if description.get("format") != FORMAT:
            raise ValueError(f"its format is {description.get('format')!r}, not {FORMAT!r}")
        config = updated(Config(), description["config"], where=DESCRIPTION)
        network = OrientationNetwork(config.network, config.preprocessing.box, config.learned_symmetry)
        intensity = description["intensity"]
        network.load_state_dict(load_file(folder / WEIGHTS))
        parts, sources = read_split(folder / SPLIT)
        log = [{k: float(v) for k, v in row.items() if v} for row in _read_csv(folder / LOG)]
        return TrainedModel(
            network=network.eval(),
            config=config,
            box=int(description["box"]),
            pixel_size_angstrom=float(description["pixel_size_angstrom"]),
            validation_median_rad=float(description["validation_median_rad"]),
            log=log,
            parts=parts,
            sources=sources,
            intensity=None if intensity is None else Intensity(**intensity),
            sharpness=float(description.get("sharpness", 1.0)),
        )
    except KeyError as error:
        reason = f"{DESCRIPTION} lacks {error}"
    except OSError as error:
        reason = reason_of(error)
    except (ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
    raise ValueError(f"expected a model folder written by 'cryoforum train' at {folder}: {reason}")


def model_folders(folder: Path) -> tuple[Path, ...]:
    """The folder itself, or those of its two half models."""
    halves = tuple(Path(folder) / name for name in HALF_FOLDERS)
    if (Path(folder) / DESCRIPTION).exists() or not any(half.is_dir() for half in halves):
        return (Path(folder),)
    return halves


def load_models(folder: Path) -> tuple[TrainedModel, ...]:
    """The one model of a folder, or its two half models, which have no particle in common."""
    models = tuple(load_model(each) for each in model_folders(folder))
    shared = set.intersection(*(set(model.parts) for model in models)) if len(models) == 2 else set()
    if shared:
        raise ValueError(f"{folder}: expected two models of disjoint half sets, found {min(shared)} in both")
    return models


def parts_of(particles: Particles, parts: Mapping[str, str], sources: Mapping[int, str]) -> list[str | None]:
    """The part of a split that each particle is in, if any.

    An image is known by its place on disk, whatever its name there; else, as data move, by its name.
    """
    by_name = [parts.get(name) for name in particles.names]
    if particles.sources is None or not sources:
        return by_name
    return [
        sources.get(place) or named for place, named in zip(particles.sources.tolist(), by_name, strict=True)
    ]


def write_split(path: Path, parts: Mapping[str, str], sources: Mapping[int, str]) -> None:
    """Write a split, each image by its name and, where ``sources`` are as many, its place on disk."""
    rows = [{"image": name, "part": part} for name, part in parts.items()]
    if len(sources) == len(rows):
        rows = [{**row, "source": str(place)} for row, place in zip(rows, sources, strict=True)]
    _write_csv(path, rows)


def read_split(path: Path) -> tuple[dict[str, str], dict[int, str]]:
    """Part of a split by image name, and by the image's place on disk; the second may be empty."""
    rows = _read_csv(path)
    if any({"image", "part"} - row.keys() for row in rows) or not rows:
        raise ValueError(f"{path}: expected a table with columns image and part")
    places = {int(row["source"]): row["part"] for row in rows if row.get("source")}
    return {row["image"]: row["part"] for row in rows}, places


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write what training needs to go on; the previous state stays until the new one is complete."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # its way to say that the disk is full
            raise OSError(f"cannot write {path}: {str(error).splitlines()[0]}") from error


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state; ValueError where there is none. Tensors and plain values only."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"expected a training state to resume at {path}: {error}") from error


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
