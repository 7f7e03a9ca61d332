"""A set of places in a tensor, at what it costs: Rice-coded gaps.

Golomb-Rice coding of the gaps between chosen places (Golomb 1966, Rice 1979): the low
`rice` bits of each gap, packed, and the rest in unary. For chosen places without
structure it is within a few hundredths of a bit a place of the entropy. With ``rice =
0`` the unary part is the bitmap itself, so a bitmap needs no form of its own.
"""

import math

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.uniform import pack_codes, unpack_codes
from flwr_slfac.errors import DecodeError

Places = npt.NDArray[np.int64]

# Above, gaps that hostile bytes add up would overflow 64 bits.
MAX_RICE = 24


def pack_places(places: Places) -> tuple[int, memoryview, bytes]:
    """Return the Rice parameter, the low bits and the unary part of rising places."""
    gaps = np.diff(places, prepend=-1) - 1
    rice = _cheapest(gaps)
    high = gaps >> rice
    unary = np.zeros(int(high.sum()) + high.size, dtype=np.uint8)
    unary[np.cumsum(high + 1) - 1] = 1
    low = memoryview(b"")
    if rice:
        low = pack_codes(torch.from_numpy(gaps & ((1 << rice) - 1)), rice)
    return rice, low, np.packbits(unary, bitorder="little").tobytes()


def unpack_places(
    rice: int, low: memoryview, unary: memoryview, num_places: int
) -> Places:
    """Undo `pack_places` within a tensor of `num_places` places.

    Raises
    ------
    DecodeError
        If the parts do not fit together, or a place lies outside of the tensor.
    """
    if rice > MAX_RICE:
        raise DecodeError(f"a Rice parameter of {rice}, at most {MAX_RICE}")
    if 8 * unary.nbytes > 2 * num_places + 7:
        raise DecodeError(f"{unary.nbytes} bytes of gaps for {num_places} places")
    bits = np.unpackbits(np.frombuffer(unary, np.uint8), bitorder="little")
    gaps = np.diff(np.flatnonzero(bits), prepend=-1) - 1 << rice
    if rice:
        gaps |= unpack_codes(low, rice, gaps.size, torch.device("cpu")).numpy()
    elif low.nbytes:
        raise DecodeError("low bits where the Rice parameter is 0")
    places: Places = np.cumsum(gaps + 1) - 1
    if places.size and places[-1] >= num_places:
        raise DecodeError(f"place {places[-1]} of {num_places}")
    return places


def _cheapest(gaps: Places) -> int:
    """Return the Rice parameter of fewest bits, which is near log2 of the mean gap."""
    if gaps.size == 0:
        return 0
    guess = int(math.log2(int(gaps.sum()) / gaps.size + 1))
    near = range(max(0, guess - 1), min(MAX_RICE, guess + 1) + 1)
    return min(near, key=lambda rice: gaps.size * rice + int((gaps >> rice).sum()))
