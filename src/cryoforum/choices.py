"""Every choice that is made by name: words of the command line, and tables that a configuration chooses from.

A table is open to entries from outside: an entry is what its name stands for, or the place of that as
"module:attribute", which is imported when it is first used. To add a head, `register_head` puts what makes it
into `HEADS` under a name of your own; from then on ``network.head`` accepts the name. What an entry takes and
returns stands above each table.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal, get_args

from cryoforum.errors import require

CandidateSource = Literal["network", "search", "both"]
HalfMapsChoice = Literal["own", "all"]
SplitPart = Literal["train", "validation", "test"]
CertaintyStatistic = Literal["error", "trace", "max", "gap"]
Orientations = Literal["random", "grid"]
RelionDialect = Literal["3.0", "3.1"]
PresetName = Literal["tiny", "small", "paper", "expedited"]
StudyName = Literal["table1", "snr", "symmetry", "real", "all"]
StudyScale = Literal["cpu", "paper"]
RelionAction = Literal["train", "predict", "filter"]
JUNK_KINDS = ("noise", "edge", "overlap", "other_molecule", "half_molecule", "off_centre")
TtaCopies = Literal["1", "4", "8"]
Precision = Literal["auto", "float32", "bfloat16"]


def check_choice(what: str, word: str | None, kind: Any) -> None:
    """InputError where ``word`` is neither None nor one of the words of ``kind``, a Literal."""
    known = get_args(kind)
    require(word is None or word in known, f"{what} from {', '.join(known)}", f"'{word}'")


class Choices(dict[str, Any]):
    """What may be chosen, by name."""

    def chosen(self, name: str) -> Any:
        """What ``name`` stands for.

        Raises
        ------
        InputError
            Where the table has no such name; the message lists those it has.
        """
        require(name in self, f"one of {', '.join(self)}", f"'{name}'")
        entry = self[name]
        if not isinstance(entry, str):
            return entry
        module, _, attribute = entry.partition(":")
        return getattr(import_module(module), attribute)


# network.blur: box m -> (k, m, m // 2 + 1) by which the image's transform is multiplied for k more channels
BLURS = Choices(
    none="cryoforum.network.blur:no_transfer",
    gaussian="cryoforum.network.blur:gaussian_transfer",
    low_pass="cryoforum.network.blur:low_pass_transfer",
)
# network.backbone: (channels, box, NetworkConfig) -> a `network.backbone.Backbone`
BACKBONES = Choices(
    residual="cryoforum.network.backbone:ResidualBackbone",
    vgg="cryoforum.network.backbone:VggBackbone",
)
# network.activation: (channels, side) of feature maps -> module
ACTIVATIONS = Choices(
    relu="cryoforum.network.backbone:relu",
    prelu="cryoforum.network.backbone:PerElementPReLU",
)
# network.pooling: channels -> module from feature maps (b, channels, h, w) to numbers (b, k)
POOLINGS = Choices(
    flatten="cryoforum.network.pooling:flatten",
    max="cryoforum.network.pooling:MaximumPooling",
    max_average="cryoforum.network.pooling:MaximumAndMeanPooling",
    gem="cryoforum.network.pooling:GeneralisedMeanPooling",
)
# network.head: (NetworkConfig, point group) -> a `network.heads.Head`
HEADS = Choices(
    quaternion="cryoforum.network.matrix_heads:quaternion_head",
    gram_schmidt="cryoforum.network.matrix_heads:gram_schmidt_head",
    qcqp="cryoforum.network.matrix_heads:qcqp_head",
    symmetric="cryoforum.network.matrix_heads:symmetric_head",
    svd="cryoforum.network.matrix_heads:svd_head",
    matrix_fisher="cryoforum.network.matrix_heads:svd_head",  # what it is with the loss "likelihood"
    softmax_grid="cryoforum.network.density_heads:softmax_grid_head",
    exponential_family="cryoforum.network.density_heads:exponential_family_head",
)
# training.loss: (Config, torch.Generator, Compute) -> a `training.losses.Loss`
LOSSES = Choices(
    likelihood="cryoforum.training.losses:likelihood_loss",
    regression="cryoforum.training.losses:regression_loss",
    pairs="cryoforum.training.losses:siamese_loss",
)
# training.pairs: (orientations (n, 4), group (g, 4), count, torch.Generator) -> rows (2, count) of pairs;
# None: every two images of a batch
PAIRINGS = Choices(
    all=None,
    random="cryoforum.training.pairs:uniform_pairs",
    stratified="cryoforum.training.pairs:stratified_pairs",
)
# training.auxiliary: (progress through training in [0, 1], exponent) -> weight of single images in [0, 1]
AUXILIARIES = Choices(
    curriculum="cryoforum.training.losses:curriculum",
    constant="cryoforum.training.losses:constant_weight",
    none="cryoforum.training.losses:no_pairs",
)
# training.schedule: (progress through training in [0, 1], largest rate) -> learning rate and momentum
SCHEDULES = Choices(
    one_cycle="cryoforum.training.schedule:one_cycle",
    fixed="cryoforum.training.schedule:fixed_rate",
)


def register_head(name: str, make: Callable[[Any, str], Any]) -> None:
    """Let ``network.head`` accept a head of your own; again before a model with it is loaded.

    Parameters
    ----------
    name
        That no other head has.
    make
        (NetworkConfig, point group) -> a `network.heads.Head`.

    Raises
    ------
    InputError
        Where the name is taken by another, or there is nothing to call.
    """
    _register(HEADS, "head", name, make)


def register_backbone(name: str, make: Callable[[int, int, Any], Any]) -> None:
    """Let ``network.backbone`` accept a backbone of your own; ``name`` and errors as of `register_head`.

    ``make``: (channels, box, NetworkConfig) -> a `network.backbone.Backbone`.
    """
    _register(BACKBONES, "backbone", name, make)


def register_loss(name: str, make: Callable[[Any, Any, Any], Any]) -> None:
    """Let ``training.loss`` accept a loss of your own; ``name`` and errors as of `register_head`.

    ``make``: (Config, torch.Generator, Compute) -> a `training.losses.Loss`.
    """
    _register(LOSSES, "loss", name, make)


def _register(table: Choices, what: str, name: str, make: Any) -> None:
    is_free = name not in table or table[name] is make
    require(is_free, f"another name for a {what} than {', '.join(table)}", f"'{name}'")
    require(callable(make), f"what makes the {what} '{name}'", type(make).__name__)
    table[name] = make
