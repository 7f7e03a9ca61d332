"""What a frame says before the inner codec's sections.

Little-endian layout::

    bytes      field
    1          flags, see `_Flag`, and in the last two bits `_Naming`
    1 + L      length of the inner codec's id, and the id
    8          what the frame counts on, see `agreement`; or, where it begins anew,
               the limit of memory                          (where it has samples)
    8          first of consecutive samples                 (run)
    1 + ...    bits of a sample, samples packed             (packed)
    N / 4      how each sample is coded, 2 bits each        (predicts, not all_same)
    C          gain of each channel, in 1/255               (has_gains)
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

import numpy as np
import numpy.typing as npt
import torch

from flwr_slfac.codec.packing import (
    num_bits_for,
    num_packed_bytes,
    pack_codes,
    unpack_codes,
)
from flwr_slfac.codec.temporal.agreement import VERSION_BYTES
from flwr_slfac.errors import DecodeError

__all__ = [
    "MODE_BITS",
    "PLAIN",
    "PREDICTED",
    "SAME",
    "Header",
    "Samples",
]

# How a sample is coded: whole, what prediction leaves over, or not at all.
PLAIN, PREDICTED, SAME = 0, 1, 2
MODE_BITS = 2
# Samples are int64, 0 or more.
_MOST_ID_BITS = 63
_NAMING = 3
_U64 = struct.Struct("<Q")
_CPU = torch.device("cpu")

Ids = npt.NDArray[np.int64]
Modes = npt.NDArray[np.uint8]


class _Naming(IntEnum):
    """How a frame says which samples it is of; none if it is for itself."""

    NO_SAMPLES = 0
    PACKED = 1
    RUN = 2
    KNOWN = 3


class _Flag(IntFlag):
    ANEW = 4
    PREDICTS = 8
    ALL_SAME = 16
    HAS_GAINS = 32
    CLAMPS = 64
    EIGHT_BITS = 128


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of a frame and how they are coded.

    Parameters
    ----------
    ids : ndarray of int64 (n,), optional
        Which they are, 0 or more; None where the receiver knows.
    bits : {8, 16}
        A value's, where the frame is remembered.
    version : bytes
        What the frame counts on; empty if it begins anew.
    max_bytes : int
        Limit of memory, where it begins anew.
    modes : ndarray of uint8 (n,), optional
        `PLAIN`, `PREDICTED` or `SAME`; None if nothing is predicted.
    gains : ndarray of uint8 (C,), optional
        By channel, in 1/255; None for 1.
    clamps : bool
        Whether negative values are set to 0.
    """

    ids: Ids | None
    bits: int
    version: bytes
    max_bytes: int = 0
    modes: Modes | None = None
    gains: Modes | None = None
    clamps: bool = False


@dataclass(frozen=True, eq=False)
class Header:
    """All that comes before the inner sections.

    Parameters
    ----------
    inner : str
        Id of the inner codec.
    samples : Samples, optional
        None if the frame is for itself.
    """

    inner: str
    samples: Samples | None = None

    def to_bytes(self) -> bytes:
        """Return the header's section."""
        flags, parts = 0, list[bytes | memoryview]()
        if (samples := self.samples) is not None:
            flags, parts = _write_samples(samples)
        name = self.inner.encode("ascii")
        return b"".join([bytes([flags, len(name)]), name, *parts])

    @classmethod
    def of_bytes(
        cls, data: memoryview, num_samples: int, num_channels: int
    ) -> "Header":
        """Read a section.

        Parameters
        ----------
        data : memoryview
            Of anybody's.
        num_samples, num_channels : int
            Of the frame's tensor.

        Raises
        ------
        DecodeError
            If it is none.
        """
        reader = _Reader(data)
        flags = reader.byte()
        name = bytes(reader.take(reader.byte())).decode("ascii", errors="replace")
        samples = None
        if naming := _Naming(flags & _NAMING):
            rest = _Flag(flags & ~_NAMING)
            samples = _read_samples(naming, rest, reader, num_samples, num_channels)
        elif flags:
            raise DecodeError("codec 'temporal' has flags of samples, and no samples")
        reader.require_end()
        return cls(name, samples)


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def take(self, num_bytes: int) -> memoryview:
        part = self._data[self._at : self._at + num_bytes]
        if part.nbytes != num_bytes:
            raise DecodeError("the header of codec 'temporal' ends too early")
        self._at += num_bytes
        return part

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        (value,) = _U64.unpack(self.take(_U64.size))
        return int(value)

    def require_end(self) -> None:
        if self._at != self._data.nbytes:
            raise DecodeError("the header of codec 'temporal' is too long")


