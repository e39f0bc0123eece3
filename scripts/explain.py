"""The pictures of docs/how_it_works.md and, on standard output as JSON, the numbers that its text quotes.

python scripts/explain.py demo docs/how_it_works

The folder is one that `cryoforum demo` wrote; of it model/ and particles, truth, network and predictions.star
are read.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from PIL import Image, ImageChops
from torch import Tensor

from cryoforum.dataset.particle_table import ParticleTable, number_column
from cryoforum.dataset.particles import Particles, loaded_batches
from cryoforum.dataset.poses import Poses
from cryoforum.distributions.bingham import OrientationPosterior, log_normalising_constant
from cryoforum.geometry.rotations import (
    compose,
    geodesic_distance,
    relion_euler_to_unitquat,
    unitquat_to_relion_euler,
)
from cryoforum.geometry.so3_grid import rotation_grid
from cryoforum.imaging.ctf import ctf_2d
from cryoforum.imaging.fft import phase_shift, to_real
from cryoforum.imaging.projection import cropped_transform, project
from cryoforum.io.relion.particles import particles_from_table, poses_from_table
from cryoforum.io.relion.star_files import read_star
from cryoforum.network.blur import Blur, low_pass_cutoffs, low_pass_transfer
from cryoforum.network.density_heads import ExponentialFamilyHead
from cryoforum.network.model import TrainedModel
from cryoforum.network.model_folder import load_model
from cryoforum.network.predict import network_numbers
from cryoforum.network.preprocessing import prepare
from cryoforum.reconstruction.reference_files import load_reference
from cryoforum.reconstruction.reference_map import Reference
from cryoforum.storage.files import replacing
from cryoforum.training.simulated_images import image_simulator

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#63635e"
# Colours of the smallest regions that hold these shares of a posterior.
REGIONS = {0.95: "#a3cde6", 0.5: BLUE}
WIDTH_INCHES, DOTS_PER_INCH, COLOURS, MARGIN_PIXEL = 7.0, 200, 128, 8  # of a picture
STRIP_INCHES = 2.3  # height of four images side by side
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
CAP_DEG = 20.0  # radius of a zoom on the sphere of view directions
WRONG_DEG = float(np.rad2deg(0.3))  # beyond, a pose counts as wrong
MODE_DEG = 30.0  # rotations nearer than this to a mode belong to it
CHUNK = 2**12  # rotations at once: larger tensors cost more to allocate than to fill
SEED = 3
LogDensity = Callable[[Tensor], Tensor]  # of rotations (..., 4), not normalised
Picture = tuple[Figure, dict[str, Any]]  # and the numbers that belong to it


@dataclass(frozen=True)
class Demo:
    """Particles of the demonstration, what was said of those for the test, and the model that said it.

    numbers: (n, k) of the network, from each image read once. Errors, found and expected, in degrees, (n,):
    single of that one copy, network of eight copies, refined after the comparison with the reference.
    """

    model: TrainedModel
    head: ExponentialFamilyHead
    reference: Reference
    training: Particles
    test: Particles
    truth: Poses
    numbers: Tensor
    found: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]


def read_demo(folder: Path) -> Demo:
    """Everything the pictures need; reads every test image once with the network."""
    model, reference = load_model(folder / "model"), load_reference(folder / "model")
    if reference is None or not isinstance(model.head, ExponentialFamilyHead):
        raise SystemExit(f"{folder}: expected a model with a reference and an exponential family, found none")
    test = particles_from_table(read_star(folder / "truth.star"))
    if test.poses is None:
        raise SystemExit(f"{folder / 'truth.star'}: expected true poses, found none")
    everything = particles_from_table(read_star(folder / "particles.star"))
    rows = [row for row, name in enumerate(everything.names) if model.parts[name] == "train"]
    # Linear in the numbers, the log density is calibrated as they are.
    numbers = model.sharpness * torch.cat(
        [network_numbers(model, batch) for batch in loaded_batches(test, 256)]
    )
    posterior = model.head.posterior(numbers)
    expected = {"single": np.rad2deg(2 * torch.acos(posterior.mode_moment.sqrt()).numpy())}
    modes = {"single": posterior.mode}
    for kind, name in (("network", "network.star"), ("refined", "predictions.star")):
        table = read_star(folder / name)
        poses = poses_from_table(table)
        if poses is None or tuple(table.particles["rlnImageName"]) != test.names:
            raise SystemExit(f"{folder / name}: expected poses of the particles of truth.star in their order")
        modes[kind], expected[kind] = poses.quaternions, column(table, "cryoforumExpectedErrorDeg")
    truth = test.poses.quaternions
    found = {kind: np.rad2deg(geodesic_distance(mode, truth).numpy()) for kind, mode in modes.items()}
    training = everything.select(torch.tensor(rows))
    return Demo(model, model.head, reference, training, test, test.poses, numbers, found, expected)


def column(table: ParticleTable, name: str) -> np.ndarray:
    """A column of numbers that has to be there."""
    values = number_column(table, name)
    if values is None:
        raise SystemExit(f"{table.path}: expected a column {name}, found none")
    return values


def problem(demo: Demo) -> Picture:
    """How the image of one particle comes about, the one farthest from the centre of its box."""
    row = _shown_row(demo)
    titles = [
        "the molecule\nfrom one side",
        "through the\nmicroscope",
        "off centre",
        "with noise:\nthe particle",
    ]
    figure = strip(_stages(demo, row), titles)
    for axes in figure.axes[:3]:
        for line in (axes.axvline, axes.axhline):
            line(demo.test.box // 2, color=ORANGE, linewidth=1)
    defocus = demo.test.ctf.defocus_u_angstrom[row] if demo.test.ctf is not None else torch.tensor(0.0)
    return figure, {
        "image": demo.test.names[row],
        "shift_pixel": float(shift_pixel(demo, row).norm()),
        "defocus_micrometre": float(defocus) / 1e4,
        "box_angstrom": demo.test.box * demo.test.pixel_size_angstrom,
    }


def _shown_row(demo: Demo) -> int:
    return max(range(len(demo.test)), key=lambda row: float(shift_pixel(demo, row).norm()))


def shift_pixel(demo: Demo, row: int) -> Tensor:
    """rlnOriginX and Y of a test particle in pixels."""
    return demo.truth.shifts_angstrom[row] / demo.test.pixel_size_angstrom


def _stages(demo: Demo, row: int) -> list[Tensor]:
    """The projection of the reference, with CTF, and where the particle is; then the particle's image."""
    test, rows = demo.test, torch.tensor([row])
    slices = project(cropped_transform(demo.reference.full.voxels), demo.truth.quaternions[rows], test.box)
    stages = [slices]
    if test.ctf is not None:
        slices = slices * ctf_2d(test.ctf[rows], test.box, test.pixel_size_angstrom)
    stages += [slices, phase_shift(slices, -shift_pixel(demo, row)[None])]
    return [*(to_real(stage, test.box)[0] for stage in stages), test.images[rows][0]]


