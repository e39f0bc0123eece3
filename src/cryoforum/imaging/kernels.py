"""The inner loops of reading, inserting and comparing slices, compiled on first use.

`accumulate` has its readable twin in `likelihood.evaluate_plainly`, `read_slices` in
`projection.values_and_slopes`; `insert_points` is the adjoint of `read_slices`.

Points go through in blocks: first it is found where they lie, then their eight neighbours are fetched, one
short loop that keeps many reads of memory under way; everything else is arithmetic on whole vectors.
"""

import math
from collections.abc import Callable
from functools import wraps
from threading import Lock

import numpy as np
import torch
from numba import config, get_num_threads, njit, prange, set_num_threads
from torch import Tensor

BLOCK = 128  # points: their neighbours fit the first-level cache
TWO = np.float32(2)  # padding of the transform, as in `projection`; a plain 2 would make float64 of all
ONE = np.float32(1)
_one_at_a_time = Lock()  # not every threading layer of numba can be entered from two threads


def thread_count() -> int:
    """How many threads a loop runs on: as many as torch would take, of those that numba may start."""
    most: int = vars(config)["NUMBA_NUM_THREADS"]  # numba makes its settings at run time
    return min(torch.get_num_threads(), most)


def _compiled(loop: Callable[..., np.ndarray | None]) -> Callable[..., Tensor]:
    """The loop, compiled, for tensors: on as many threads as torch takes, and without Python's lock."""
    machine_code = njit(parallel=True, fastmath=True, cache=True, nogil=True)(loop)

    @wraps(loop)
    def run(*arguments: Tensor | float) -> Tensor:
        arrays = [one.detach().contiguous().numpy() if isinstance(one, Tensor) else one for one in arguments]
        with _one_at_a_time:
            of_torch, wanted, of_numba = torch.get_num_threads(), thread_count(), get_num_threads()
            set_num_threads(wanted)
            try:
                result = machine_code(*arrays)
            finally:
                set_num_threads(of_numba)
                torch.set_num_threads(of_torch)  # numba changes it where both use one OpenMP library
        return torch.empty(0) if result is None else torch.from_numpy(result)

    return run


@_compiled
def accumulate(
    transform: np.ndarray,
    kx: np.ndarray,
    ky: np.ndarray,
    box: int,
    values: np.ndarray,
    transfer: np.ndarray,
    rows: np.ndarray,
    rotations: np.ndarray,
    origins_pixel: np.ndarray,
) -> np.ndarray:
    """Sums (m, 22) over all points: cross, power, gradient (5), upper triangle of the information (15).

    transform: (2w + 1, 2w + 1, w + 1, 2) float32. kx, ky: (p,) float32. values: (n, p) complex64 and
    transfer: (n, p) float32. rows: (m,) image of each pair. rotations: (m, 3, 3) and origins_pixel:
    (m, 2), float32.
    """
    pairs, count = len(rows), len(kx)
    reach = 0
    for p in range(count):
        reach = max(reach, int(abs(kx[p])), int(abs(ky[p])))
    height, width = transform.shape[0], transform.shape[2]
    flat, angle = transform.ravel(), np.float32(2 * math.pi / box)
    result = np.zeros((pairs, 22))
    for pair in prange(pairs):
        turn_x, turn_y = (
            _phases(origins_pixel[pair, 0], box, reach),
            _phases(origins_pixel[pair, 1], box, reach),
        )
        corner = np.empty((16, BLOCK), np.float32)
        place, first = np.empty((4, BLOCK), np.float32), np.empty(BLOCK, np.uint64)
        data = np.empty((2, BLOCK), np.float32)
        for start in range(0, count, BLOCK):
            size = min(BLOCK, count - start)
            u, v = kx[start : start + size], ky[start : start + size]
            _locate(height, width, u, v, np.float32(0), rotations[pair], place, first)
            _fetch(flat, height, width, first[:size], corner)
            for j in range(size):
                y = values[rows[pair], start + j] * turn_x[int(u[j]) + reach] * turn_y[int(v[j]) + reach]
                data[0, j], data[1, j] = y.real, y.imag
            weight = transfer[rows[pair], start : start + size]
            _add(corner, place, u, v, weight, data, rotations[pair], angle, result[pair])
    return result


@njit(inline="always")
def _phases(origin: float, box: int, reach: int) -> np.ndarray:
    """exp(-2πi k·o) factorises into kx and ky: a table for each replaces sines of every point."""
    table = np.empty(2 * reach + 1, np.complex64)
    for k in range(-reach, reach + 1):
        angle = 2 * math.pi / box * k * origin
        table[k + reach] = complex(math.cos(angle), -math.sin(angle))
    return table


