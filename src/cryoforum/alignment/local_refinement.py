"""Poses as exact as the noise allows: each image against the reference, by Levenberg-Marquardt.

Three rotations and two origins per particle, from low to high frequency, from several starts of which
the likeliest is kept. What the image says about the pose comes out beside it: the Fisher information.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoforum.distributions.bingham import OrientationPosterior, posterior_from_curvature
from cryoforum.errors import InputError, require
from cryoforum.fields.rows import Noun, take
from cryoforum.fields.settings import settle_settings
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group
from cryoforum.geometry.rotations import compose
from cryoforum.imaging.likelihood import Evaluation, WhitenedImages, evaluate


@dataclass(frozen=True)
class LocalRefinementConfig:
    """Stages of the refinement, from low to high frequency.

    Parameters
    ----------
    stage_shells
        Frequencies (cycles per box) up to which the first stages look; the last sees all.
    stage_survivors, survival_margin
        At most so many starts of a particle go on after each of these stages, and none whose log-likelihood
        is more than the margin below the particle's best.
    stage_steps, last_steps
        Steps in each of these stages, and at most in the last.

    Raises
    ------
    InputError
        Where shells and survivors differ in number, or a count is below 1.
    """

    stage_shells: tuple[int, ...] = (10, 20)
    stage_survivors: tuple[int, ...] = (8, 3)
    survival_margin: float = 12.0
    stage_steps: int = 4
    last_steps: int = 12

    def __post_init__(self) -> None:
        settle_settings(self)
        shells, survivors = len(self.stage_shells), len(self.stage_survivors)
        expected = "as many stage_survivors as stage_shells"
        require(survivors == shells, expected, f"{survivors} and {shells}")
        if min(self.stage_survivors, default=1) < 1 or min(self.stage_steps, self.last_steps) < 1:
            raise InputError("expected survivors and steps of 1 or more in every stage")


DEFAULT_CONFIG = LocalRefinementConfig()
CONVERGED_GAIN = 3e-3  # a step that promises less log-likelihood is a twelfth of a standard deviation
LARGEST_TURN_RAD = 0.2  # of one step
DAMPING_START, DAMPING_UP, DAMPING_DOWN = 1e-3, 10.0, 0.1
# After a stage up to shell s, poses closer than this over s (rad; times box, pixels) are one mode.
SAME_MODE_TURN, SAME_MODE_MOVE = 0.5, 0.125
# Two results closer than this many deviations are one mode that was reached twice.
SAME_MODE_DEVIATIONS = 4.0


@dataclass(frozen=True)
class RefinedPoses:
    """The likeliest pose of each particle and what its image says about it.

    Parameters
    ----------
    quaternions, origins_pixel
        Pose; origins are rlnOrigin in pixels of the image.
    gain
        Log-likelihood over that of noise alone.
    signal_scale
        How strong the particle is in its image; 1 as the reference says.
    information
        Fisher information for a signal of scale 1: rotations about the axes of the view (rad), then origins
        (pixels).
    mode_probability
        Posterior share of this pose's mode among the modes that were refined.
    other_modes_rad2
        Mean square distance of the other modes, 0 where there are none.
    """

    quaternions: Float[Tensor, "n 4"]
    origins_pixel: Float[Tensor, "n 2"]
    gain: Float[Tensor, " n"]
    signal_scale: Float[Tensor, " n"]
    information: Float[Tensor, "n 5 5"]
    mode_probability: Float[Tensor, " n"]
    other_modes_rad2: Float[Tensor, " n"]


@dataclass(frozen=True)
class _Climbers:
    """Poses on their way up, (m,) of them; ``rows`` says whose image each belongs to, ascending."""

    rows: Tensor
    quaternions: Tensor
    origins_pixel: Tensor
    evaluation: Evaluation

    def __getitem__(self, chosen: Tensor) -> "_Climbers":
        return take(self, chosen)


def refine_locally(
    transform: Tensor,
    images: WhitenedImages,
    quaternions: Float[Tensor, "n s 4"],
    origins_pixel: Float[Tensor, "n s 2"],
    config: LocalRefinementConfig = DEFAULT_CONFIG,
    plausible: Bool[Tensor, "n s"] | None = None,
    symmetry: str = "C1",
) -> RefinedPoses:
    """The likeliest pose that each image reaches from its starts.

    Parameters
    ----------
    transform
        `projection.cropped_transform` of the reference, up to the images' frequencies or further.
    images
        Whitened, n of them.
    quaternions, origins_pixel
        Starts of each image, the most probable first: the result is never less likely than that one.
    config
        Stages.
    plausible
        The starts worth trying; all where None. Each first one is tried anyway.
    symmetry
        Point group of the reference; equivalent poses are one mode.
    """
    count, starts = quaternions.shape[:2]
    tried = torch.ones(count, starts, dtype=torch.bool) if plausible is None else plausible.clone()
    tried[:, 0] = True
    rows = torch.arange(count)[:, None].expand(-1, starts)[tried]
    poses, origins = quaternions[tried], origins_pixel[tried].float()
    highest, box = float(images.points.radius[-1]), images.points.box
    group = symmetry_group(symmetry)
    for shell, survivors in zip(config.stage_shells, config.stage_survivors, strict=True):
        if shell < highest:
            stage = _ascend(transform, images.within(shell), rows, poses, origins, config.stage_steps)
            stage = stage[_survivors(stage, survivors, config.survival_margin)]
            stage = stage[_distinct(stage, SAME_MODE_TURN / shell, SAME_MODE_MOVE * box / shell, group)]
            rows, poses, origins = stage.rows, stage.quaternions, stage.origins_pixel
    found = _ascend(transform, images, rows, poses, origins, config.last_steps)
    # Coarse stages may have led away from a good start: where the first one, as given, is better
    # than all that was reached, the way up from there replaces the particle's best.
    best = _best_of_each(found.rows, found.evaluation.gain)
    first = quaternions[:, 0], origins_pixel[:, 0].float()
    given = evaluate(transform, images, torch.arange(count), *first).gain
    missed = (given > found.evaluation.gain[best]).nonzero()[:, 0]
    if len(missed):
        retry = _ascend(transform, images, missed, first[0][missed], first[1][missed], config.last_steps)
        found = _replaced(found, best[missed], retry)
    return _summary(found, group)


def _summary(found: _Climbers, group: Tensor) -> RefinedPoses:
    """The best climber of each image; the others tell how sure its mode is."""
    gain = found.evaluation.gain
    best = _best_of_each(found.rows, gain)
    winner = found[best]
    distance = symmetric_distance(found.quaternions, winner.quaternions[found.rows], group)
    deviation = rms_error_rad(orientation_covariance(winner.evaluation.information))
    is_other = distance > SAME_MODE_DEVIATIONS * deviation[found.rows]
    weight = torch.where(is_other, torch.exp(gain - gain[best][found.rows]), 0.0)
    total = torch.zeros_like(gain[best]).index_add_(0, found.rows, weight)
    squares = torch.zeros_like(total).index_add_(0, found.rows, weight * distance.square())
    cross, power = winner.evaluation.cross, winner.evaluation.power
    return RefinedPoses(
        quaternions=winner.quaternions,
        origins_pixel=winner.origins_pixel,
        gain=gain[best].float(),
        signal_scale=(cross / power.clamp_min(1e-30)).float(),
        information=winner.evaluation.information,
        mode_probability=(1 / (1 + total)).float(),
        other_modes_rad2=torch.where(total > 0, squares / total.clamp_min(1e-30), 0.0).float(),
    )


def _ascend(
    transform: Tensor, images: WhitenedImages, rows: Tensor, poses: Tensor, origins: Tensor, steps: int
) -> _Climbers:
    """Levenberg-Marquardt steps of every (image, pose) pair; none makes its pair less likely."""
    current = _Climbers(rows, poses, origins, evaluate(transform, images, rows, poses, origins))
    damping = torch.full((len(rows),), DAMPING_START, dtype=torch.float64)
    active = torch.arange(len(rows))
    reach = images.points.box / (4 * float(images.points.radius[-1]))
    for _ in range(steps):
        step, promised = _step(current.evaluation[active], damping[active], reach)
        active, step = active[promised > CONVERGED_GAIN], step[promised > CONVERGED_GAIN]
        if not len(active):
            break
        moved = (
            _turned(current.quaternions[active], step[:, :3]),
            current.origins_pixel[active] + step[:, 3:].float(),
        )
        trial = _Climbers(rows[active], *moved, evaluate(transform, images, rows[active], *moved))
        better = trial.evaluation.gain > current.evaluation.gain[active]
        damping[active] *= torch.where(better, DAMPING_DOWN, DAMPING_UP).double()
        current = _replaced(current, active[better], trial[better])
    return current


def _step(current: Evaluation, damping: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Damped Gauss-Newton steps (m, 5), bounded, and the gain (m,) that they promise."""
    information, gradient = current.information.double(), current.gradient.double()
    diagonal = information.diagonal(dim1=1, dim2=2)
    # A tiny part of the largest entry keeps a direction without information from being singular.
    extra = damping[:, None] * diagonal + 1e-9 * diagonal.amax(1, keepdim=True) + 1e-12
    step = torch.linalg.solve(information + torch.diag_embed(extra), gradient[..., None])[..., 0]
    turn = torch.linalg.vector_norm(step[:, :3], dim=1)
    move = torch.linalg.vector_norm(step[:, 3:], dim=1)
    share = torch.minimum(LARGEST_TURN_RAD / turn.clamp_min(1e-12), reach / move.clamp_min(1e-12))
    step = step * share.clamp_max(1.0)[:, None]
    curved = torch.einsum("mi,mij,mj->m", step, information, step)
    return step, (gradient * step).sum(1) - curved / 2


