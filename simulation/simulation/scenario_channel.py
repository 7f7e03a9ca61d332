"""The ``[channel]`` of a scenario: which kind, and that kind's own keys."""

from dataclasses import dataclass, field
from typing import Any

from flwr_slfac import SettingError
from simulation.channel import CellSettings, Packets, read_presets
from simulation.numbers import MOST_SPREAD, require_between, require_positive
from simulation.typed_tables import Source, read_dataclass


@dataclass(frozen=True)
class Delivery:
    """Keys of every kind: what happens to packets; see `channel.Packets`.

    Parameters
    ----------
    latency_s, jitter_s, packet_loss, packet_bytes
        As there.
    packet_loss_drawn : bool
        Whether losses are drawn, or their mean is taken.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    packet_loss: float = 0.0
    packet_loss_drawn: bool = False
    packet_bytes: int = 1500

    def __post_init__(self) -> None:
        self.packets()

    def packets(self) -> Packets:
        """Return the same as the channel wants it."""
        return Packets(
            self.latency_s,
            self.jitter_s,
            self.packet_loss,
            self.packet_loss_drawn,
            self.packet_bytes,
        )


@dataclass(frozen=True)
class PlainSettings:
    """``kind = "plain"``: a rate for every device, spread about a median.

    Parameters
    ----------
    up_bit_per_s, down_bit_per_s : float
        Medians.
    spread : float
        Standard deviation of the natural logarithm.
    """

    up_bit_per_s: float
    down_bit_per_s: float
    spread: float = 0.0

    def __post_init__(self) -> None:
        require_positive("up_bit_per_s", self.up_bit_per_s)
        require_positive("down_bit_per_s", self.down_bit_per_s)
        require_between("spread", self.spread, 0, MOST_SPREAD)


@dataclass(frozen=True)
class PresetSettings:
    """``kind = "preset"``: an access network of ``links/presets.toml``.

    Parameters
    ----------
    preset : str
        Its name.
    spread : float
        Of rates about its medians.
    """

    preset: str
    spread: float = 0.0

    def __post_init__(self) -> None:
        require_between("spread", self.spread, 0, MOST_SPREAD)
        names = read_presets()
        if self.preset not in names:
            raise SettingError(
                f"preset {self.preset!r} is not known; use one of {', '.join(names)}"
            )


@dataclass(frozen=True)
class PipeSettings:
    """``kind = "pipe"``: one rate that all who send share.

    Parameters
    ----------
    up_bit_per_s, down_bit_per_s : float
        Of all together.
    """

    up_bit_per_s: float
    down_bit_per_s: float

    def __post_init__(self) -> None:
        require_positive("up_bit_per_s", self.up_bit_per_s)
        require_positive("down_bit_per_s", self.down_bit_per_s)


@dataclass(frozen=True)
class TraceSettings:
    """``kind = "trace"``: recorded rates.

    Parameters
    ----------
    up_files, down_files : tuple of str
        Traces; device i has the i-th, and anew when they end.
    in_step : bool
        Whether all begin at the start of their trace, or at drawn places.
    """

    up_files: tuple[str, ...]
    down_files: tuple[str, ...]
    in_step: bool = False

    def __post_init__(self) -> None:
        for name in ("up_files", "down_files"):
            if not getattr(self, name):
                raise SettingError(f"{name} is empty; give one trace or more")


@dataclass(frozen=True)
class ProfileLinks:
    """``kind = "profiles"``: the links that devices were measured with."""


Kind = (
    CellSettings
    | PlainSettings
    | PresetSettings
    | PipeSettings
    | TraceSettings
    | ProfileLinks
)
KINDS: dict[str, type[Kind]] = {
    "cell": CellSettings,
    "plain": PlainSettings,
    "preset": PresetSettings,
    "pipe": PipeSettings,
    "trace": TraceSettings,
    "profiles": ProfileLinks,
}
_DELIVERY = tuple(Delivery.__dataclass_fields__)


@dataclass(frozen=True)
class ChannelSettings:
    """The channel of a scenario.

    Parameters
    ----------
    kind : dataclass
        One of `KINDS`.
    delivery : Delivery
        What happens to packets; of a preset, its own.
    """

    kind: Kind
    delivery: Delivery = field(default_factory=Delivery)


def read_channel(table: Any, source: Source) -> ChannelSettings:
    """Read ``[channel]``: keys of its kind, and those of every kind.

    Raises
    ------
    ScenarioError
        If the kind is not known or a key is not one of its own.
    """
    if not isinstance(table, dict):
        raise source.error("channel", f"is {table!r}; make it a table, [channel]")
    rest = dict(table)
    kind = rest.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        reason = f"is {kind!r}; use one of {', '.join(KINDS)}"
        raise source.error("channel.kind", reason)
    crossing = {key: rest.pop(key) for key in list(rest) if key in _DELIVERY}
    if kind == "preset" and crossing:
        reason = "is part of the preset; use kind 'plain' to set it"
        raise source.error(f"channel.{next(iter(crossing))}", reason)
    own = read_dataclass(KINDS[kind], rest, "channel", source, _DELIVERY)
    delivery = read_dataclass(Delivery, crossing, "channel", source)
    return ChannelSettings(own, delivery)
