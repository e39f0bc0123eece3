"""Figures of the studies with their captions."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group
from cryoforum.geometry.rotations import random_unitquat
from cryoforum.report import figures
from cryoforum.report.inputs import most_certain
from cryoforum.report.layout import Exhibit, Panel
from cryoforum.report.sections import pair_distances
from cryoforum.report.wording import percent, thousands
from cryoforum.study import figures as drawings
from cryoforum.training.pairs import DISTANCE_BINS, random_pairs, stratified_pairs
from cryoforum.training.schedule import one_cycle

_PAIRS_DRAWN = 16_000


def dots_exhibit(medians: Mapping[str, Mapping[str, np.ndarray]], paper: Mapping[str, float]) -> Exhibit:
    """Medians by block, variant and seed on one axis, so that blocks can be compared (Table 1)."""
    shown = [values for block in medians.values() for values in block.values()]
    shown.append(np.array([paper[label] for block in medians.values() for label in block if label in paper]))
    every = np.concatenate(shown)
    limits = float(every.min()) / 1.15, float(every.max()) * 1.15
    panels = [Panel(name, drawings.dot_plot(name, block, paper, limits)) for name, block in medians.items()]
    caption = (
        "Table 1, block by block, on one axis: median error of every seed (dots), their mean (bars), and the "
        "paper's value where it is known (hollow). The base, where it was run, comes first."
    )
    return Exhibit(panels, caption)


def learning_exhibit(curves: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> Exhibit:
    """Learning curves by block and variant (Supplementary Fig. 3)."""
    panels = [Panel(name, drawings.learning_curves(name, block)) for name, block in curves.items()]
    caption = (
        "Median error on the validation particles while training goes on, first seed of each variant; as the "
        "paper's Supplementary Figure 3."
    )
    return Exhibit(panels, caption)


def noise_exhibit(seeds: Mapping[str, np.ndarray], paper: Mapping[str, float]) -> Exhibit:
    """Error by SNR (Supplementary Table 2)."""
    caption = (
        "Median error on test particles by SNR, the same molecule and poses throughout; hollow: the paper's "
        "Supplementary Table 2. Steps in SNR are drawn as equal."
    )
    return Exhibit([Panel("Median error by SNR", drawings.noise_curve(seeds, paper))], caption, columns=1)


def border_exhibit(
    ways: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], border_rad: float
) -> Exhibit:
    """`border_curves` of each group."""
    panels = [Panel(group, drawings.border_curves(group, own, border_rad)) for group, own in ways.items()]
    caption = (
        "Error to the nearest equivalent against how far the true orientation is from turning into an "
        f"equivalent of itself: medians (lines) and quartiles (bands) in {drawings.BORDER_BINS} bins of as "
        f"many particles each, first seed. Left of the dashed line, at {border_rad} rad, is near the border."
    )
    return Exhibit(panels, caption)


def orientations_exhibit(arrays: Mapping[str, np.ndarray], source: str) -> Exhibit:
    """True and predicted distances of pairs, and errors (Fig. 3); ``arrays`` as a run stores them."""
    true, predicted = (pair_distances(torch.from_numpy(arrays[name]), "C1") for name in ("truth", "mode"))
    error = {"error": np.rad2deg(arrays["error_rad"])}
    panels = (
        Panel("Distances of pairs", figures.pairwise_density(true, predicted)),
        Panel("Errors", figures.histograms(error, "error", "°")),
    )
    caption = (
        f"{source}: the {thousands(len(arrays['truth']))} test particles. Left: distances between the "
        f"orientations of {thousands(len(true))} random pairs, predicted against true; on the dashed line "
        "they agree. Right: geodesic distance of each predicted orientation to the true one. Laid out as the "
        "paper's Figure 3."
    )
    return Exhibit(panels, caption)


def certainty_exhibit(arrays: Mapping[str, np.ndarray], kept_share: float, source: str) -> Exhibit:
    """Both statistics of certainty against the error, and errors of kept and dropped (Fig. 5)."""
    errors, trace = arrays["error_rad"], arrays["trace"]
    groups = kept_and_dropped(trace, errors, kept_share)
    panels = (
        Panel("Λmax", figures.certainty_scatter(arrays["lambda_max"], errors, "Λmax", kept_share)),
        Panel("tr Λ", figures.certainty_scatter(trace, errors, "tr Λ", kept_share)),
        Panel("Kept and dropped by tr Λ", figures.error_histogram(*groups)),
    )
    caption = (
        f"{source}: certainty of each test particle against its error. The dashed line leaves the "
        f"{percent(kept_share)} that are most certain to its right (blue). Last: errors of those and of the "
        "others, each in per cent of its own number. Laid out as the paper's Figure 5."
    )
    return Exhibit(panels, caption, columns=3)


def junk_exhibit(arrays: Mapping[str, np.ndarray], kept_share: float, source: str) -> Exhibit:
    """Certainty of genuine particles and of junk, and errors of kept and dropped (Fig. 6)."""
    errors, trace, genuine = arrays["error_rad"], arrays["trace"], arrays["genuine"].astype(bool)
    certainty = {"junk": -trace[~genuine], "genuine": -trace[genuine]}
    groups = kept_and_dropped(trace, errors, kept_share)
    panels = (
        Panel("Certainty", figures.histograms(certainty, "−tr Λ")),
        Panel("Kept and dropped by tr Λ", figures.error_histogram(*groups)),
    )
    caption = (
        f"{source}: junk shows another molecule. Left: certainty of genuine and of junk particles, each in "
        f"per cent of its own number. Right: errors of the {percent(kept_share)} that are most "
        "certain and of the others, junk included, whose true orientation means nothing. Laid out as the "
        "paper's Figure 6."
    )
    return Exhibit(panels, caption)


def resolution_panel(
    name: str, curves: Mapping[str, tuple[np.ndarray, float]], extent_angstrom: float
) -> Panel:
    """FSC curves (shells,) and resolutions in Å, by the kind of orientations.

    ``extent_angstrom`` is the width of the box.
    """
    drawn = {way: (np.arange(len(fsc)) / extent_angstrom, fsc) for way, (fsc, _) in curves.items()}
    names = {way: f"{way} {resolution:.1f} Å" for way, (_, resolution) in curves.items()}
    return Panel(name, figures.fsc_curves(drawn, names, f"{name}: masked"))


def resolution_exhibit(panels: Sequence[Panel]) -> Exhibit:
    """`resolution_panel` of each set (Fig. 4)."""
    caption = (
        "Masked Fourier shell correlation of half maps from the test particles of the first seed, with true "
        "orientations, with predicted ones, and filtered: with the most certain particles only; genuine: "
        "without the junk. The legend gives the resolution at which a curve falls below 0.143 (dotted). One "
        "network aligned both half sets, so that curves of predicted orientations are optimistic. As the "
        "paper's Figure 4."
    )
    return Exhibit(panels, caption)


def pairs_exhibit() -> Exhibit:
    """Distances of pairs drawn at random and by strata (Supplementary Fig. 1)."""
    generator = torch.Generator().manual_seed(0)
    orientations, group = random_unitquat(2000, generator=generator), symmetry_group("C1")
    drawn = {
        "random pairs": random_pairs(len(orientations), _PAIRS_DRAWN, generator),
        "stratified pairs": stratified_pairs(orientations, group, _PAIRS_DRAWN, generator),
    }
    distances = {
        name: symmetric_distance(orientations[first], orientations[second], group).numpy()
        for name, (first, second) in drawn.items()
    }
    panels = [
        Panel(f"{bins} bins", drawings.distance_histogram(distances, bins))
        for bins in (DISTANCE_BINS, 4 * DISTANCE_BINS)
    ]
    caption = (
        f"True distances of {thousands(_PAIRS_DRAWN)} pairs of {thousands(len(orientations))} random "
        "orientations. "
        f"Stratified pairs fill {DISTANCE_BINS} equal ranges of distance alike (left); within one (right) "
        "they lie as random ones do. Redraws the paper's Supplementary Figure 1."
    )
    return Exhibit(panels, caption)


def schedule_exhibit(max_rate: float, steps: int) -> Exhibit:
    """Learning rate and momentum over a training (Supplementary Fig. 2)."""
    fractions = np.linspace(0, 1, 400)
    rate, momentum = np.transpose([one_cycle(fraction, max_rate) for fraction in fractions])
    drawn = figures.schedule(fractions * steps, rate, momentum)
    caption = (
        "One cycle: the learning rate rises and falls as a cosine while the momentum does the opposite, at "
        "the paper's largest rate and length. Redraws the paper's Supplementary Figure 2."
    )
    return Exhibit([Panel("Schedule", drawn)], caption, columns=1)


def kept_and_dropped(trace: np.ndarray, errors: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Errors of the ``share`` that is most certain by tr Λ, and of the others."""
    kept = most_certain(trace, share)
    return errors[kept], errors[~kept]
