"""The compiled loops of trellis-coded quantization, with the reference's parameters."""

from typing import Any

import numpy as np
import numpy.typing as npt

from flwr_slfac.codec.kernels.contexts import Grid, extension_tables
from flwr_slfac.codec.kernels.trellis import NUM_GROUPS
from flwr_slfac.errors import DecodeError

__all__ = ["TrellisLoops"]

Array = npt.NDArray[Any]


class TrellisLoops:
    """Results of the extension's functions, allocated.

    Parameters
    ----------
    compiled : module
        The extension.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    def encode(
        self,
        lists: list[Array],
        coefficients: Array,
        grid: Grid,
        inverse: float,
        price: int,
    ) -> tuple[bytes, Array]:
        """Quantize and code, see `trellis.encode`."""
        sizes = np.array([part.size for part in lists], np.int64)
        joined = np.concatenate([sizes[:0], *lists])
        sums = np.empty(3 * NUM_GROUPS + 1, np.int64)
        data: bytes = self._compiled.encode_trellis(
            joined,
            sizes,
            coefficients,
            *grid.arrays,
            grid.width,
            grid.offset,
            inverse,
            price,
            extension_tables(),
            sums,
        )
        return data, sums

    def open(self, data: memoryview) -> "_Decoder":
        """Begin to decode, see `trellis.Decoder`."""
        return _Decoder(self._compiled, data)


class _Decoder:
    """See `trellis.Decoder`."""

    def __init__(self, compiled: Any, data: memoryview) -> None:
        self._compiled, self._data = compiled, data
        self._tables = extension_tables()
        size = compiled.open_trellis(bytearray(), data, self._tables)
        # Of int64, so that it is aligned.
        self._state = np.zeros(size // 8, np.int64)
        compiled.open_trellis(self._state, data, self._tables)

    def list(self, num: int) -> Array:
        """Return the next list, int64."""
        values = np.empty(num, np.int64)
        state = self._state, self._data, self._tables
        _require_none(self._compiled.decode_list(*state, values))
        return values

    def levels(self, grid: Grid, step: float, taken: Array) -> Array:
        """Return all coefficients (S, R), float32, after the last list."""
        shape = len(grid.order), len(grid.columns)
        values = np.empty(shape, np.float32)
        wrong = self._compiled.decode_trellis(
            self._state,
            self._data,
            *grid.arrays,
            grid.width,
            grid.offset,
            step,
            taken,
            self._tables,
            values,
        )
        _require_none(wrong)
        return values


def _require_none(wrong: str) -> None:
    if wrong:
        raise DecodeError(wrong)
