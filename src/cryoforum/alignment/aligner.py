"""Whatever finds the poses of particles, batch by batch; and `align`, which needs nothing but a map.

Commands and the Python API go through the same aligners: a map's (`map_aligner`), the network alone, or two
of either for two half sets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch

from cryoforum.alignment.class_aligner import aligner_of
from cryoforum.alignment.config import AlignmentConfig
from cryoforum.dataset.particles import Particles, loaded_batches
from cryoforum.dataset.predictions import Predictions, joined_predictions
from cryoforum.network.model import TrainedModel
from cryoforum.network.predict import BATCH_SIZE, predict_batch
from cryoforum.reconstruction.reference_map import Reference
from cryoforum.runtime.devices import Compute
from cryoforum.runtime.reporter import SILENT, Reporter


@runtime_checkable
class Aligner(Protocol):
    """Finds poses with their uncertainty."""

    def align_batch(self, batch: Particles) -> Predictions:
        """Predictions of a few particles, in order."""
        ...


@dataclass(frozen=True)
class NetworkAligner:
    """The network alone: orientations without shifts."""

    model: TrainedModel
    tta: int | None = None
    compute: Compute | None = None

    def align_batch(self, batch: Particles) -> Predictions:
        """Predictions without shifts and evidence."""
        return predict_batch(self.model, batch, self.tta, self.compute)


@dataclass(frozen=True)
class HalfSetAligner:
    """For each particle the aligner of one of two half sets.

    Parameters
    ----------
    aligners
        Of half 1 and half 2; None where no particle needs it.
    half_of_name
        1 or 2 by image name.
    own_references
        Whether each aligner compares images with nothing but the map of its own half.
    """

    aligners: tuple[Aligner | None, Aligner | None]
    half_of_name: Mapping[str, int]
    own_references: bool

    def align_batch(self, batch: Particles) -> Predictions:
        """Predictions in the order of the batch, which say whose model and map they are from."""
        which = torch.tensor([self.half_of_name[name] for name in batch.names])
        parts, order = [], []
        for half, aligner in enumerate(self.aligners, 1):
            rows = (which == half).nonzero()[:, 0]
            if aligner is not None and len(rows):
                own = replace(batch.select(rows), images=batch.images[rows])
                parts.append(_of_half(aligner.align_batch(own), half if self.own_references else 0))
                order.append(rows)
        return joined_predictions(parts)[torch.argsort(torch.cat(order))]


def _of_half(predictions: Predictions, half: int) -> Predictions:
    used, evidence = torch.full((len(predictions),), half), predictions.evidence
    if evidence is not None:
        evidence = replace(evidence, reference_half=used)
    return replace(predictions, model_half=used, evidence=evidence)


def align(
    reference: Reference | Sequence[Reference],
    particles: Particles,
    model: TrainedModel | None = None,
    config: AlignmentConfig | None = None,
    *,
    own_half_maps: bool = False,
    reporter: Reporter = SILENT,
) -> Predictions:
    """Poses of all particles, in order, refined from the candidates of a network or of the global search.

    Parameters
    ----------
    reference
        A map at the particles' box and pixel size: `reference_from_map`, `reference_from_particles`, or
        `load_reference` of a model folder. Of several, one a class, each particle gets the pose in the class
        that it is likeliest in.
    particles
        n of them; noise and signal scale are measured on a sample.
    model
        None for the global search alone.
    config
        None for the defaults of `AlignmentConfig`.
    own_half_maps
        Compare each half set with the map of its own half.
    reporter
        Told of the images done.

    Returns
    -------
    Predictions of n particles, with shifts and evidence; of several references with classes.

    Raises
    ------
    InputError
        Where half maps are asked for and there are none, or the images have no contrast.
    """
    references = [reference] if isinstance(reference, Reference) else reference
    aligner = aligner_of(references, particles, model, config, own_half_maps=own_half_maps)
    advance, batches = reporter.progress("aligning", len(particles)), []
    for batch in loaded_batches(particles, BATCH_SIZE):
        batches.append(aligner.align_batch(batch))
        advance(len(batch))
    return joined_predictions(batches)