def network_input(demo: Demo) -> Picture:
    """What the network is given of the same particle, at several resolutions, and without its noise."""
    row = _shown_row(demo)
    rows, settings = torch.tensor([row]), demo.model.config.preprocessing
    ctf = None if demo.test.ctf is None else demo.test.ctf[rows]

    def seen(image: Tensor) -> Tensor:
        size = demo.test.pixel_size_angstrom
        return prepare(image[None], ctf, size, settings, demo.model.intensity)

    *_, clean, recorded = _stages(demo, row)
    channels = Blur(low_pass_transfer(settings.box))(seen(recorded)[:, None])[0]
    extent = demo.test.box * demo.test.pixel_size_angstrom
    cutoffs = low_pass_cutoffs(settings.box)[-2:]
    images = [channels[-1], channels[-3], channels[-2], seen(clean)[0]]
    titles = [f"network input\n{settings.box} px", *(f"low-passed\nto {extent / u:.0f} Å" for u in cutoffs)]
    titles.append("the same input\nwithout noise")
    return strip(images, titles), {"low_pass_angstrom": [extent / u for u in low_pass_cutoffs(settings.box)]}


def strip(images: list[Tensor], titles: list[str]) -> Figure:
    """Four grey images side by side."""
    figure = new_figure(STRIP_INCHES)
    for axes, image, title in zip(figure.subplots(1, 4), images, titles, strict=True):
        show(axes, image, title)
    return figure


