"""What a model is made by: settings with their defaults, presets of them, and how a user changes some."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from cryoforum.choices import (
    ACTIVATIONS,
    AUXILIARIES,
    BACKBONES,
    BLURS,
    HEADS,
    LOSSES,
    PAIRINGS,
    POOLINGS,
    SCHEDULES,
)
from cryoforum.distributions.exponential_family import least_degree
from cryoforum.errors import InputError, require
from cryoforum.fields.settings import one_of, settle_settings

# Of the exponential family: its basis takes gigabytes and minutes beyond, as for n-fold axes of n above 16.
HIGHEST_DEGREE = 16
# Beyond these a number is a slip, and takes memory that no machine has.
LARGEST_BOX, LARGEST_WIDTH, LARGEST_DEPTH = 1024, 4096, 64
_TRAINING_RANGES = (("grid_nside", 1, 16), ("grid_count", 1, 64), ("batch_size", 2, 65_536))
MOST_WIDTHS = {"vgg": 10, "residual": 6}  # by backbone


@dataclass(frozen=True)
class PreprocessingConfig:
    """From particle image to network input."""

    box: int = 64  # the field of view stays; higher frequencies are cut off
    phase_flip: bool = True
    # By mean and deviation of each image, or of all that are learned from.
    standardise: str = one_of(("image", "set"), "image")
    mask_inner: float = 0.85  # in units of half the box: 1 inside, falling to 0 at mask_outer
    mask_outer: float = 0.99

    def __post_init__(self) -> None:
        settle_settings(self)
        is_even = 8 <= self.box <= LARGEST_BOX and self.box % 2 == 0
        require(is_even, f"an even box of 8 to {LARGEST_BOX}", self.box)
        edges = (self.mask_inner, self.mask_outer)
        require(0 < edges[0] < edges[1], "0 < mask_inner < mask_outer", edges)


@dataclass(frozen=True)
class AugmentationConfig:
    """Changes of training images (Cryo-forum, 3.2), and images made for training; 0 or false is off.

    Simulated images are new in direction, origin, CTF and noise as they are, and not changed further.
    """

    rotate: bool = True  # in the plane: exact, the orientation turns along
    mirror: bool = True  # the molecule from behind: exact, too
    max_shift_pixel: float = 1.0  # at the network's pixel size
    noise: float = 0.0  # deviation of white noise added, in units of standardised images
    defocus_angstrom: float = 0.0  # deviation of an error in defocus: phases flip wrongly; needs a CTF
    contrast: float = 0.0  # deviation of the logarithm of a factor on the whole image
    simulated_share: float = 0.0  # of the images shown: endless projections of the training particles' map

    def __post_init__(self) -> None:
        settle_settings(self)
        for name in ("max_shift_pixel", "noise", "defocus_angstrom", "contrast", "simulated_share"):
            require(getattr(self, name) >= 0, f"{name} of 0 or more", getattr(self, name))
        require(self.simulated_share <= 1, "simulated_share of 1 or less", self.simulated_share)


@dataclass(frozen=True)
class NetworkConfig:
    """blur → backbone → pooling → dense layer → head."""

    blur: str = one_of(BLURS, "none")
    backbone: str = one_of(BACKBONES, "residual")
    widths: tuple[int, ...] = (32, 64, 128, 256)  # of the backbone's stages
    stem_stride: int = 2  # only residual: by how much its first convolution shrinks the image
    depth: int = 1  # only residual: blocks a stage
    activation: str = one_of(ACTIVATIONS, "relu")
    pooling: str = one_of(POOLINGS, "flatten")
    dropout: float = 0.0
    head: str = one_of(HEADS, "exponential_family")
    degree: int = 6  # only exponential_family: L; 1 is the Bingham distribution
    head_nside: int = 4  # only softmax_grid: 4608 rotations, 15° apart

    def __post_init__(self) -> None:
        settle_settings(self)
        within = len(self.widths) > 0 and min(self.widths) > 0 and max(self.widths) <= LARGEST_WIDTH
        require(within, f"widths of 1 to {LARGEST_WIDTH}", self.widths)
        most = MOST_WIDTHS.get(self.backbone, len(self.widths))
        require(len(self.widths) <= most, f"at most {most} widths for backbone {self.backbone}", self.widths)
        require(self.stem_stride in (1, 2, 4), "stem_stride of 1, 2 or 4", self.stem_stride)
        require(1 <= self.depth <= LARGEST_DEPTH, f"depth of 1 to {LARGEST_DEPTH}", self.depth)
        require(0 <= self.dropout < 1, "dropout of 0 or more, below 1", self.dropout)
        require(self.degree >= 1, "degree of 1 or more", self.degree)
        require(1 <= self.head_nside <= 8, "head_nside of 1 to 8", self.head_nside)


@dataclass(frozen=True)
class TrainingConfig:
    """How the network is trained. ``image_passes`` counts images shown; --max-minutes replaces it."""

    image_passes: int = 120_000
    batch_size: int = 64
    loss: str = one_of(LOSSES, "likelihood")
    # The next three only where loss is "pairs": of a batch or drawn from all particles; weight of the pair
    # distances' error; how fast it moves from pairs to single images (eq. 4).
    pairs: str = one_of(PAIRINGS, "all")
    auxiliary: str = one_of(AUXILIARIES, "curriculum")
    curriculum_exponent: float = 0.5
    schedule: str = one_of(SCHEDULES, "one_cycle")
    max_learning_rate: float = 2e-3
    weight_decay: float = 0.05  # decoupled, on weights of convolutions and dense layers
    l2: float = 0.0  # added to the loss, as the paper does
    grid_nside: int = 6  # only exponential_family: rotations far from the truth that normalise its likelihood
    grid_count: int = 8  # randomly turned copies of that grid, used in turn

    def __post_init__(self) -> None:
        settle_settings(self)
        require(self.image_passes >= 1, "image_passes of 1 or more", self.image_passes)
        for name, least, most in _TRAINING_RANGES:
            found = getattr(self, name)
            require(least <= found <= most, f"{name} of {least} to {most}", found)
        require(self.max_learning_rate > 0, "max_learning_rate above 0", self.max_learning_rate)
        for name in ("weight_decay", "l2"):
            require(getattr(self, name) >= 0, f"{name} of 0 or more", getattr(self, name))
        require(self.curriculum_exponent > 0, "curriculum_exponent above 0", self.curriculum_exponent)


@dataclass(frozen=True)
class Config:
    """Everything that makes a model.

    symmetry: the molecule's point group, as RELION names it. symmetry_handling: "group" takes every distance
    and density over all equivalent orientations; "domain" moves the training orientations into one
    fundamental domain and learns as if there were no symmetry (Cryo-forum, 4.3). preprocessing, augmentation,
    network, training: settings of the parts.
    """

    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    symmetry: str = "C1"
    symmetry_handling: str = one_of(("group", "domain"), "group")

    def __post_init__(self) -> None:
        settle_settings(self)
        share, batch = self.augmentation.simulated_share, self.training.batch_size
        expected = f"simulated_share of 0, or of an image or more in a batch of {batch}"
        require(share == 0 or share * batch >= 1, expected, share)
        box, stages = self.preprocessing.box, len(self.network.widths)
        if self.network.backbone == "residual":
            shrinking = self.network.stem_stride * 2 ** (stages - 1)
            require(box % shrinking == 0, f"a box divisible by {shrinking} for {stages} widths", box)
        least = least_degree(self.learned_symmetry)
        if self.network.head == "exponential_family":
            expected = f"degree of {least} or more for symmetry {self.symmetry}"
            require(self.network.degree >= least, expected, self.network.degree)
            expected = f"degree of {HIGHEST_DEGREE} or less, as 'cryoforum align' needs none"
            require(self.network.degree <= HIGHEST_DEGREE, expected, self.network.degree)

    @property
    def learned_symmetry(self) -> str:
        """The point group that loss and head know of: none where orientations are kept in one domain."""
        return "C1" if self.symmetry_handling == "domain" else self.symmetry


_PAPER = Config(
    PreprocessingConfig(box=128, phase_flip=False),
    AugmentationConfig(rotate=False, mirror=False, max_shift_pixel=0.0),
    NetworkConfig(
        blur="low_pass",
        backbone="vgg",
        widths=(32, 64, 128, 128, 256, 256, 512, 512, 1024, 1024),
        activation="prelu",
        pooling="gem",
        dropout=0.3,
        head="qcqp",
    ),
    TrainingConfig(
        image_passes=6_300_000,
        batch_size=256,
        loss="pairs",
        max_learning_rate=1e-3,
        weight_decay=0.0,
        l2=1e-3,
    ),
)

PRESETS = {
    "tiny": Config(
        PreprocessingConfig(box=32),
        network=NetworkConfig(widths=(16, 32, 64), degree=3),
        training=TrainingConfig(image_passes=20_000, grid_nside=4, grid_count=4),
    ),
    "small": Config(
        augmentation=AugmentationConfig(simulated_share=0.5),
        network=NetworkConfig(degree=8),
        training=TrainingConfig(max_learning_rate=5e-4, grid_nside=7),
    ),
    "paper": _PAPER,
    # the paper's section 5: without the last two convolutions, under a third of the numbers
    "expedited": replace(_PAPER, network=replace(_PAPER.network, widths=_PAPER.network.widths[:8])),
}


def preset(name: str) -> Config:
    """The configuration called ``name``; InputError lists the known ones."""
    require(name in PRESETS, f"a preset out of {', '.join(PRESETS)}", f"'{name}'")
    return PRESETS[name]


def with_symmetry(config: Config, symmetry: str) -> Config:
    """``config`` for molecules of a point group; its degree rises where it is too low to tell them."""
    learned = "C1" if config.symmetry_handling == "domain" else symmetry
    degree = max(config.network.degree, least_degree(learned))
    return replace(config, network=replace(config.network, degree=degree), symmetry=symmetry)


def read_config(path: Path, base: Config) -> Config:
    """``base`` with what the TOML file at ``path`` changes, in tables named as the fields of `Config`."""
    try:
        values = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"expected a TOML file at {path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"expected a TOML file at {path}: {error}") from error
    return updated(base, values, where=str(path))


def updated(base: Any, values: dict[str, Any], where: str) -> Any:
    """A dataclass with some fields replaced; unknown names and wrong types are refused by name."""
    known = {entry.name for entry in fields(base)}
    changes = {}
    for name, value in values.items():
        if name not in known:
            raise InputError(f"{where}: expected one of {', '.join(sorted(known))}, found '{name}'")
        current = getattr(base, name)
        if is_dataclass(current) and isinstance(value, dict):
            changes[name] = updated(current, value, f"{where}, {name}")
        else:
            changes[name] = _converted(current, value, f"{where}, {name}")
    try:
        return replace(base, **changes)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _converted(current: Any, value: Any, where: str) -> Any:
    if isinstance(current, tuple) and isinstance(value, list) and all(type(v) is int for v in value):
        return tuple(value)
    if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(current):
        raise InputError(f"{where}: expected a {type(current).__name__} such as {current!r}, found {value!r}")
    return value


def with_settings(config: Config, settings: Sequence[str]) -> Config:
    """``config`` after settings such as "network.pooling=gem"; values as in TOML, and words may be bare."""
    values: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        *tables, name = path.strip().split(".")
        if not equals or not name or len(tables) > 1:
            raise InputError(f"expected --set TABLE.NAME=VALUE, as network.pooling=gem, found '{setting}'")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        table = values.setdefault(tables[0], {}) if tables else values
        if not isinstance(table, dict):
            raise InputError(f"--set: expected settings of '{tables[0]}' or a value for it, found both")
        table[name] = value
    return updated(config, values, where="--set")


def chosen_config(
    preset_name: str, file: Path | None = None, settings: Sequence[str] = (), symmetry: str | None = None
) -> Config:
    """A preset, changed by a TOML file, by single settings and by a point group, in this order."""
    config = preset(preset_name)
    if file is not None:
        config = read_config(file, config)
    config = with_settings(config, settings)
    return config if symmetry is None else with_symmetry(config, symmetry)