@njit(inline="always", fastmath=True)
def _locate(
    height: int,
    width: int,
    u: np.ndarray,
    v: np.ndarray,
    w: np.float32,
    r: np.ndarray,
    place: np.ndarray,
    first: np.ndarray,
) -> None:
    """Where between its eight neighbours each point R (u, v, w) lies.

    The lowest neighbour, as an index into the flat transform, and the place between all eight along x, y, z;
    fourth row of ``place``: -1 where it is the mate of the point.
    """
    r00, r01, r10, r11, r20, r21 = r[0, 0], r[0, 1], r[1, 0], r[1, 1], r[2, 0], r[2, 1]
    r02, r12, r22 = r[0, 2] * w, r[1, 2] * w, r[2, 2] * w
    centre = height // 2
    for j in range(len(u)):
        x = TWO * (r00 * u[j] + r01 * v[j] + r02)
        y = TWO * (r10 * u[j] + r11 * v[j] + r12)
        z = TWO * (r20 * u[j] + r21 * v[j] + r22)
        sign = -ONE if x < 0 else ONE
        x, y, z = x * sign, y * sign, z * sign
        fx, fy, fz = np.floor(x), np.floor(y), np.floor(z)
        place[0, j], place[1, j], place[2, j], place[3, j] = x - fx, y - fy, z - fz, sign
        # Unsigned: numba then leaves out its test for indices that count from the end.
        first[j] = np.uint64(((int(fz) + centre) * height + int(fy) + centre) * width + int(fx))


@njit(inline="always", fastmath=True)
def _fetch(transform: np.ndarray, height: int, width: int, first: np.ndarray, corner: np.ndarray) -> None:
    """The eight neighbours of each point, real and imaginary parts."""
    for j in range(len(first)):
        for k in range(2):
            for i in range(2):
                row = np.uint64(2) * (first[j] + np.uint64(width * (k * height + i)))
                for n in range(4):
                    corner[8 * k + 4 * i + n, j] = transform[row + np.uint64(n)]


@njit(inline="always", fastmath=True)
def _add(
    corner: np.ndarray,
    place: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    weight: np.ndarray,
    data: np.ndarray,
    r: np.ndarray,
    angle: np.float32,
    result: np.ndarray,
) -> None:
    """Add a block's contributions to the 22 sums of one pair."""
    cross = power = g0 = g1 = g2 = g3 = g4 = np.float32(0)
    h00 = h01 = h02 = h03 = h04 = h11 = h12 = h13 = h14 = np.float32(0)
    h22 = h23 = h24 = h33 = h34 = h44 = np.float32(0)
    for j in range(len(u)):
        x, y, z, sign = place[0, j], place[1, j], place[2, j], place[3, j]
        c, p, q = weight[j], u[j], v[j]
        d00r, d00i = corner[2, j] - corner[0, j], corner[3, j] - corner[1, j]
        d01r, d01i = corner[6, j] - corner[4, j], corner[7, j] - corner[5, j]
        d10r, d10i = corner[10, j] - corner[8, j], corner[11, j] - corner[9, j]
        d11r, d11i = corner[14, j] - corner[12, j], corner[15, j] - corner[13, j]
        b00r, b00i = corner[0, j] + x * d00r, corner[1, j] + x * d00i
        b01r, b01i = corner[4, j] + x * d01r, corner[5, j] + x * d01i
        b10r, b10i = corner[8, j] + x * d10r, corner[9, j] + x * d10i
        b11r, b11i = corner[12, j] + x * d11r, corner[13, j] + x * d11i
        e0r, e0i, e1r, e1i = b01r - b00r, b01i - b00i, b11r - b10r, b11i - b10i
        f0r, f0i, f1r, f1i = b00r + y * e0r, b00i + y * e0i, b10r + y * e1r, b10i + y * e1i
        szr, szi = f1r - f0r, f1i - f0i
        syr, syi = e0r + z * (e1r - e0r), e0i + z * (e1i - e0i)
        d0r, d0i = d00r + y * (d01r - d00r), d00i + y * (d01i - d00i)
        d1r, d1i = d10r + y * (d11r - d10r), d10i + y * (d11i - d10i)
        sxr, sxi = d0r + z * (d1r - d0r), d0i + z * (d1i - d0i)
        # F(-k) = conj F(k): the value is conjugated; so is the slope, with the other sign.
        mr, mi = c * (f0r + z * szr), sign * c * (f0i + z * szi)
        tr, ti = TWO * sign * c, TWO * c
        gxr = tr * (r[0, 0] * sxr + r[1, 0] * syr + r[2, 0] * szr)
        gxi = ti * (r[0, 0] * sxi + r[1, 0] * syi + r[2, 0] * szi)
        gyr = tr * (r[0, 1] * sxr + r[1, 1] * syr + r[2, 1] * szr)
        gyi = ti * (r[0, 1] * sxi + r[1, 1] * syi + r[2, 1] * szi)
        gzr = tr * (r[0, 2] * sxr + r[1, 2] * syr + r[2, 2] * szr)
        gzi = ti * (r[0, 2] * sxi + r[1, 2] * syi + r[2, 2] * szi)
        # Derivatives by the three rotations, a; those by the origin are i (angle k) times the model.
        a0r, a0i, a1r, a1i = q * gzr, q * gzi, -p * gzr, -p * gzi
        a2r, a2i = p * gyr - q * gxr, p * gyi - q * gxi
        kp, kq = angle * p, angle * q
        yr, yi = data[0, j], data[1, j]
        m2 = mr * mr + mi * mi
        cross += yr * mr + yi * mi
        power += m2
        er, ei = yr - mr, yi - mi
        along = ei * mr - er * mi
        g0 += er * a0r + ei * a0i
        g1 += er * a1r + ei * a1i
        g2 += er * a2r + ei * a2i
        g3 += kp * along
        g4 += kq * along
        c0, c1, c2 = a0i * mr - a0r * mi, a1i * mr - a1r * mi, a2i * mr - a2r * mi
        h00 += a0r * a0r + a0i * a0i
        h01 += a0r * a1r + a0i * a1i
        h02 += a0r * a2r + a0i * a2i
        h03 += kp * c0
        h04 += kq * c0
        h11 += a1r * a1r + a1i * a1i
        h12 += a1r * a2r + a1i * a2i
        h13 += kp * c1
        h14 += kq * c1
        h22 += a2r * a2r + a2i * a2i
        h23 += kp * c2
        h24 += kq * c2
        h33 += kp * kp * m2
        h34 += kp * kq * m2
        h44 += kq * kq * m2
    result[0] += cross
    result[1] += power
    sums = (g0, g1, g2, g3, g4, h00, h01, h02, h03, h04, h11, h12, h13, h14, h22, h23, h24, h33, h34, h44)
    for k in range(20):
        result[2 + k] += 2 * sums[k]


