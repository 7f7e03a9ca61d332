"""The spectra of a tensor's rows, chunk by chunk.

Rows are worked on as many at a time as a cache holds. Magnitudes that would over- or
underflow when squared are divided by a power of two first.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from flwr_slfac.codec.base import work_dtype
from flwr_slfac.codec.transforms import Basis, forward_rows, order_2d

# Elements worked on at a time: on a CPU about what its cache holds of all that is at
# work, decoding holding more of it.
ENCODE_CHUNK = 2**19
DECODE_CHUNK = 2**18
# On a GPU there is no such cache: few launches for 64 MiB of float32 at a time.
_CHUNK_ON_DEVICE = 2**24
# Our choice: with fewer rows the calls cost more than what they do.
_MIN_ROWS = 64
# Squares of 2**40, summed over 2**40 values, stay below float32's 2**128, and those of
# 2**-40 above its smallest.
_SAFE_EXPONENT = 40


class Spectra:
    """The coefficients of a tensor's rows.

    Parameters
    ----------
    planes : Tensor (R, n) or (R, h, w)
        The rows.
    basis : Basis
        What they are transformed by.
    reuses : bool
        Whether a chunk may lie where the one before it lay.
    """

    def __init__(
        self, planes: torch.Tensor, basis: Basis, *, reuses: bool = False
    ) -> None:
        sizes = tuple(planes.shape[1:])
        self.n, self.num_rows = math.prod(sizes), len(planes)
        self.dtype = work_dtype(planes.dtype)
        self.device = planes.device
        self.order = coefficient_order(basis, sizes, planes.device)
        self.shift = _shift_for(planes)
        self.total = 0.0
        self._planes, self._basis, self._reuses = planes, basis, reuses

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield chunks (n, K) as the basis lays them out, and sum the rows up."""
        for chunk in row_chunks(self.n, self.num_rows, self.device, ENCODE_CHUNK):
            rows = self._planes[chunk].to(self.dtype)
            if self.shift:
                rows = _times_power_of_two(rows, -self.shift)
            self.total += float(rows.sum())
            coeffs = forward_rows(rows, self._basis, reuses=self._reuses)
            yield coeffs.reshape(self.n, -1)


def new_tensor(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Return a tensor with arbitrary values.

    NumPy asks the system for huge pages where torch does not: writing to a new tensor
    of 50 MB takes a third of the time.
    """
    if device.type != "cpu":
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    raw = np.empty(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).view(tuple(shape))


def row_chunks(
    n: int, num_rows: int, device: torch.device, on_cpu: int
) -> Iterator[slice]:
    """Yield the rows of each chunk of about `on_cpu` elements, more on a GPU."""
    chunk = on_cpu if device.type == "cpu" else _CHUNK_ON_DEVICE
    step = max(_MIN_ROWS, chunk // (8 * -(-n // 8)))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def with_rows(chunks: list[torch.Tensor]) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield each chunk (n, K) with the rows that it holds."""
    start = 0
    for coeffs in chunks:
        yield slice(start, start + coeffs.shape[1]), coeffs
        start += coeffs.shape[1]


def coefficient_order(
    basis: Basis, sizes: tuple[int, ...], device: torch.device
) -> torch.Tensor | None:
    """Return the order of the coefficients, or None if they lie in it."""
    if len(sizes) == 1 or basis.name == "identity":
        return None
    return order_2d(basis, sizes[0], sizes[1]).to(device)


def restore_scale(rows: torch.Tensor, shift: int, dtype: torch.dtype) -> torch.Tensor:
    """Undo the shift and round to dtype; what would overflow becomes the largest."""
    if shift:
        rows = _times_power_of_two(rows, shift)
    if shift or rows.dtype != dtype:
        limit = torch.finfo(dtype).max
        rows = rows.clamp_(-limit, limit)
    return rows.to(dtype)


def _shift_for(planes: torch.Tensor) -> int:
    """Return the power of two to divide by, 0 for ordinary magnitudes."""
    low, high = torch.aminmax(planes)
    largest = max(-float(low), float(high))
    exponent = math.frexp(largest)[1]
    return exponent if largest and abs(exponent) > _SAFE_EXPONENT else 0


def _times_power_of_two(values: torch.Tensor, exponent: int) -> torch.Tensor:
    """Multiply by a power of two that may itself be out of the dtype's range."""
    half = exponent // 2
    return values * 2.0**half * 2.0 ** (exponent - half)