def _write_samples(samples: Samples) -> tuple[int, list[bytes | memoryview]]:
    flags, parts = _Flag(0), list[bytes | memoryview]()
    if samples.version:
        parts.append(samples.version)
    else:
        flags |= _Flag.ANEW
        parts.append(_U64.pack(samples.max_bytes))
    naming, names = _write_ids(samples.ids)
    parts += names
    if samples.bits == 8:
        flags |= _Flag.EIGHT_BITS
    if samples.clamps:
        flags |= _Flag.CLAMPS
    if samples.modes is not None:
        flags |= _Flag.PREDICTS
        if (samples.modes == SAME).all():
            flags |= _Flag.ALL_SAME
        else:
            parts.append(pack_codes(torch.from_numpy(samples.modes), MODE_BITS))
    if samples.gains is not None:
        flags |= _Flag.HAS_GAINS
        parts.append(samples.gains.tobytes())
    return flags | naming, parts


def _write_ids(ids: Ids | None) -> tuple[_Naming, list[bytes | memoryview]]:
    if ids is None:
        return _Naming.KNOWN, []
    if np.array_equal(ids, ids[0] + np.arange(len(ids))):
        return _Naming.RUN, [_U64.pack(int(ids[0]))]
    width = max(num_bits_for(int(ids.max())), 1)
    return _Naming.PACKED, [bytes([width]), pack_codes(torch.from_numpy(ids), width)]


def _read_samples(
    naming: _Naming,
    flags: _Flag,
    reader: _Reader,
    num_samples: int,
    num_channels: int,
) -> Samples:
    version, max_bytes = b"", 0
    if _Flag.ANEW in flags:
        max_bytes = reader.number()
    else:
        version = bytes(reader.take(VERSION_BYTES))
    ids = _read_ids(naming, reader, num_samples)
    if _Flag.PREDICTS not in flags:
        if flags & (_Flag.ALL_SAME | _Flag.HAS_GAINS | _Flag.CLAMPS):
            raise DecodeError("codec 'temporal' has flags of a prediction without one")
        return Samples(ids, _bits(flags), version, max_bytes)
    if _Flag.ALL_SAME in flags:
        modes = np.full(num_samples, SAME, dtype=np.uint8)
    else:
        packed = reader.take(num_packed_bytes(num_samples, MODE_BITS))
        codes = unpack_codes(packed, MODE_BITS, num_samples, _CPU)
        modes = codes.numpy().astype(np.uint8)
        if (modes > SAME).any():
            raise DecodeError("codec 'temporal' codes a sample in an unknown way")
    gains = None
    if _Flag.HAS_GAINS in flags:
        gains = np.frombuffer(reader.take(num_channels), np.uint8)
    clamps = _Flag.CLAMPS in flags
    return Samples(ids, _bits(flags), version, max_bytes, modes, gains, clamps)


def _bits(flags: _Flag) -> int:
    return 8 if _Flag.EIGHT_BITS in flags else 16


def _read_ids(naming: _Naming, reader: _Reader, num_samples: int) -> Ids | None:
    if naming is _Naming.KNOWN:
        return None
    if naming is _Naming.RUN:
        first = reader.number()
        if first >= 2**_MOST_ID_BITS - num_samples:
            raise DecodeError(f"a first sample of {first} is too large")
        return first + np.arange(num_samples, dtype=np.int64)
    width = reader.byte()
    if not 1 <= width <= _MOST_ID_BITS:
        raise DecodeError(f"samples of {width} bits; 1 to {_MOST_ID_BITS} are known")
    packed = reader.take(num_packed_bytes(num_samples, width))
    ids: Ids = unpack_codes(packed, width, num_samples, _CPU).numpy()
    return ids
