"""What a training needs of its particles, in memory: training images, validation images, a simulator."""

from dataclasses import dataclass

from torch import Tensor

from cryoforum.config import Config
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.split import Split
from cryoforum.errors import InputError
from cryoforum.geometry.point_groups import in_fundamental_domain, symmetry_group
from cryoforum.network.preprocessing import Intensity, prepare_all, set_intensity
from cryoforum.reconstruction.reference_map import Reference
from cryoforum.runtime.devices import Compute
from cryoforum.runtime.distributed import (
    from_first,
    joined_shares,
    own_share,
    process_rank_and_count,
    refuse_unequal_shares,
)
from cryoforum.runtime.reporter import SILENT, Reporter
from cryoforum.training.batches import TrainingImages, image_count, simulated_count
from cryoforum.training.simulated_images import ImageSimulator, image_simulator

VALIDATION_LIMIT = 2000  # particles it is taken on: enough for a median, and no cost on large sets


@dataclass(frozen=True)
class TrainingData:
    """Images in memory; made by `training_data`.

    Attributes
    ----------
    particles : TrainingImages
        To learn from.
    validation_images : Tensor
        Network inputs (v, m, m); of several processes each holds its share.
    validation_truth : Tensor
        Orientations (v, 4) of all validation particles.
    simulator : ImageSimulator, optional
        Where a share of the training images is simulated.
    intensity : Intensity, optional
        Where the set is standardised as a whole.
    """

    particles: TrainingImages
    validation_images: Tensor
    validation_truth: Tensor
    simulator: ImageSimulator | None
    intensity: Intensity | None


def training_data(
    particles: Particles,
    config: Config,
    split: Split,
    compute: Compute,
    *,
    reference: Reference | None = None,
    reporter: Reporter = SILENT,
) -> TrainingData:
    """Read and prepare the images of training and validation particles.

    Of several processes each prepares its share of the images, and the training images of all are joined.

    Parameters
    ----------
    particles : Particles
        With poses.
    config : Config
    split : Split
        Rows of ``particles``; at most `VALIDATION_LIMIT` validation rows are used.
    compute : Compute
        Where simulated images will be made.
    reference : Reference, optional
        What simulated images show.
    reporter : Reporter
        Shows how many images are prepared.

    Raises
    ------
    InputError
        For particles without poses, nothing to simulate from, or a batch that processes cannot share evenly.
    """
    if particles.poses is None:
        raise InputError("expected particles with rlnAngleRot, rlnAngleTilt and rlnAnglePsi to learn from")
    is_simulated = simulated_count(config) > 0
    if is_simulated and reference is None:
        raise InputError("expected a reference, as simulated_share is above 0, found none to simulate from")
    refuse_unequal_shares(image_count(config, len(split.train)))
    settings, group = config.preprocessing, symmetry_group(config.symmetry)
    training, validation_rows = particles.select(split.train), split.validation[:VALIDATION_LIMIT]
    intensity = None
    if settings.standardise == "set":
        intensity = from_first(lambda: set_intensity(training, settings), Intensity)
    advance = reporter.progress("reading particles", len(split.train) + len(validation_rows))
    _, process_count = process_rank_and_count()

    def prepared_share(rows: Tensor) -> Tensor:
        share = particles.select(rows[own_share()])
        return prepare_all(
            share, settings, intensity=intensity, progress=lambda n: advance(n * process_count)
        )

    orientations = particles.poses.quaternions[split.train]
    if config.symmetry_handling == "domain":
        orientations = in_fundamental_domain(orientations, group)
    simulator = None
    if is_simulated and reference is not None:
        simulator = image_simulator(training, reference, settings, intensity, compute.device)
    inputs = TrainingImages(
        images=joined_shares(prepared_share(split.train), len(split.train)),
        orientations=orientations,
        ctf=training.ctf,
        pixel_size_angstrom=particles.box * particles.pixel_size_angstrom / settings.box,
    )
    truth = particles.poses.quaternions[validation_rows]
    return TrainingData(inputs, prepared_share(validation_rows), truth, simulator, intensity)
