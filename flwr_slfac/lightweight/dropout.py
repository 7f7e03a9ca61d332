"""Random dropout at the cut: only kept values travel, the mask does not.

Both sides derive the mask from a seed, so it costs no byte. The device sends what
`gather` keeps, already scaled; the server puts it back with `scatter`, and the means of
channels at the other places (`running_means`), before its half sees it. The gradient
that it hands back is that of the kept values alone::

    device  activations --gather--> kept --encode==>      ==>decode--> kept  server
                                                            --scatter--> back
    device  activations <--autograd-- kept <--decode<==  <==encode-- gradient of kept

A uniformly random subset of exactly ``K = round((1 - p) D)`` of D units is kept and
scaled by ``D / K``. Our reading of the inverted dropout of Zhang, Ni and Wang,
"Lightweight federated split learning" (arXiv 2412.06414): the mean is the activation,
as with independent coin flips, but the number kept is the same in every example, so
that kept channels are one dense tensor that any codec takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch

from flwr_slfac.codec.layout import channel_dim
from flwr_slfac.errors import SettingError, TrainingError

# Our choice: a seed is a word of 64 bits, as in torch.
_NUM_SEEDS = 2**64

Unit = Literal["channel", "element"]
Per = Literal["batch", "example"]


@dataclass(frozen=True)
class DropMask:
    """Which part of each example's activations travels.

    A function of its fields alone: two masks of equal fields are the same mask, on any
    machine and any release of torch (the bits come from NumPy's PCG64, whose stream is
    fixed).

    Parameters
    ----------
    shape : sequence of int
        Of the activations: ``(N, D)``, ``(N, T, D)``, ``(N, C, H, W)`` or more
        dimensions; the first is the batch.
    p : float
        Share that is dropped, in [0, 1). At 0 nothing is changed, bit for bit.
    seed : int
        In [0, 2**64).
    unit : {"channel", "element"} (default: "channel")
        What is dropped. ``"channel"``: whole channels or features, which leaves a
        tensor of fewer channels; a spectral codec needs its maps whole, and any codec
        that knows channels does better with this. ``"element"``: single values, which
        leaves a matrix ``(N, K)`` without neighbourhood, for codecs that see plain
        values (identity, half precision, uniform).
    per : {"batch", "example"} (default: "batch")
        What shares one subset. With ``"batch"`` a kept channel is the same one in every
        example, as codecs that model channels together need it: of a ResNet-18 front
        at p = 0.1, `Waterfill` then takes 0.92 of the bytes, with ``"example"`` 1.01.
        With ``"example"`` the noise averages out over the batch; `SLFAC`, which codes
        each map for itself, takes the same bytes (0.91) either way.

    Raises
    ------
    SettingError
        If a setting is out of range or the shape has no channels.

    Notes
    -----
    With r = D/K - 1 a kept-and-scaled value y of x has mean x and variance r x^2;
    units of one subset are slightly negatively correlated, those of two subsets are not
    correlated: each is a random arc of one random circle of the units.

    Examples
    --------
    >>> mask = DropMask((2, 4), p=0.5, seed=1)
    >>> kept = mask.gather(torch.ones(2, 4))
    >>> kept
    tensor([[2., 2.],
            [2., 2.]])
    >>> mask.scatter(kept).sum(dim=1)
    tensor([4., 4.])
    """

    shape: Sequence[int]
    p: float
    seed: int
    unit: Unit = "channel"
    per: Per = "batch"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        require_dropout(self.p, self.unit, self.per)
        if channel_dim(len(self.shape)) is None:
            raise SettingError(
                f"dropout at the cut needs a batch of vectors or maps; the activations "
                f"have shape {self.shape}"
            )
        if not 0 <= self.seed < _NUM_SEEDS:
            raise SettingError(f"seed is {self.seed}; give one in [0, 2**64)")

    @property
    def num_units(self) -> int:
        """D: units of one example, kept or not."""
        return self._shape_by_units[1]

    @property
    def num_kept(self) -> int:
        """K: units of one example that travel; at least 1 if there is any."""
        return max(round((1 - self.p) * self.num_units), min(1, self.num_units))

    @property
    def scale(self) -> float:
        """D / K, the factor of kept values."""
        return self.num_units / self.num_kept if self.num_kept else 1.0

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """Shape of what travels: ``(N, K, H, W)``, ``(N, T, K)`` or ``(N, K)``."""
        if self.keeps_all:
            return tuple(self.shape)
        if self.unit == "element":
            return (self.shape[0], self.num_kept)
        shape = list(self.shape)
        shape[self.dim] = self.num_kept
        return tuple(shape)

    @cached_property
    def units(self) -> torch.Tensor:
        """Return the kept units of each example: int64 (N, K), rows ascending."""
        n, d = self.shape[0], self.num_units
        subsets = n if self.per == "example" else 1
        bits = np.random.PCG64(self.seed)
        circle = np.argsort(bits.random_raw(d), kind="stable")
        starts = (bits.random_raw(subsets) % np.uint64(max(d, 1))).astype(np.int64)
        place = np.empty(d, dtype=np.int64)
        place[circle] = np.arange(d)
        units = np.empty((subsets, self.num_kept), dtype=np.int64)
        for row, start in zip(units, starts, strict=True):
            end, behind = start + self.num_kept, place >= start
            # An arc that passes the circle's end goes on at its start.
            kept = behind & (place < end) if end <= d else behind | (place < end - d)
            row[:] = np.flatnonzero(kept)
        return torch.from_numpy(units).expand(n, -1)

    def gather(self, activations: torch.Tensor) -> torch.Tensor:
        """Return the kept values, scaled by `scale`; differentiable.

        Parameters
        ----------
        activations : Tensor
            Of the mask's `shape`, floating.

        Returns
        -------
        Tensor
            Of `kept_shape`, the same dtype and device.

        Raises
        ------
        TrainingError
            If the activations are not of the mask's shape.
        """
        kept = self.select(activations)
        return kept if self.keeps_all else kept * self.scale

    def select(self, activations: torch.Tensor) -> torch.Tensor:
        """Return the kept values as they are; what `scatter` is the adjoint of.

        Parameters
        ----------
        activations : Tensor
            Of the mask's `shape`, or the gradient of such.

        Raises
        ------
        TrainingError
            If the activations are not of the mask's shape.
        """
        _require_shape(activations, tuple(self.shape), "activations")
        if self.keeps_all:
            return activations
        rows = self._by_units(activations, self.num_units)
        kept = rows.flatten(0, 1).index_select(0, self._flat.to(activations.device))
        kept = kept.reshape(rows.shape[0], self.num_kept, rows.shape[2])
        return self._from_units(kept, self.kept_shape)

    def scatter(self, kept: torch.Tensor) -> torch.Tensor:
        """Return kept values at their places among zeros; differentiable.

        Parameters
        ----------
        kept : Tensor
            Of `kept_shape`.

        Returns
        -------
        Tensor
            Of the mask's `shape`.

        Raises
        ------
        TrainingError
            If the values are not of `kept_shape`.
        """
        _require_shape(kept, self.kept_shape, "kept values")
        if self.keeps_all:
            return kept
        n, d, rest = self._shape_by_units
        rows = self._by_units(kept, self.num_kept).flatten(0, 1)
        where = self._flat.to(kept.device)
        full = rows.new_zeros(n * d, rest).index_copy(0, where, rows)
        return self._from_units(full.reshape(n, d, rest), tuple(self.shape))

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is dropped."""
        return self.num_kept == self.num_units

    @property
    def dim(self) -> int:
        """Dimension along which channels lie."""
        dim = channel_dim(len(self.shape))
        return 1 if dim is None else dim

    @property
    def _shape_by_units(self) -> tuple[int, int, int]:
        """Shape (N, D, R) of the activations: R values in each of D units."""
        n, *others = self.shape
        total = int(np.prod(others))
        d = total if self.unit == "element" else self.shape[self.dim]
        return n, d, total // d if d else 0

    @cached_property
    def _flat(self) -> torch.Tensor:
        """Where kept units are among all units of the batch."""
        first = torch.arange(self.shape[0])[:, None] * self.num_units
        return (self.units + first).reshape(-1)

    def _by_units(self, x: torch.Tensor, units: int) -> torch.Tensor:
        """View or copy a full or kept tensor as (N, units, values of a unit)."""
        if self.unit == "channel":
            x = x.movedim(self.dim, 1)
        return x.reshape(x.shape[0], units, self._shape_by_units[2])

    def _from_units(self, x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        if self.unit == "element":
            return x.reshape(shape)
        moved = list(shape)
        moved.insert(1, moved.pop(self.dim))
        return x.reshape(moved).movedim(1, self.dim).contiguous()


def require_dropout(p: float, unit: str = "channel", per: str = "batch") -> None:
    """Raise SettingError unless the share, the unit and what shares one are valid."""
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p < 1:
        raise SettingError(f"activation_dropout is {p!r}; give a number in [0, 1)")
    if unit not in get_args(Unit):
        raise SettingError(f"unit is {unit!r}; give 'channel' or 'element'")
    if per not in get_args(Per):
        raise SettingError(f"per is {per!r}; give 'batch' or 'example'")


def _require_shape(x: torch.Tensor, shape: tuple[int, ...], what: str) -> None:
    if x.shape != shape:
        raise TrainingError(
            f"the {what} have shape {tuple(x.shape)}, the dropout mask is for {shape}; "
            "both sides must derive it from the same shape"
        )
