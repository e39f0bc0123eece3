"""Shells of equal frequency: their indices, and sums and means over them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def radius_on_grid(*axes: Tensor) -> Tensor:
    """Distance from zero on the grid of axes of lengths (a,), (b,), …: (a, b, …), in their unit."""
    square = axes[0] ** 2
    for axis in axes[1:]:
        square = square[..., None] + axis**2
    return square.sqrt()


def shell_radius(box: int) -> Float[Tensor, "n n half"]:
    """|k| in cycles per box of every element of `torch.fft.rfftn`, (n, n, n // 2 + 1)."""
    full, half = torch.fft.fftfreq(box, d=1 / box), torch.fft.rfftfreq(box, d=1 / box)
    return radius_on_grid(full, full, half)


def shell_index(box: int) -> Int[Tensor, "n n half"]:
    """|k| in cycles per box, rounded, of every element of `torch.fft.rfftn`, (n, n, n // 2 + 1) int64."""
    return torch.round(shell_radius(box)).long()


def sum_by_shell(values: Tensor, shell: Tensor, shells: int | None = None) -> Tensor:
    """Sums over the elements of each shell.

    Parameters
    ----------
    values : (..., *s), summed in their own precision.
    shell : (*s) integer, the shell of each element.
    shells : how many there are; elements of further ones are left out. By default as many as occur.

    Returns
    -------
    Tensor : (..., shells), 0 where a shell is empty.
    """
    count = int(shell.max()) + 1
    leading = values.shape[: values.ndim - shell.ndim]
    total = values.new_zeros(*leading, max(count, shells or 0))
    total.index_add_(-1, shell.flatten(), values.reshape(*leading, -1))
    return total[..., :shells]


def mean_by_shell(values: Tensor, shell: Tensor, shells: int | None = None) -> Tensor:
    """Means over the elements of each shell; arguments and result as of `sum_by_shell`."""
    count = torch.bincount(shell.flatten(), minlength=shells or 0)[:shells]
    return sum_by_shell(values, shell, shells) / count.clamp_min(1)


def filter_shells(voxels: Float[Tensor, "n n n"], weight: Float[Tensor, " half"]) -> Float[Tensor, "n n n"]:
    """A map (n, n, n) whose Fourier shells are multiplied by ``weight`` (n // 2 + 1,); 0 in the corners."""
    box = voxels.shape[0]
    factor = torch.cat([weight.to(voxels), voxels.new_zeros(1)])
    shell = shell_index(box).clamp_max(len(weight))
    return torch.fft.irfftn(torch.fft.rfftn(voxels) * factor[shell], s=(box,) * 3)