@_compiled
def read_slices(
    transform: np.ndarray, kx: np.ndarray, ky: np.ndarray, kz: float, rotations: np.ndarray
) -> np.ndarray:
    """What `projection.slices_at` gives, (m, p) complex64; arrays as of `accumulate`."""
    count = len(kx)
    height, width = transform.shape[0], transform.shape[2]
    flat = transform.ravel()
    w = np.float32(kz)
    result = np.empty((len(rotations), count), np.complex64)
    for row in prange(len(rotations)):
        corner = np.empty((16, BLOCK), np.float32)
        place, first = np.empty((4, BLOCK), np.float32), np.empty(BLOCK, np.uint64)
        for start in range(0, count, BLOCK):
            size = min(BLOCK, count - start)
            u, v = kx[start : start + size], ky[start : start + size]
            _locate(height, width, u, v, w, rotations[row], place, first)
            _fetch(flat, height, width, first[:size], corner)
            for j in range(size):
                x, y, z = place[0, j], place[1, j], place[2, j]
                real = imaginary = np.float32(0)
                for k in range(8):
                    share = (x if k & 1 else ONE - x) * (y if k & 2 else ONE - y) * (z if k & 4 else ONE - z)
                    real += share * corner[2 * k, j]
                    imaginary += share * corner[2 * k + 1, j]
                result[row, start + j] = complex(real, place[3, j] * imaginary)
    return result


@_compiled
def insert_points(
    data: np.ndarray,
    weight: np.ndarray,
    kx: np.ndarray,
    ky: np.ndarray,
    values: np.ndarray,
    powers: np.ndarray,
    rotations: np.ndarray,
    grid_of: np.ndarray,
) -> None:
    """What `insertion.insert_slices` does, in place.

    data: (h, m, m, w + 1) complex64 and weight: the same in float32. kx, ky: (p,) float32 cycles per box.
    values: (i, p) complex64 and powers: (i, p) float32. rotations: (i, 3, 3). grid_of: (i,) from 0 to h - 1.
    """
    count = len(kx)
    height, width = data.shape[1], data.shape[3]
    for chosen in prange(len(data)):  # no two threads write to one grid
        grid, share = data[chosen].ravel(), weight[chosen].ravel()
        place, first = np.empty((4, BLOCK), np.float32), np.empty(BLOCK, np.uint64)
        for row in range(len(values)):
            if grid_of[row] != chosen:
                continue
            for start in range(0, count, BLOCK):
                size = min(BLOCK, count - start)
                u, v = kx[start : start + size], ky[start : start + size]
                _locate(height, width, u, v, np.float32(0), rotations[row], place, first)
                for j in range(size):
                    x, y, z = place[0, j], place[1, j], place[2, j]
                    value, power = values[row, start + j], powers[row, start + j]
                    if place[3, j] < 0:
                        value = value.conjugate()
                    for k in range(8):
                        part = (x if k & 1 else ONE - x) * (y if k & 2 else ONE - y)
                        part *= z if k & 4 else ONE - z
                        step = (k >> 2) * height * width + (k >> 1 & 1) * width + (k & 1)
                        at = first[j] + np.uint64(step)
                        grid[at] += part * value
                        share[at] += part * power