def new_figure(height_inches: float) -> Figure:
    """An empty picture, as wide as all are."""
    return Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")


def legend_below(figure: Figure, columns: int) -> None:
    """One legend for all axes, of what the first of them shows."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def show(axes: Axes, image: Tensor, title: str, limit: float | None = None) -> None:
    """A grey image from -``limit`` to ``limit``, or from its 1st to its 99th percentile."""
    low, high = np.percentile(image.numpy(), (1, 99)) if limit is None else (-limit, limit)
    axes.imshow(image.numpy(), cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()


def posterior_on_the_sphere(demo: Demo) -> Picture:
    """View directions around the true one, as a sure and an unsure reading of one image sees them."""
    order = np.argsort(demo.expected["single"])
    size = max(1, len(order) // 50)
    rows = {
        kind: _typical(demo, group) for kind, group in (("sure", order[:size]), ("unsure", order[-size:]))
    }
    figure = new_figure(3.6)
    facts: dict[str, Any] = {}
    for axes, (kind, row) in zip(figure.subplots(1, 2), rows.items(), strict=True):
        expected, found = (float(values["single"][row]) for values in (demo.expected, demo.found))
        _draw_cap(axes, density_of(demo, row), demo.truth.quaternions[row])
        axes.set_title(f"{kind}: expects to be {expected:.1f}° off, is {found:.1f}° off")
        facts[kind] = {"image": demo.test.names[row], "expected_deg": expected, "found_deg": found}
    legend_below(figure, columns=3)
    return figure, facts


def _typical(demo: Demo, rows: np.ndarray) -> int:
    """Of some particles the one with the median error."""
    errors = demo.found["single"][rows]
    return int(rows[np.argsort(errors)[len(errors) // 2]])


def _draw_cap(axes: Axes, log_density: LogDensity, truth: Tensor) -> None:
    """The sphere of view directions within `CAP_DEG` of the true one, which is in the middle."""
    axis = torch.linspace(-CAP_DEG, CAP_DEG, 81)
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    tilt, rot = torch.hypot(x, y), torch.rad2deg(torch.atan2(y, x))
    in_plane = torch.arange(-40.0, 40.0, 2.0)
    parts = torch.broadcast_tensors(rot[..., None], tilt[..., None], in_plane - rot[..., None])
    rotations = compose(truth, relion_euler_to_unitquat(torch.stack(parts, dim=-1)).to(truth))
    density = torch.where(tilt <= CAP_DEG, marginal(log_density, rotations), 0.0).numpy()
    draw_regions(axes, x.numpy(), y.numpy(), density, np.ones_like(density))
    turn = np.linspace(0, 2 * np.pi, 200)
    for radius in np.arange(5, CAP_DEG + 1, 5):
        axes.plot(radius * np.cos(turn), radius * np.sin(turn), color=GREY, linewidth=0.5, alpha=0.7)
        label = axes.text(0, -radius, f"{radius:.0f}°", fontsize=8, ha="center", va="center")
        label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    axes.plot(0, 0, "+", color=ORANGE, markersize=11, markeredgewidth=2, linestyle="", label="true direction")
    for share, colour in REGIONS.items():
        axes.fill([], [], color=colour, label=f"holds {share:.0%} of the posterior".replace("%", " %"))
    axes.set(aspect="equal", xlim=(-CAP_DEG - 1, CAP_DEG + 1), ylim=(-CAP_DEG - 1, CAP_DEG + 1))
    axes.set_axis_off()


def density_of(demo: Demo, row: int) -> LogDensity:
    """What the network says of a test particle, read once."""
    polynomials = demo.head.polynomials
    coefficients = polynomials.mixing @ demo.numbers[row]
    return lambda rotations: polynomials.monomials(rotations) @ coefficients


def marginal(log_density: LogDensity, rotations: Tensor) -> Tensor:
    """Density of view directions (..., k, 4): summed over the k in-plane angles of each; largest about 1.

    A third of the angles tells where nothing is to be found; there it is 0.
    """

    def values(some: Tensor) -> Tensor:
        return torch.cat([log_density(part) for part in some.reshape(-1, 4).split(CHUNK)]).view(
            some.shape[:-1]
        )

    highest = values(rotations[..., ::3, :]).amax(-1)
    is_near = highest > highest.max() - 20
    density = torch.zeros_like(highest)
    density[is_near] = (values(rotations[is_near]) - highest.max()).exp().sum(-1)
    return density / density.max()


def draw_regions(axes: Axes, x: np.ndarray, y: np.ndarray, density: np.ndarray, area: np.ndarray) -> None:
    """The smallest regions that hold the shares of `REGIONS`; ``area`` is that of each point."""
    order = np.argsort(-density, axis=None)
    held = np.cumsum((density * area).ravel()[order])
    levels = [density.ravel()[order][np.searchsorted(held, share * held[-1])] for share in REGIONS]
    axes.contourf(x, y, density, [*levels, 2.0], colors=list(REGIONS.values()))


def several_modes(demo: Demo) -> Picture:
    """All view directions of the particle whose reading is least sure which mode is right."""
    row = _least_decided(demo)
    log_density, truth = density_of(demo, row), demo.truth.quaternions[row]
    grid = rotation_grid(12)
    share = torch.cat([log_density(part) for part in grid.split(CHUNK)]).double().softmax(0)
    bingham = nearest_bingham(grid, share)
    modes = _two_modes(grid, share)
    centre = float(np.angle(sum(np.exp(1j * _sky_position(mode)[0]) for mode, _ in modes)))
    figure = new_figure(2.15)
    panels = {
        f"what the network says (L = {demo.head.degree})": log_density,
        "the nearest Bingham distribution (L = 1)": lambda q: -((q @ bingham.concentration[0]) * q).sum(-1),
    }
    for index, (title, shown) in enumerate(panels.items()):
        axes = figure.add_subplot(1, 2, index + 1, projection="mollweide")
        _draw_sky(axes, shown, centre)
        axes.plot(*_sky_position(truth, centre), "+", color=ORANGE, markersize=9, markeredgewidth=2)
        axes.set_title(title, pad=8)
    for mode, held in modes:
        place, text = _sky_position(mode, centre), f"{held:.0%}".replace("%", " %")
        figure.axes[0].annotate(text, place, (0, 12), textcoords="offset points", ha="center")
    facts = [
        {"share": held, "from_truth_deg": float(geodesic_distance(mode, truth).rad2deg())}
        for mode, held in modes
    ]
    found = {kind: float(values[row]) for kind, values in demo.found.items()}
    return figure, {"image": demo.test.names[row], "modes": facts, "found_deg": found}


def _least_decided(demo: Demo) -> int:
    """The test particle with the largest share of the posterior far from its highest mode."""
    grid = rotation_grid(8)
    features = torch.cat([demo.head.features(part) for part in grid.split(CHUNK)])
    elsewhere = []
    for numbers in demo.numbers.split(128):
        share = demo.head.log_density(numbers, features).softmax(-1)
        is_far = (grid[share.argmax(-1)] @ grid.T).abs() < np.cos(np.deg2rad(MODE_DEG / 2))
        elsewhere.append((share * is_far).sum(-1))
    return int(torch.cat(elsewhere).argmax())


def _two_modes(grid: Tensor, share: Tensor) -> list[tuple[Tensor, float]]:
    """The highest mode and the highest far from it, each with its share of the posterior."""
    modes = []
    for _ in range(2):
        mode = grid[share.argmax()]
        is_near = geodesic_distance(mode, grid).rad2deg() < MODE_DEG
        modes.append((mode, float(share[is_near].sum())))
        share = torch.where(is_near, 0.0, share)
    return modes


def nearest_bingham(grid: Tensor, share: Tensor) -> OrientationPosterior:
    """The Bingham distribution under which rotations of a ``grid`` drawn with ``share`` are likeliest."""
    moment = torch.einsum("g,gi,gj->ij", share, grid.double(), grid.double())
    eigenvalues, directions = torch.linalg.eigh(moment)
    exponents = (-0.5 / eigenvalues).requires_grad_()
    optimizer = torch.optim.LBFGS([exponents], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = log_normalising_constant(exponents[None])[0] - (exponents * eigenvalues).sum()
        value.backward()
        return value

    optimizer.step(loss)
    matrix = -(directions * exponents.detach()) @ directions.T
    return OrientationPosterior(matrix.float()[None])


def _sky_position(rotation: Tensor, centre: float = 0.0) -> tuple[float, float]:
    """View direction of a rotation (4,): rot - ``centre`` as longitude, 90° - tilt as latitude, radians."""
    rot, tilt, _ = unitquat_to_relion_euler(rotation).deg2rad().tolist()
    return (rot - centre + np.pi) % (2 * np.pi) - np.pi, np.pi / 2 - tilt


def _draw_sky(axes: Axes, log_density: LogDensity, centre: float) -> None:
    """All view directions, rot from left to right and tilt from top to bottom."""
    tilt, rot = torch.linspace(1, 179, 90), torch.linspace(-180, 180, 181)
    angles = torch.meshgrid(rot + np.rad2deg(centre), tilt, torch.arange(0.0, 360.0, 4.0), indexing="xy")
    rotations = relion_euler_to_unitquat(torch.stack(angles, dim=-1)).float()
    density = marginal(log_density, rotations).numpy()
    x, y = np.meshgrid(np.deg2rad(rot.numpy()), np.pi / 2 - np.deg2rad(tilt.numpy()))
    draw_regions(axes, x, y, density, np.cos(y))
    axes.grid(color=GREY, linewidth=0.4, alpha=0.5)
    axes.set(xticklabels=[], yticklabels=[])


def real_or_simulated(demo: Demo) -> Picture:
    """Four particles and four simulated network inputs, shuffled."""
    settings = demo.model.config.preprocessing
    generator = torch.Generator().manual_seed(SEED)
    simulator = image_simulator(demo.training, demo.reference, settings, demo.model.intensity)
    rows = torch.randint(len(demo.training), (4,), generator=generator)
    real = demo.training.select(rows)
    inputs = prepare(
        real.images[torch.arange(4)], real.ctf, real.pixel_size_angstrom, settings, demo.model.intensity
    )
    simulated, _ = simulator.draw(4, generator)
    order = torch.randperm(8, generator=generator)
    images = torch.cat([inputs, simulated])[order]
    figure = new_figure(3.75)
    for axes, image, letter in zip(figure.subplots(2, 4).flat, images, "ABCDEFGH", strict=True):
        show(axes, image, letter, limit=2.5)
    simulated_letters = [letter for letter, place in zip("ABCDEFGH", order, strict=True) if place >= 4]
    return figure, {"simulated": simulated_letters}


def one_copy_or_eight(demo: Demo) -> Picture:
    """Errors where each image is read once, and where it is read in eight copies."""
    figure = new_figure(2.8)
    axes = figure.add_subplot()
    lowest = float(np.quantile(demo.found["network"], 0.005))
    bins = np.geomspace(lowest, 180, 48)
    facts = {}
    for kind, name, colour in (("single", "one copy", ORANGE), ("network", "eight copies", BLUE)):
        errors = demo.found[kind]
        wrong = int((errors > WRONG_DEG).sum())
        facts[kind] = {
            "median_deg": float(np.median(errors)),
            "median_rad": float(np.median(np.deg2rad(errors))),
            "mean_deg": float(errors.mean()),
            "count_above_0.3_rad": wrong,
        }
        label = f"{name}: median {np.median(errors):.1f}°, {wrong} above 0.3 rad"
        values = np.maximum(errors, lowest)
        axes.hist(values, bins, color=colour, alpha=0.25)
        axes.hist(values, bins, histtype="step", color=colour, linewidth=1.5, label=label)
    axes.axvline(WRONG_DEG, color=GREY, linewidth=1, linestyle=(0, (4, 2)))
    axes.text(1.04 * WRONG_DEG, 0.93, "0.3 rad", transform=axes.get_xaxis_transform(), fontsize=8)
    axes.set(xscale="log", xlabel="error of the orientation (°)", ylabel="test particles")
    plain_ticks(axes, (0.5, 1, 2, 5, 10, 20, 50, 180))
    legend_below(figure, columns=2)
    return figure, {"test_particles": len(demo.test), **facts}


def plain_ticks(axes: Axes, ticks: tuple[float, ...]) -> None:
    """Ticks of a logarithmic x axis as they are said."""
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def expected_and_found(demo: Demo) -> Picture:
    """Expected against found errors, for the network and after local refinement."""
    figure = new_figure(3.2)
    facts = {}
    titles = {"network": "network, eight copies", "refined": "refined against the reference"}
    for axes, (kind, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        expected, found = demo.expected[kind], demo.found[kind]
        tenths = np.array_split(np.argsort(expected), 10)
        marks = [(rms(expected[rows]), rms(found[rows])) for rows in tenths]
        _draw_expected_and_found(axes, expected, found, marks)
        axes.set_title(title)
        facts[kind] = {
            "expected_rms_deg": rms(expected),
            "found_rms_deg": rms(found),
            "expected_mean_deg": float(expected.mean()),
            "found_mean_deg": float(found.mean()),
            "found_median_deg": float(np.median(found)),
            "surest_tenth_found_rms_deg": marks[0][1],
            "least_sure_tenth_found_rms_deg": marks[-1][1],
        }
    legend_below(figure, columns=3)
    return figure, facts


def _draw_expected_and_found(
    axes: Axes, expected: np.ndarray, found: np.ndarray, marks: list[tuple[float, float]]
) -> None:
    """Every particle as a dot, and a mark for each group of them."""
    axes.scatter(expected, found, s=6, color=BLUE, alpha=0.3, linewidths=0, label="one particle")
    label = "a tenth of the particles, root mean square"
    axes.plot(*np.transpose(marks), "o", color=ORANGE, markeredgecolor="white", markersize=7, label=label)
    low, high = np.quantile(expected, (0.002, 0.98))
    farthest, highest = np.max(marks, axis=0)  # of the groups, all of which are shown
    high, top = max(high, farthest), max(np.quantile(found, 0.995), highest)
    margin = 0.1 * (high - low)
    axes.set(xlim=(low - margin, high + margin), ylim=(0, 1.05 * top))
    line = {"color": "black", "linewidth": 1.2, "linestyle": (0, (4, 2))}
    axes.axline((low, low), slope=1, label="found = expected", **line)
    axes.set(xlabel="expected error (°)", ylabel="found error (°)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))


def rms(values: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


PICTURES: dict[str, Callable[[Demo], Picture]] = {
    "problem": problem,
    "network_input": network_input,
    "posterior": posterior_on_the_sphere,
    "modes": several_modes,
    "simulated": real_or_simulated,
    "copies": one_copy_or_eight,
    "expected_error": expected_and_found,
}


def save(figure: Figure, path: Path) -> None:
    """A PNG of few colours, which keeps it small, without empty rows above and below."""
    buffer = BytesIO()
    figure.savefig(buffer, dpi=DOTS_PER_INCH, facecolor="white")
    image = Image.open(buffer).convert("RGB")
    _, top, _, bottom = ImageChops.invert(image).getbbox() or (0, 0, *image.size)
    image = image.crop((0, max(0, top - MARGIN_PIXEL), image.width, min(image.height, bottom + MARGIN_PIXEL)))
    with replacing(path) as temporary:
        image.quantize(COLOURS, dither=Image.Dither.NONE).save(temporary, format="PNG", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("demo", type=Path, help="folder that 'cryoforum demo' wrote")
    parser.add_argument("out", type=Path, help="folder to write pictures into")
    arguments = parser.parse_args()
    demo = read_demo(arguments.demo)
    arguments.out.mkdir(parents=True, exist_ok=True)
    facts = {}
    with matplotlib.rc_context(STYLE):
        for name, draw in PICTURES.items():
            figure, facts[name] = draw(demo)
            save(figure, arguments.out / f"{name}.png")
    print(json.dumps(facts, indent=2, default=float))


if __name__ == "__main__":
    main()
