"""What a stream's first frame is told of other streams, so that nothing is tried.

::

    last frames of streams --choice_of--> "dct mr 0.0123" --usual--> the most common one
                                                                         |
    memory of a new stream <------------------- begun -------------------+

Basis, ``m`` for the mean of the samples, ``r`` for a channel basis, and the step: what
each frame tells anyway. It is an encoder's guess, and decodes as any other choice does.
"""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median_low

from flwr_slfac.codec.base import Memory
from flwr_slfac.codec.transforms import parse_basis
from flwr_slfac.codec.waterfill import header
from flwr_slfac.codec.waterfill.reuse import Kept
from flwr_slfac.codec.wire import Frame
from flwr_slfac.errors import DecodeError, SettingError

_MEAN, _ROTATED = "m", "r"
_NO_FLAG = "-"


def choice_of(frame: Frame) -> str:
    """Return what a frame was coded by; empty for one of zeros, or of weighted maps.

    Raises
    ------
    DecodeError
        If its header is not valid.
    """
    head = header.Header.unpack(frame.sections[0])
    if head.flags & (header.ZERO | header.WEIGHTED):
        return ""
    flags = _MEAN if head.flags & header.MEAN else ""
    flags += _ROTATED if head.flags & header.ROTATED else ""
    # By its proper name, as a frame may have another; the step of normalized values.
    return f"{parse_basis(head.basis)} {flags or _NO_FLAG} {head.step:.3g}"


def usual(choices: Sequence[str]) -> str:
    """Return the most common choice, at the median of its steps; empty for none."""
    pairs = [choice.rpartition(" ")[::2] for choice in choices if choice]
    if not pairs:
        return ""
    counts = Counter(kind for kind, _ in pairs)
    kind = max(sorted(counts), key=lambda k: counts[k])
    step = median_low([float(step) for k, step in pairs if k == kind])
    return f"{kind} {step:.3g}"


def begun(memory: Memory, choice: str) -> Memory:
    """Return the memory of a new stream that is told a choice.

    Parameters
    ----------
    memory : dict of str to Tensor
        Of the encoder before; left as it is.
    choice : str
        From `usual`.

    Raises
    ------
    DecodeError
        If it is no choice.
    """
    told = dict(memory)
    if not choice:
        return told
    try:
        basis, flags, number = choice.split(" ")
        step, name = float(number), str(parse_basis(basis))
    except (ValueError, SettingError) as error:
        raise DecodeError(f"the choice {choice!r} cannot be read: {error}") from error
    if not (math.isfinite(step) and step > 0):
        raise DecodeError(f"the choice {choice!r} has no step")
    Kept.told(name, _MEAN in flags, _ROTATED in flags, step).store(told, lasts=False)
    return told
