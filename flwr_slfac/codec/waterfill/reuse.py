"""What an encoder keeps of one step's choices for the next steps of a stream.

From step to step the same layer's tensors have the same statistics: which channel basis
and which spatial basis suit is tried every sixteenth step only, less often where trials
agree, and sooner where frames grow. What is kept is the encoder's own, as each frame
says which bases it is coded by. That of gradients outlives the stream: the memory of a
server is saved with its run, that of a device is not, which is told instead (`usual`).
The channel basis does not, as the decoder has to know it; a new stream's is of its
first frame, without trials.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from flwr_slfac.codec.base import Memory
from flwr_slfac.codec.transforms import Basis
from flwr_slfac.codec.waterfill import klt
from flwr_slfac.codec.waterfill.target import Decider, Target

_NUMBERS, _BASIS = "waterfill.choice", "waterfill.basis"
_STREAM = "stream."
# Of what is kept: fewer are those of another release's checkpoint.
_NUM_NUMBERS = 13
# In place of sizes, of a choice that is told: it suits any.
_TOLD = (0, 0)
# Our choice: steps from one trial to the next. Trials of small frames take several
# times as long as all else; each that agrees with the one before doubles the steps.
_FIRST_PERIOD, _LAST_PERIOD = 16, 128
# Our choice: share of its bits by which a frame may be larger than the one after the
# trials, of the first period, and as much more of longer ones.
_GROWN = 0.05
# Where the step costs so much more error at a rate, or so much less of anything, it is
# another kind of tensor: our choice.
_CHANGED = 1.5


@dataclass(frozen=True, eq=False)
class Choice:
    """A channel transform, the mean, a spatial basis, and about the step.

    Parameters
    ----------
    channels : ChannelTransform
        Its rows are settled where it is not new.
    basis : Basis
        Along the sizes of a plane.
    has_mean : bool
        Whether the mean of the samples takes the place of sample 0.
    step : float
        A guess.
    gain : float, optional
        Squared error after clamping at zero relative to that before, as it was.
    near_zero : float
        Share of values that were near zero then.
    age : int
        Steps since trials.
    bits_a_level : float
        Of the frame before, for each level that is not zero.
    needs_rows : bool
        Whether channels were rotated by a basis that ended with its stream.
    """

    channels: klt.ChannelTransform
    basis: Basis
    has_mean: bool
    step: float
    gain: float | None = None
    near_zero: float = 0.0
    age: int = 0
    bits_a_level: float = 0.0
    needs_rows: bool = False


@dataclass(frozen=True)
class Kept:
    """What the memory of an encoder holds of a `Choice`.

    Parameters
    ----------
    sizes : tuple of int
        Channels, and positions of a plane; none of what is told.
    basis : str
        Name of the spatial basis.
    has_mean, is_rotated : bool
        Whether the mean of the samples is used, and the channel basis in memory.
    fineness : float
        Step over the root mean square that the target allows, or of the tensor; of
        what is told, the step.
    gain, near_zero : float
        See `Choice`; a gain of 0 where it was not measured.
    first_cost, cost : float
        Of the frame after the trials, and of the last one: bits a value, or where bits
        decide, the share of energy that was lost.
    bits_a_level : float
        Bits of the last one for each level that is not zero, 0 if there was none.
    decider : Decider
        What decided the step of the last one.
    age : int
        Steps since the trials.
    period : int
        Steps from trials to trials.
    """

    sizes: tuple[int, int]
    basis: str
    has_mean: bool
    is_rotated: bool
    fineness: float
    gain: float
    near_zero: float
    first_cost: float
    cost: float
    bits_a_level: float
    decider: Decider
    age: int = 0
    period: int = _FIRST_PERIOD

    @classmethod
    def told(cls, basis: str, has_mean: bool, is_rotated: bool, step: float) -> "Kept":
        """Return what a stream begins with that is told how others are coded."""
        unknown = 0.0, 0.0, 1.0, 1.0, 0.0, Decider.ERROR
        return cls(_TOLD, basis, has_mean, is_rotated, step, *unknown)

    @property
    def is_told(self) -> bool:
        """Whether no frame of this stream has been coded yet."""
        return self.sizes == _TOLD

    @classmethod
    def of(cls, memory: Memory) -> "Kept | None":
        """Return what a memory holds, None if nothing."""
        told, basis = _kept(memory, _NUMBERS), _kept(memory, _BASIS)
        if told is None or basis is None or told.numel() != _NUM_NUMBERS:
            return None
        numbers: list[float] = told.tolist()
        channels, positions, mean, rotated, fineness, gain, near_zero = numbers[:7]
        first, last, bits_a_level, decider, age, period = numbers[7:]
        name = bytes(basis.tolist()).decode("ascii")
        sizes = int(channels), int(positions)
        flags, reals = (bool(mean), bool(rotated)), (fineness, gain, near_zero)
        bits = first, last, bits_a_level
        steps = int(age), int(period)
        return cls(sizes, name, *flags, *reals, *bits, Decider(int(decider)), *steps)

    @property
    def last_decider(self) -> Decider | None:
        """What decided the step of the frame before; None if there was none."""
        return None if self.is_told else self.decider

    @property
    def is_due(self) -> bool:
        """Whether it is time for trials."""
        most = 1 + _GROWN * self.period / _FIRST_PERIOD
        if self.decider is Decider.BITS:
            most = _CHANGED
        # A first frame that brought a channel basis tells nothing of what is less.
        least = 0.0 if self.is_rotated else self.first_cost / _CHANGED
        is_alike = least <= self.cost <= most * self.first_cost
        return self.age >= self.period or not is_alike

    def after(self, old: "Kept | None", *, is_kept: bool) -> "Kept":
        """Return this with its age, as the choice after another.

        Parameters
        ----------
        old : Kept, optional
            What was kept before.
        is_kept : bool
            Whether this is the same without trials.
        """
        if old is None:
            return self
        if is_kept:
            is_alike = old.decider is self.decider and not old.is_told
            first = old.first_cost if is_alike else self.cost
            age, period = old.age + 1, old.period
            return replace(self, age=age, period=period, first_cost=first)
        mine, theirs = (
            (k.sizes, k.basis, k.has_mean, k.is_rotated) for k in (self, old)
        )
        twice = min(2 * old.period, _LAST_PERIOD)
        return replace(self, period=twice) if mine == theirs else self

    def store(self, memory: Memory, *, lasts: bool) -> None:
        """Keep this in a memory, for other streams too if it lasts."""
        start = "" if lasts else _STREAM
        numbers = [
            *self.sizes,
            self.has_mean,
            self.is_rotated,
            self.fineness,
            self.gain,
            self.near_zero,
            self.first_cost,
            self.cost,
            self.bits_a_level,
            self.decider,
            self.age,
            self.period,
        ]
        memory[start + _NUMBERS] = torch.from_numpy(np.array(numbers, np.float64))
        name = np.frombuffer(self.basis.encode("ascii"), np.uint8)
        memory[start + _BASIS] = torch.from_numpy(name.copy())


def _kept(memory: Memory, name: str) -> torch.Tensor | None:
    return memory.get(name, memory.get(_STREAM + name))


def kept_choice(
    x: torch.Tensor,
    target: Target,
    memory: Memory,
    kept: Kept | None,
    bases: tuple[Basis, ...],
    use_klt: bool,
) -> Choice | None:
    """Return the choice of the step before, None if there is none that serves.

    Parameters
    ----------
    x : Tensor (N, C, S)
        All planes.
    target : Target
        What the step will have to meet.
    memory, kept, bases, use_klt
        See `make_plan`.
    """
    if kept is None or kept.is_due:
        return None
    if kept.sizes != tuple(x.shape[1:]) and not kept.is_told:
        return None
    basis = next((b for b in bases if str(b) == kept.basis), None)
    if basis is None or (kept.is_rotated and not use_klt):
        return None
    if kept.has_mean and len(x) == 1:
        return None
    channels, rotation = klt.ChannelTransform(None, np.zeros(0)), None
    if kept.is_rotated:
        rotation = klt.stored_rotation(memory)
        if rotation is not None and rotation.codes.shape[1] != x.shape[1]:
            return None
    if rotation is not None:
        matrix = rotation.matrix(x.device)
        channels = klt.ChannelTransform(matrix, np.zeros(0), rotation)
    unit = 1.0 if kept.is_told else allowed_rms(target, x.numel())
    step = target.step or kept.fineness * unit
    gain = kept.gain or None
    return Choice(
        channels,
        basis,
        kept.has_mean,
        step,
        gain,
        kept.near_zero,
        kept.age + 1,
        kept.bits_a_level,
        kept.is_rotated and rotation is None,
    )


def allowed_rms(target: Target, num_values: int) -> float:
    """Return the root mean square of the error, or of the tensor for a rate."""
    energy = target.energy if target.distortion is None else target.distortion
    return float((energy / num_values) ** 0.5)