def _turned(quaternions: Tensor, rotation_vectors: Tensor) -> Tensor:
    """R exp[ω]×, as unit quaternions; ω (m, 3) in radians about the axes of the view."""
    angle = torch.linalg.vector_norm(rotation_vectors, dim=1, keepdim=True)
    half = torch.cat([torch.sinc(angle / (2 * torch.pi)) * rotation_vectors / 2, torch.cos(angle / 2)], dim=1)
    turned = compose(quaternions.double(), half)
    return torch.nn.functional.normalize(turned, dim=1).to(quaternions.dtype)


def _ranks(rows: Tensor, gain: Tensor) -> Tensor:
    """Place of each climber among those of its image, 0 for the likeliest; ``rows`` are ascending."""
    order = torch.argsort(gain, descending=True, stable=True)
    order = order[torch.argsort(rows[order], stable=True)]
    first = torch.searchsorted(rows, rows)
    ranks = torch.empty_like(rows)
    ranks[order] = torch.arange(len(rows))
    return ranks - first


def _best_of_each(rows: Tensor, gain: Tensor) -> Tensor:
    """Index of the likeliest climber of each image, in the order of the images."""
    return (_ranks(rows, gain) == 0).nonzero()[:, 0]


def _distinct(climbers: _Climbers, turn_rad: float, move_pixel: float, group: Tensor) -> Tensor:
    """Which climbers (m,) are not where a likelier one of the same image is, too."""
    rank = _ranks(climbers.rows, climbers.evaluation.gain)
    distinct = torch.ones(len(rank), dtype=torch.bool)
    for better in range(int(rank.max())):
        # The image's climber of rank ``better``, beside each of its later ones.
        at = rank == better
        later = (rank > better).nonzero()[:, 0]
        position = at.nonzero()[:, 0][torch.searchsorted(climbers.rows[at], climbers.rows[later])]
        turn = symmetric_distance(climbers.quaternions[later], climbers.quaternions[position], group)
        move = (climbers.origins_pixel[later] - climbers.origins_pixel[position]).abs().amax(1)
        distinct[later[(turn < turn_rad) & (move < move_pixel)]] = False
    return distinct


