"""What a run asks of its devices, in one setting; checked before anything starts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from flwr_slfac.codec import Codec
from flwr_slfac.counts import require_count
from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight.device_config import FULL_BITS, DeviceConfig
from flwr_slfac.lightweight.dropout import Per, Unit, require_dropout
from flwr_slfac.lightweight.pruning.importance import Criterion, require_choice
from flwr_slfac.lightweight.pruning.schedule import gradual_share
from flwr_slfac.lightweight.pruning.selection import CutChoice, Scope, require_ratio
from flwr_slfac.lightweight.quantization.qsgd import DEFAULT_BUCKET
from flwr_slfac.lightweight.setting_checks import (
    require_exact_means,
    require_gradual,
    require_renewable,
)

Profile = Mapping[str, Any]
Prune = float | Sequence[float] | Callable[[int, Profile], float]


@dataclass(frozen=True)
class Lightweight:
    """Lightweight federated split learning: less work, memory and bytes on devices.

    After the scheme of Zhang, Ni and Wang, "Lightweight federated split learning"
    (arXiv 2412.06414), in our reading. Every part may be used alone, with any of the
    four schemes and any codec. With the defaults nothing is changed, bit for bit.

    Parameters
    ----------
    prune : float, sequence of float or callable (default: 0)
        Share rho of the front's channels (or weights) that a device does without, in
        [0, 1). A sequence gives one share a round, its last one from then on. A
        callable is given the round, from 1, and the device's profile
        (`Device.profile`, with ``"partition-id"`` added), so that unlike devices carry
        unlike shares.
    prune_rounds : int (default: 0)
        Rounds n over which `prune`, a number or a callable, is reached, from the whole
        front in the first round: after t rounds the share is
        ``prune (1 - (1 - t / n)^3)`` (Zhu and Gupta, "To prune, or not to prune",
        2017), as of the last choice of the masks. 0: it is reached at once.
    structured : bool (default: True)
        True: whole channels leave convolutions, linear layers and norms, and the
        device runs a smaller network. False: single weights are zero; that saves bytes
        of the model only.
    criterion : {"weight", "gradient", "scale", "increase"} (default: "weight")
        What makes a channel (or weight) important: |w|, |w g| with the gradient
        accumulated over rounds (|w| in the first round, when there is none), the
        scale of its batch norm (channels only), or the growth of |w| since the start
        (channels only; after Zhou et al., "Deconstructing lottery tickets", 2019).
        |w| suits fronts that come trained. In a front that starts from random weights
        it says nothing yet, and in runs of some hundred steps the widest channels are a
        poor choice: take ``"increase"``, whose first choice is drawn. In runs of some
        thousand steps there is no difference.
    scope : {"layer", "global"} (default: "layer")
        Whether the share holds in every layer or over all.
    at_cut : {"prune", "keep"} (default: "prune")
        Whether channels of the smashed data leave too, which makes it smaller.
    remask_every : int (default: 1)
        Rounds between two choices of the masks, also if `period` is of steps; a choice
        waits for a round that begins with an aggregated front.
    renew_every : int, optional
        Masks are chosen within a round, too: after every n-th mean of fronts (see
        `aggregate_every`, with `period` of steps), from that mean, for the devices that
        have further steps in the round. A device whose mask changes is sent the mask
        and its part of the mean whole, in float32; of it the optimizer's moments, and
        what updates and codecs had lost, are forgotten. None: not within a round.
    gradient_decay : float (default: 0.9)
        Weight of earlier rounds in the accumulated gradient, in [0, 1). The default is
        our choice: about the last ten rounds count.
    gradient_bits : int (default: 32)
        2 to 8: the front's gradients are quantized to so many bits, unbiasedly (QSGD),
        before the optimizer's step. 32: they are not.
    update_bits : int, optional
        Bits of the front's update on its way up and, within a round, of the mean's on
        its way down; by default `gradient_bits`.
    bucket : int (default: 512)
        Values that share a scale of gradients and updates, 1 to 65535.
    error_feedback : bool (default: False)
        Add what an update lost to the next one, and round to nearest.
    saved_bits : {8, 32} (default: 32)
        8: what the front's backward needs of its forward is stored in 8 bits.
    activation_dropout : float (default: 0)
        Share p of the smashed data that is dropped at random, in [0, 1): it travels
        neither up nor down.
    dropout_unit : {"channel", "element"}, optional
        What is dropped. The finer it is the less it disturbs, but it must not break up
        what the codec codes together. By default single values under codecs of single
        values (`Identity`, `Float16`, `BFloat16`), else whole channels, as codecs that
        transform want them: `Waterfill` and `SLFAC` then take 0.91 to 0.92 of the bytes
        at p = 0.1.
    dropout_per : {"batch", "example"}, optional
        Whether the examples of a batch lose the same units. By default they do not
        under codecs that code each map for itself (`SLFAC`) or each value, and do
        under others.
    aggregate_every : int, optional
        I, in the unit of `period`. By default fronts are aggregated at the end of each
        round and at no other time.
    period : {"step", "round"} (default: "step")
        "step": within a round, too, fronts are averaged after every I-th step, over
        the devices that have further steps in it; see `flwr_slfac.split.periods`.
        Optimizers keep their moments, and the wrapped strategy aggregates at the end of
        each round as it does without. Not in the relay of ``sequential``, where one
        device trains at a time. "round": fronts are aggregated in every I-th round, and
        in the last. In between they stay on the devices and do not cross the network. A
        device that missed an aggregation begins with the aggregated front. Under scheme
        ``sequential`` with I > 1 the front is not handed on: each device trains its own
        until they are aggregated.
    control_variates : bool (default: False)
        Add to a device's gradients what its earlier steps of the round strayed from the
        means (SCAFFOLD; see `flwr_slfac.split.control_variates`), so that unlike data
        draw fronts apart less. With `period` of steps, `update_bits` 32 and devices
        that train their front with plain SGD; anything else is refused.

    Raises
    ------
    SettingError
        If a setting is out of range.

    Examples
    --------
    >>> Lightweight(prune=0.3, gradient_bits=8, activation_dropout=0.1).share(1, {})
    0.3
    >>> Lightweight(prune=lambda server_round, profile: 0.5).share(1, {})
    0.5
    >>> gradual = Lightweight(prune=0.5, prune_rounds=2)
    >>> [gradual.share(server_round, {}) for server_round in (1, 2, 3, 4)]
    [0.0, 0.4375, 0.5, 0.5]
    """

    prune: Prune = 0.0
    prune_rounds: int = 0
    structured: bool = True
    criterion: Criterion | Literal["increase"] = "weight"
    scope: Scope = "layer"
    at_cut: CutChoice = "prune"
    remask_every: int = 1
    renew_every: int | None = None
    gradient_decay: float = 0.9
    gradient_bits: int = FULL_BITS
    update_bits: int | None = None
    bucket: int = DEFAULT_BUCKET
    error_feedback: bool = False
    saved_bits: Literal[8, 32] = 32
    activation_dropout: float = 0.0
    dropout_unit: Unit | None = None
    dropout_per: Per | None = None
    aggregate_every: int | None = None
    period: Literal["step", "round"] = "step"
    control_variates: bool = False

    def __post_init__(self) -> None:
        if not callable(self.prune):
            schedule = self._schedule
            fits = isinstance(schedule, Sequence) and not isinstance(schedule, str)
            if not fits or not schedule:
                raise SettingError(
                    f"prune is {self.prune!r}; give a number, a sequence of numbers "
                    "or a function of round and profile"
                )
            for share in schedule:
                require_ratio(share)
        require_gradual(self)
        criteria = (*get_args(Criterion), "increase")
        require_choice("criterion", self.criterion, criteria)
        require_choice("scope", self.scope, get_args(Scope))
        require_choice("at_cut", self.at_cut, get_args(CutChoice))
        require_choice("period", self.period, ("step", "round"))
        require_count("remask_every", self.remask_every)
        if self.aggregate_every is not None:
            require_count("aggregate_every", self.aggregate_every)
        require_renewable(self)
        if not 0 <= self.gradient_decay < 1:
            raise SettingError(
                f"gradient_decay is {self.gradient_decay!r}; give a number in [0, 1)"
            )
        if self.criterion in ("scale", "increase") and not self.structured:
            raise SettingError(
                f"criterion {self.criterion!r} is of channels; set structured=True"
            )
        require_dropout(
            self.activation_dropout,
            self.dropout_unit or "channel",
            self.dropout_per or "batch",
        )
        self.device_config  # noqa: B018 - checks the rest
        require_exact_means(self)

    @property
    def device_config(self) -> DeviceConfig:
        """What devices are told."""
        bits = self.gradient_bits if self.update_bits is None else self.update_bits
        return DeviceConfig(
            structured=self.structured,
            gradient_bits=self.gradient_bits,
            update_bits=bits,
            bucket=self.bucket,
            error_feedback=self.error_feedback,
            saved_bits=self.saved_bits,
            reports_cost=True,
            period_steps=self.period_steps,
            control_variates=self.control_variates,
        )

    def fit(self, *codecs: Codec) -> "Lightweight":
        """Return the setting with what it leaves open chosen for these codecs.

        Parameters
        ----------
        *codecs : Codec
            Those of activations and gradients; what is dropped must suit each.

        Examples
        --------
        >>> from flwr_slfac.codec import Identity, Waterfill
        >>> Lightweight(activation_dropout=0.1).fit(Identity()).dropout_unit
        'element'
        >>> Lightweight(activation_dropout=0.1).fit(Waterfill(nrmse=0.1)).dropout_unit
        'channel'
        """
        contexts = {codec.context for codec in codecs}
        unit: Unit = "element" if contexts == {"value"} else "channel"
        per: Per = "batch" if "batch" in contexts else "example"
        return replace(
            self,
            dropout_unit=self.dropout_unit or unit,
            dropout_per=self.dropout_per or per,
        )

    @property
    def _schedule(self) -> Any:
        """Shares by round, the last one from then on; not of a function."""
        return [self.prune] if isinstance(self.prune, int | float) else self.prune

    @property
    def prunes(self) -> bool:
        """Whether any device may be pruned."""
        return callable(self.prune) or any(share > 0 for share in self._schedule)

    @property
    def period_steps(self) -> int:
        """Steps between two averages of fronts within a round; 0 for none there."""
        return (self.aggregate_every or 0) if self.period == "step" else 0

    @property
    def period_rounds(self) -> int:
        """Rounds between two aggregations by the strategy."""
        return (self.aggregate_every or 1) if self.period == "round" else 1

    @property
    def unlike_shares(self) -> bool:
        """Whether devices of one round may carry unlike shares."""
        return callable(self.prune)

    def share(self, server_round: int, profile: Profile) -> float:
        """Return rho of a device in a round.

        Parameters
        ----------
        server_round : int
            From 1.
        profile : mapping
            What the device says of itself, as `prune` may want it.

        Raises
        ------
        SettingError
            If a function of the user's returns something else than a share.
        """
        if callable(self.prune):
            share = self.prune(server_round, profile)
        else:
            share = self._schedule[min(server_round, len(self._schedule)) - 1]
        require_ratio(share)
        return gradual_share(share, server_round - 1, self.prune_rounds)

    def aggregates(self, server_round: int, last_round: int | None) -> bool:
        """Say whether fronts are aggregated at the end of a round, from 1."""
        return server_round % self.period_rounds == 0 or server_round == last_round
