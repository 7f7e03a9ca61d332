"""Short lists of integers by mixed contexts, the reference.

::

    integer -> zero? -> sign -> length in bits, bit by bit -> highest bit -> the rest

All but the rest is learned, in contexts of the two magnitudes before.
"""

from flwr_slfac.codec.kernels.mixing import (
    Arithmetic,
    Mixer,
    Slots,
    bucket_of,
)
from flwr_slfac.errors import DecodeError

__all__ = ["ListModel"]

# Decisions of a context: zero, sign, then exponents and highest bits, of which the last
# stand for all larger ones. The limit of 40 bits is the format's.
_NUM_DECISIONS = 48
_SIGN, _EXPONENT, _MANTISSA, _LAST_OWN, _MOST_EXPONENT = 1, 2, 24, 20, 40
# Of each input at first, in 65536ths.
_WEIGHT = 1 << 15
# A larger magnitude is in the last bucket anyway.
_MOST_LAST = 256


class ListModel:
    """Models of short lists of integers, which share what they learn."""

    def __init__(self) -> None:
        self._slots = [Slots(), Slots()]
        self._mixer = Mixer(self._slots, _WEIGHT)

    def code(self, coder: Arithmetic, num: int, values: list[int] | None) -> list[int]:
        """Code a list, or return the one that was coded."""
        # Those of the second input are the list's own.
        self._slots[1] = Slots()
        found: list[int] = []
        before = last = 0
        for i in range(num):
            bucket = bucket_of(4 * (2 * last + before))
            value = values[i] if values is not None else 0
            if self._bit(coder, bucket, 0, int(value != 0)):
                negative = self._bit(coder, bucket, _SIGN, int(value < 0))
                size = self._magnitude(coder, bucket, abs(value))
                value = -size if negative else size
            found.append(value)
            before, last = last, min(abs(value), _MOST_LAST)
        return found

    def _magnitude(self, coder: Arithmetic, bucket: int, size: int) -> int:
        exponent = 0
        while self._bit(
            coder,
            bucket,
            _EXPONENT + min(exponent, _LAST_OWN),
            int(exponent < _MOST_EXPONENT and size >> exponent + 1 > 0),
        ):
            exponent += 1
            if exponent > _MOST_EXPONENT:
                raise DecodeError("an integer of more than 40 bits")
        if not exponent:
            return 1
        top = size >> exponent - 1 & 1
        top = self._bit(coder, bucket, _MANTISSA + min(exponent, _LAST_OWN), top)
        rest = coder.raw(exponent - 1, size)
        return 1 << exponent | top << exponent - 1 | rest

    def _bit(self, coder: Arithmetic, bucket: int, decision: int, bit: int) -> int:
        contexts = [bucket * _NUM_DECISIONS + decision, decision]
        return coder.mixed(self._mixer, contexts, (decision, decision), bit)
