"""A trained model as a folder that explains itself and cannot run code.

weights.safetensors   the network's tensors
model.json            configuration, image size, pixel size, validation error, versions
log.csv               learning rate, losses and validation errors of the training
split.csv             which particle was used for what, by its name and by a number for its place on disk

Models of two half sets are two such folders in one, half1 and half2.
"""

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cryoforum.choices import BACKBONES, HEADS, LOSSES
from cryoforum.config import Config, updated
from cryoforum.dataset.split import read_split, write_split
from cryoforum.errors import InputError, require
from cryoforum.network.model import OrientationNetwork, TrainedModel, number_count
from cryoforum.network.preprocessing import Intensity
from cryoforum.network.training_record import TrainingRecord
from cryoforum.runtime.devices import FLOAT32, PRECISIONS, Compute
from cryoforum.storage.csv_tables import read_csv, write_csv
from cryoforum.storage.files import reason_of, replacing

FORMAT = "cryo-forum model 2"
HALF_FOLDERS = ("half1", "half2")
WEIGHTS, DESCRIPTION, LOG, SPLIT = "weights.safetensors", "model.json", "log.csv", "split.csv"


def save_model(model: TrainedModel, folder: Path) -> None:
    """Write the model folder; an existing file in it is replaced only by a complete new one.

    Raises
    ------
    InputError
        Where the network is a caller's own.
    OSError
        Where a file cannot be written, for example on a full disk.
    """
    expected = "a network of registered parts to save; register yours first, by register_backbone"
    require(isinstance(model.network, OrientationNetwork), expected, type(model.network).__name__)
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
        "training": asdict(model.record),
        "sharpness": model.sharpness,
        "device": model.compute.device.type,
        "precision": model.compute.precision,
        "intensity": None if model.intensity is None else asdict(model.intensity),
        "config": asdict(model.config),
    }
    with replacing(folder / DESCRIPTION) as temporary:
        temporary.write_text(json.dumps(description, indent=2) + "\n")
    write_csv(folder / LOG, model.log)
    write_split(folder / SPLIT, model.parts, model.sources)


def load_model(folder: Path) -> TrainedModel:
    """Read a model folder.

    Raises
    ------
    InputError
        Says what is missing or wrong in it.
    """
    folder = Path(folder)
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        if description.get("format") != FORMAT:
            raise InputError(f"its format is {description.get('format')!r}, not {FORMAT!r}")
        _refuse_unregistered(description["config"])
        config = updated(Config(), description["config"], where=DESCRIPTION)
        _refuse_other_network(config, folder / WEIGHTS)
        network = OrientationNetwork(config.network, config.preprocessing.box, config.learned_symmetry)
        intensity = description["intensity"]
        network.load_state_dict(load_file(folder / WEIGHTS))
        parts, sources = read_split(folder / SPLIT)
        log = [{k: float(v) for k, v in row.items() if v} for row in read_csv(folder / LOG)]
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
            compute=_compute(description),
            record=TrainingRecord(**description.get("training", {})),
        )
    except KeyError as error:
        reason = f"{DESCRIPTION} lacks {error}"
    except OSError as error:
        reason = reason_of(error)
    except (ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
    raise InputError(f"expected a model folder written by 'cryoforum train' at {folder}: {reason}")


def _refuse_unregistered(config: dict[str, Any]) -> None:
    """InputError where a part from outside is named that nobody has registered in this process."""
    parts = (("network", "head", HEADS), ("network", "backbone", BACKBONES), ("training", "loss", LOSSES))
    for section, part, table in parts:
        name = config[section][part]
        if name not in table:
            raise InputError(f"its {part} is '{name}': register '{name}' first, by register_{part}")


def _refuse_other_network(config: Config, weights: Path) -> None:
    """InputError where the described network has more numbers than its file can hold.

    Asked before it is made: a description may claim any size.
    """
    least = 4 * number_count(config.network, config.preprocessing.box, config.learned_symmetry)
    found = weights.stat().st_size
    if least > found:
        raise InputError(
            f"{DESCRIPTION} describes a network of {least} bytes, {weights.name} has {found}; copy it again"
        )


def _compute(description: dict[str, str]) -> Compute:
    """Device and precision of the training; folders that say nothing are taken for float32 on a CPU."""
    precision = description.get("precision", FLOAT32)
    if precision not in PRECISIONS:
        raise InputError(f"{DESCRIPTION}: expected precision {' or '.join(PRECISIONS)}, found '{precision}'")
    return Compute(torch.device(description.get("device", "cpu")), precision)


def model_folders(folder: Path) -> tuple[Path, ...]:
    """The folder itself, or those of its two half-set models."""
    halves = tuple(Path(folder) / name for name in HALF_FOLDERS)
    if (Path(folder) / DESCRIPTION).exists() or not any(half.is_dir() for half in halves):
        return (Path(folder),)
    return halves


def load_models(folder: Path) -> tuple[TrainedModel, ...]:
    """The one model of a folder, or its two half-set models, which have no particle in common.

    Raises
    ------
    InputError
        As `load_model`, and where the half-set models share a particle.
    """
    models = tuple(load_model(each) for each in model_folders(folder))
    shared = set.intersection(*(set(model.parts) for model in models)) if len(models) == 2 else set()
    if shared:
        raise InputError(f"{folder}: expected two models of disjoint half sets, found {min(shared)} in both")
    return models
