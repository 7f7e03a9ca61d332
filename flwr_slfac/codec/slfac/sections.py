"""The sections of an SL-FAC frame: how each is laid out, and checked when read.

::

    0  header      versions, settings, scale, basis
    1  splits      each row's split and two widths, packed without gaps
    2  ranges      float16 ends, see `ranges.pack_ranges`
    3  codes       each row's codes, packed without gaps
    4  map         only for ablations: a bit a coefficient, or one permutation
"""

import math
import struct
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.layout import spectrum_dims
from flwr_slfac.codec.packing import num_bits_for, pack_fields, unpack_fields
from flwr_slfac.codec.slfac import ranges
from flwr_slfac.codec.slfac.fqc import Grid
from flwr_slfac.codec.slfac.spectra import coefficient_order
from flwr_slfac.codec.transforms import Basis, parse_basis
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import DecodeError, SettingError

Array = npt.NDArray[Any]

# The position is the wire's code: append, never reorder.
COMPONENTS = ("spectral", "magnitude", "deviation")
WIDTHS = ("fqc", "powerquant", "easyquant")
TOKENS = ("t", "td")

# Of these sections; another layout takes the next number.
_LAYOUT_VERSION = 1
# Our choice: twice the longest name of a wavelet and its level.
_MAX_BASIS_TEXT = 40
# Values are kept to 2**40 and a coefficient is at most the root of n times as large: 80
# allows 2**80 values.
_MAX_RANGE_EXPONENT = 80
# A power of two beyond the dtype's range, subnormals included: float64 and all others.
_MAX_SHIFT_FLOAT64, _MAX_SHIFT = 1100, 160
# Our limit, half of the least power that `ablations` tries.
_LEAST_POWER = 0.1


@dataclass(frozen=True)
class Header:
    """What a decoder needs besides the rows' own side information.

    Parameters
    ----------
    tokens, components, widths, bit_widths, basis
        The settings of the encoder, see `SLFAC`.
    power : float
        Of the grid, see `Grid`.
    shift : int
        The tensor was divided by two to this.
    exponent : int
        Ranges are multiplied by two to this.
    """

    tokens: str
    components: str
    widths: str
    bit_widths: tuple[int, int]
    power: float
    shift: int
    exponent: int
    basis: Basis

    _FIXED: ClassVar[struct.Struct] = struct.Struct("<6Bf2h")

    @property
    def is_symmetric(self) -> bool:
        """Whether ranges are symmetric."""
        return self.widths != "fqc"

    def pack(self) -> bytes:
        """Return the header section."""
        return self._FIXED.pack(
            _LAYOUT_VERSION,
            TOKENS.index(self.tokens),
            COMPONENTS.index(self.components),
            WIDTHS.index(self.widths),
            *self.bit_widths,
            self.power,
            self.shift,
            self.exponent,
        ) + str(self.basis).encode("ascii")

    @classmethod
    def unpack(cls, data: memoryview, dtype: torch.dtype) -> "Header":
        """Check the header section of a frame of this dtype."""
        size = cls._FIXED.size
        if not size < data.nbytes <= size + _MAX_BASIS_TEXT:
            raise DecodeError(f"codec 'slfac' has no header of {data.nbytes} bytes")
        version, tokens, components, widths, narrow, wide, power, shift, exponent = (
            cls._FIXED.unpack_from(data)
        )
        if version != _LAYOUT_VERSION:
            raise DecodeError(f"layout {version} of codec 'slfac' is not known here")
        max_shift = _MAX_SHIFT_FLOAT64 if dtype is torch.float64 else _MAX_SHIFT
        is_valid = (
            tokens < len(TOKENS)
            and components < len(COMPONENTS)
            and widths < len(WIDTHS)
            and 1 <= narrow <= wide <= 8
            and abs(shift) <= max_shift
            and abs(exponent) <= _MAX_RANGE_EXPONENT
        )
        if is_valid and WIDTHS[widths] != "fqc":
            is_valid = _LEAST_POWER <= power <= 1 and narrow + wide >= 4
        elif power != 0:
            is_valid = False
        if not is_valid:
            raise DecodeError("a setting in the header of codec 'slfac' is not valid")
        return cls(
            TOKENS[tokens],
            COMPONENTS[components],
            WIDTHS[widths],
            (narrow, wide),
            power,
            shift,
            exponent,
            _unpack_basis(data[size:]),
        )


