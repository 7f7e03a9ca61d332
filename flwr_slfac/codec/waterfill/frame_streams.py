"""All streams of a frame: in one call of the compiled loops, or one by one.

::

    a new channel basis, energies, centroids, levels --> parameters, words

Both ways make the same bytes.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from flwr_slfac.codec.kernels import CodingTables, FrameLoops, kernels, models
from flwr_slfac.codec.waterfill.class_values import kinds, read_levels, write_values
from flwr_slfac.codec.waterfill.digits import LARGE, Digits, Ints
from flwr_slfac.codec.waterfill.energies import EnergyClasses, EnergyModel
from flwr_slfac.codec.waterfill.levels import CENTROID_UNIT, Quantized
from flwr_slfac.codec.waterfill.model import CHANCES, MIDPOINTS
from flwr_slfac.codec.waterfill.plan import Plan
from flwr_slfac.codec.waterfill.stream_reader import StreamReader
from flwr_slfac.codec.waterfill.stream_writer import StreamWriter
from flwr_slfac.errors import DecodeError

Coefficients = tuple[npt.NDArray[np.float32], Ints]


@cache
def _tables() -> CodingTables:
    return CodingTables(kinds(), MIDPOINTS, CHANCES)


def write_streams(
    lists: Sequence[Ints], plan: Plan, quantized: Quantized
) -> list[bytes]:
    """Return parameters and words.

    Parameters
    ----------
    lists : sequence of ndarray
        int64: what the decoder needs before it knows of energies.
    plan : Plan
        Of the levels.
    quantized : Quantized
        Levels and centroids.
    """
    energies = plan.energies_at(quantized.step)
    loops = kernels().frames
    if loops is not None:
        levels = np.ascontiguousarray(quantized.levels)
        return [*loops.write(lists, energies, quantized.shifts, levels, _tables())]
    writer = StreamWriter()
    for part in [*lists, *plan.energy_model.lists()]:
        writer.stream(part, LARGE)
    classes = EnergyClasses(*plan.energies, energies.offset)
    present = np.flatnonzero(classes.counts)
    writer.stream(np.diff(quantized.shifts[present], prepend=0), LARGE)
    values = classes.split(quantized.levels)
    write_values(writer, [(int(number), values[number]) for number in present])
    return [*writer.finish()]


class ListReader:
    """Reads the lists before all other streams by the compiled loops.

    Parameters
    ----------
    loops : FrameLoops
        The compiled ones.
    parameters, words : memoryview
        Sections of a frame.

    Attributes
    ----------
    sizes : list of int
        Of the lists that were read.
    """

    def __init__(
        self, loops: FrameLoops, parameters: memoryview, words: memoryview
    ) -> None:
        self._loops, self._sections = loops, (parameters, words)
        self.sizes: list[int] = []

    def stream(self, num_values: int, digits: Digits) -> Ints:
        """Return the next list, see `StreamReader.stream`."""
        # From the first one on: they are few, and small beside the rest.
        sizes = [*self.sizes, num_values]
        values, wrong = self._loops.read_lists(*self._sections, sizes, _tables())
        if wrong:
            raise DecodeError(wrong)
        self.sizes = sizes
        return values[values.size - num_values :]


def read_at_once(
    sections: Sequence[memoryview],
    lists: Sequence[int],
    sizes: tuple[int, int, int],
    groups: Ints,
    offset: int,
    step: float,
) -> Coefficients | None:
    """Return coefficients and the planes of their columns; None without the loops.

    Parameters
    ----------
    sections : sequence of memoryview
        Parameters and words.
    lists : sequence of int
        Sizes of what was read before by a `ListReader`.
    sizes : tuple of int
        Samples, rows of the channel basis, and groups of frequencies.
    groups : ndarray (S,)
        Of frequencies.
    offset, step
        As the header has them.

    Raises
    ------
    DecodeError
        If the bytes are not a writer's.
    """
    loops = kernels().frames
    if loops is None:
        return None
    parameters, words = sections
    coefficients, order, wrong = loops.read(
        parameters, words, lists, sizes, groups, offset, step, _tables()
    )
    if wrong:
        raise DecodeError(wrong)
    return coefficients, order


def read_one_by_one(
    reader: StreamReader,
    sizes: tuple[int, int, int],
    groups: Ints,
    offset: int,
    step: float,
) -> Coefficients:
    """Return what `read_at_once` does, from a reader that was at the energies."""
    model = EnergyModel.read(reader, *sizes)
    energies = model.of_planes()
    order = np.argsort(-energies.astype(np.int16), kind="stable")
    classes = EnergyClasses(model.frequencies[groups], energies[order], offset)
    coefficients = classes.join(_read_values(reader, classes, step))
    reader.finish()
    return coefficients, order


def _read_values(
    reader: StreamReader, classes: EnergyClasses, step: float
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yield the coefficients of each class at their centroids."""
    present = np.flatnonzero(classes.counts)
    shifts = np.cumsum(reader.stream(len(present), LARGE).astype(np.int64))
    if np.abs(shifts).max() > CENTROID_UNIT:
        raise DecodeError("a centroid of codec 'waterfill' is out of range")
    counts = [(number, classes.counts[number]) for number in present.tolist()]
    all_levels = read_levels(reader, counts)
    for (number, _), shift, levels in zip(counts, shifts, all_levels, strict=True):
        # A crafted step may overflow; `denormalize` finds what is not finite.
        with np.errstate(over="ignore", invalid="ignore"):
            taken = np.float32(shift / CENTROID_UNIT) * np.float32(step)
        values = np.empty(levels.size, np.float32)
        models.to_values(levels, step, float(taken), values)
        yield number, values
