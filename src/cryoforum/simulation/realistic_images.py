"""Images as they are: a signal, neighbours that reach in, an edge, a ramp and coloured noise, summed."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoforum.dataset.images import Images, ImagesOnDemand
from cryoforum.imaging.fft import frequency_grid
from cryoforum.simulation.ideal import white_noise

CORNER_ANGSTROM = 50.0  # length above which coloured noise is the stronger
_EDGE_SHARPNESS = 40.0  # per box, of carbon beside ice


@dataclass(frozen=True)
class Neighbours:
    """Further particles in images, k in all.

    Parameters
    ----------
    signal
        (k, box, box) images, centred.
    image_rows
        (k,) the image that each reaches into.
    moves_pixel
        (k, 2) integer, how far its centre lies from that of the image, x then y.
    """

    signal: Images
    image_rows: Int[Tensor, " k"]
    moves_pixel: Int[Tensor, "k 2"]


@dataclass(frozen=True)
class RealisticImages(ImagesOnDemand):
    """A stack whose images are computed on reading. Heights are in standard deviations of the noise.

    Parameters
    ----------
    signal
        (n, box, box) noise-free images of the particles, near the centre.
    moves_pixel
        (n, 2) integer, how far they are moved from there, x then y.
    strengths
        (n,) by which signal and neighbours are multiplied; 0 for pure noise.
    neighbours
        Further particles.
    ramps
        (n, 2) rise from edge to edge along x and y.
    edges
        (n, 4) of carbon: height (0 for none), direction x and y, distance from the centre in boxes.
    noise_colours
        (n,) power of noise at low frequencies above that at high ones.
    pixel_size_angstrom
        Of the images.
    seed
        Of their noise, which has a variance of 1; None for no noise.
    """

    signal: Images
    moves_pixel: Int[Tensor, "n 2"]
    strengths: Float[Tensor, " n"]
    neighbours: Neighbours
    ramps: Float[Tensor, "n 2"]
    edges: Float[Tensor, "n 4"]
    noise_colours: Float[Tensor, " n"]
    pixel_size_angstrom: float
    seed: int | None

    def __len__(self) -> int:
        return len(self.strengths)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, box, box) of what indexing by all rows would give."""
        return (len(self), *self.signal.shape[1:])

    def at(self, rows: Int[Tensor, " m"]) -> Float[Tensor, "m box box"]:
        """Those of the rows, each from its own seed."""
        wanted, place = rows.unique(return_inverse=True)
        images = self.strengths[wanted, None, None] * self._particles(wanted) + self._background(wanted)
        if self.seed is not None:
            images += self._noise(wanted, self.seed)
        return images[place]

    def _particles(self, rows: Tensor) -> Tensor:
        """Particles and neighbours in each of the ascending ``rows``."""
        near = self.neighbours
        result = self.signal[rows]
        for place in self.moves_pixel[rows].any(-1).nonzero().flatten().tolist():
            result[place] = _moved(result[place], self.moves_pixel[rows[place]])
        chosen = torch.isin(near.image_rows, rows).nonzero().flatten()
        if len(chosen):
            places = torch.searchsorted(rows, near.image_rows[chosen]).tolist()
            for place, image, move in zip(places, near.signal[chosen], near.moves_pixel[chosen], strict=True):
                result[place] += _moved(image, move)
        return result

    def _background(self, rows: Tensor) -> Tensor:
        box = self.shape[-1]
        x = (torch.arange(box) - box // 2) / box
        y = x[:, None]
        rise_x, rise_y = self.ramps[rows, :, None, None].unbind(1)
        height, edge_x, edge_y, distance = self.edges[rows, :, None, None].unbind(1)
        beyond = torch.sigmoid(_EDGE_SHARPNESS * (edge_x * x + edge_y * y - distance))
        return rise_x * x + rise_y * y + height * beyond

    def _noise(self, rows: Tensor, seed: int) -> Tensor:
        box = self.shape[-1]
        white = torch.stack([white_noise(seed, row, box) for row in rows.tolist()])
        ky, kx = frequency_grid(box, self.pixel_size_angstrom)
        low = 1 / (1 + (kx**2 + ky**2) * CORNER_ANGSTROM**2)
        power = 1 + self.noise_colours[rows, None, None] * low
        of_pair = torch.full((box // 2 + 1,), 2.0)  # k and -k; but for these two columns
        of_pair[0] = of_pair[-1] = 1
        power /= (power * of_pair).sum((1, 2), keepdim=True) / box**2
        return torch.fft.irfft2(torch.fft.rfft2(white) * power.sqrt(), s=(box, box))


def _moved(image: Tensor, move_pixel: Tensor) -> Tensor:
    """The image (box, box) moved by whole pixels, x then y, with zeros where nothing comes from."""
    result, (x, y) = torch.zeros_like(image), move_pixel.tolist()
    box = len(image)
    result[_covered(y, box), _covered(x, box)] = image[_covered(-y, box), _covered(-x, box)]
    return result


def _covered(move: int, box: int) -> slice:
    """Pixels that are covered after a move; before it, those of the opposite move."""
    return slice(min(box, max(0, move)), max(0, min(box, box + move)))