def _survivors(climbers: _Climbers, count: int, margin: float) -> Tensor:
    """Which climbers (m,) are among the ``count`` likeliest of their image and within ``margin`` of it."""
    rows, gain = climbers.rows, climbers.evaluation.gain
    best = gain[_best_of_each(rows, gain)]
    position = torch.searchsorted(rows.unique_consecutive(), rows)
    return (_ranks(rows, gain) < count) & (gain >= best[position] - margin)


def _replaced(old: Noun, places: Tensor, new: Noun) -> Noun:
    """``old`` with the entries at ``places`` of every field taken from ``new``."""
    pairs = [(getattr(old, entry.name), getattr(new, entry.name)) for entry in fields(old)]
    return type(old)(
        *(a.index_copy(0, places, b) if isinstance(a, Tensor) else _replaced(a, places, b) for a, b in pairs)
    )


def orientation_information(information: Float[Tensor, "n 5 5"]) -> Float[Tensor, "n 3 3"]:
    """Information about the three rotations where the origin is not known: the Schur complement."""
    cross = information[:, :3, 3:]
    return information[:, :3, :3] - cross @ torch.linalg.solve(_regular(information[:, 3:, 3:]), cross.mT)


def orientation_covariance(information: Float[Tensor, "n 5 5"]) -> Float[Tensor, "n 3 3"]:
    """Smallest possible covariance of an unbiased estimate of the three rotations, in rad² (Cramér-Rao)."""
    return torch.linalg.inv(_regular(orientation_information(information)))


def origin_covariance_pixel2(information: Float[Tensor, "n 5 5"]) -> Float[Tensor, "n 2 2"]:
    """Smallest possible covariance of the origin in pixels², where the orientation is not known."""
    cross = information[:, :3, 3:]
    along = torch.linalg.solve(_regular(information[:, :3, :3]), cross)
    return torch.linalg.inv(_regular(information[:, 3:, 3:] - cross.mT @ along))


def rms_error_rad(covariance: Float[Tensor, "n 3 3"]) -> Float[Tensor, " n"]:
    """Root of the mean squared angle |ω| of rotations ω with these covariances."""
    return covariance.diagonal(dim1=1, dim2=2).sum(1).sqrt().float()


def image_posterior(refined: RefinedPoses) -> OrientationPosterior:
    """What each image says of its orientation (Laplace): the information at its own signal scale."""
    scale = refined.signal_scale.double().clamp_min(0).square()
    curvature = 4 * scale[:, None, None] * orientation_information(refined.information)
    return posterior_from_curvature(refined.quaternions, curvature)


def _regular(matrices: Tensor) -> Tensor:
    """With a trace of 1e-9 more: a junk image may say nothing at all about some direction."""
    size = matrices.shape[-1]
    trace = matrices.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    return matrices + (1e-9 * trace + 1e-12) * torch.eye(size, dtype=matrices.dtype)