@dataclass(frozen=True)
class Sections:
    """The checked sections of a frame that is not empty.

    Parameters
    ----------
    header : Header
        Settings and scale.
    dims, sizes : tuple of int
        The dimensions of the tensor that a spectrum runs along, and their sizes.
    split : ndarray (R,)
        int64: how many coefficients of each row are low.
    widths : ndarray (2, R)
        int32: bits of a code of each component.
    ends : ndarray (2 ends, 2, R)
        float16: ranges of each component, finite.
    codes : memoryview
        Packed codes.
    members : memoryview, optional
        A bit for each coefficient of each row, whether it is low.
    order : Tensor (n,), optional
        The order of the coefficients, None if they lie in it.
    """

    header: Header
    dims: tuple[int, ...]
    sizes: tuple[int, ...]
    split: Array
    widths: Array
    ends: Array
    codes: memoryview
    members: memoryview | None
    order: torch.Tensor | None

    @classmethod
    def parse(cls, frame: Frame) -> "Sections":
        """Check every section but the codes against the shape of the frame."""
        if not 4 <= len(frame.sections) <= 5:
            raise DecodeError(
                f"codec 'slfac' has 4 or 5 sections, not {len(frame.sections)}"
            )
        head, splits, packed_ranges, codes, *maps = frame.sections
        header = Header.unpack(head, frame.dtype)
        if len(maps) != (header.components != "spectral"):
            raise DecodeError("a map of coefficients is missing, or one too many")
        dims = spectrum_dims(frame.shape, header.tokens == "td")
        sizes = tuple(frame.shape[d] for d in dims) or (1,)
        n = math.prod(sizes)
        num_rows = frame.num_elements // n
        # Before anything of the size of the rows is allocated: are their ranges here?
        least = num_rows * (2 if header.is_symmetric else 4)
        if packed_ranges.nbytes < least:
            raise DecodeError(
                f"{packed_ranges.nbytes} bytes of ranges for {num_rows} rows"
            )
        _require_size(header.basis, sizes)
        split, widths = unpack_splits(splits, n, num_rows, header.bit_widths)
        ends = ranges.unpack_ranges(packed_ranges, split < n, header.is_symmetric)
        members, order = None, None
        if header.components == "magnitude":
            (members,) = maps
            if members.nbytes != (num_rows * n + 7) // 8:
                raise DecodeError(f"{members.nbytes} bytes map {num_rows * n} values")
        if header.components == "deviation":
            order = _unpack_order(maps[0], n)
        else:
            order = coefficient_order(header.basis, sizes, torch.device("cpu"))
        return cls(header, dims, sizes, split, widths, ends, codes, members, order)

    def grid(self, dtype: torch.dtype) -> Grid:
        """Return the levels of each row's components, for coefficients of a dtype."""
        ends, widths = torch.from_numpy(self.ends), torch.from_numpy(self.widths)
        header = self.header
        return ranges.grid_from_ranges(
            ends, header.exponent, widths, header.power, dtype
        )

    def members_of(self, chunk: slice) -> torch.Tensor | None:
        """Return which coefficients (n, K) of some rows are low, if a map says so."""
        if self.members is None:
            return None
        n = math.prod(self.sizes)
        first, last = chunk.start * n, chunk.stop * n
        packed = np.frombuffer(self.members, np.uint8)[first // 8 : (last + 7) // 8]
        bits = np.unpackbits(packed, bitorder="little")[first % 8 :][: last - first]
        member = bits.reshape(-1, n).astype(bool)
        if (member.sum(1) != self.split[chunk]).any():
            raise DecodeError("a map of coefficients does not fit its split")
        return torch.from_numpy(member).t()


def pack_splits(
    split: Array, widths: Array, n: int, bit_widths: tuple[int, int]
) -> memoryview:
    """Pack each row's split and widths without gaps."""
    narrow, wide = bit_widths
    low, high = widths - narrow
    width_bits = num_bits_for(wide - narrow)
    return pack_fields(
        [
            (split - 1, num_bits_for(n - 1)),
            (low, width_bits),
            (high, width_bits),
        ]
    )


def unpack_splits(
    data: memoryview, n: int, num_rows: int, bit_widths: tuple[int, int]
) -> tuple[Array, Array]:
    """Return splits (R,) in int64 and widths (2, R) in int32."""
    narrow, wide = bit_widths
    width_bits = num_bits_for(wide - narrow)
    fields = [num_bits_for(n - 1), width_bits, width_bits]
    split, low, high = unpack_fields(data, fields, num_rows)
    split += 1
    if int(split.max()) > n or max(int(low.max()), int(high.max())) > wide - narrow:
        raise DecodeError("a split or a bit width is out of its range")
    return split, (np.stack([low, high]) + narrow).astype(np.int32)


def pack_order(order: torch.Tensor) -> memoryview:
    """Pack a permutation (n,)."""
    return pack_fields([(order.cpu().numpy(), num_bits_for(len(order) - 1))])


def _unpack_order(data: memoryview, n: int) -> torch.Tensor:
    (order,) = unpack_fields(data, [num_bits_for(n - 1)], n)
    if (np.sort(order) != np.arange(n)).any():
        raise DecodeError("the order of coefficients is not a permutation")
    return torch.from_numpy(order)


def _unpack_basis(text: memoryview) -> Basis:
    try:
        return parse_basis(bytes(text).decode("ascii"))
    except (SettingError, UnicodeDecodeError) as error:
        raise DecodeError(f"the basis of codec 'slfac': {error}") from error


def _require_size(basis: Basis, sizes: tuple[int, ...]) -> None:
    try:
        basis.num_levels(*sizes)
    except SettingError as error:
        raise DecodeError(f"the basis of codec 'slfac': {error}") from error
