"""Codecs of devices' own: who codes how, in which round."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr_slfac.codec import Codec, Feedback, as_codec, format_codec
from flwr_slfac.errors import SettingError
from flwr_slfac.split.place import require_partition

OwnCodecs = tuple[Codec | str | None, Codec | str | None]
Choose = Callable[[int, int], OwnCodecs | None]


@dataclass(frozen=True)
class DeviceCodecs:
    """Codecs of devices' own, for links that are unlike.

    Parameters
    ----------
    of : mapping of int to (up, down), or callable
        By partition id, how that device's activations and cut-layer gradients are
        coded; None stands for the codec of all. Devices that are not named code as
        all do. A callable from (round, partition id) to such a pair or None may
        choose anew in each round, also by what was measured of links so far; it is
        called before each training and each evaluation of a device.

    Raises
    ------
    SettingError
        If a device is no partition id, or a codec is not known or remembers values
        from round to round.

    Examples
    --------
    >>> codecs = DeviceCodecs({3: ("waterfill(nrmse=0.3)", None)})
    >>> up, down = codecs.choose(1, 3)
    >>> up.nrmse, down, codecs.choose(1, 4)
    (0.3, None, (None, None))
    """

    of: Mapping[int, OwnCodecs] | Choose

    def __post_init__(self) -> None:
        if isinstance(self.of, Mapping):
            for device in self.of:
                require_partition("codecs", device)
                self.choose(1, device)

    def choose(
        self, server_round: int, device: int
    ) -> tuple[Codec | None, Codec | None]:
        """Return a device's codecs in a round; None for that of all.

        Raises
        ------
        SettingError
            If what is chosen is no pair of codecs, or one remembers values.
        """
        given = self.of
        pair = (
            given.get(device)
            if isinstance(given, Mapping)
            else given(server_round, device)
        )
        if pair is None:
            return None, None
        if isinstance(pair, str) or len(pair) != 2:
            raise SettingError(
                f"codecs of device {device} are {pair!r}; give a pair, of activations "
                "and of gradients, None for that of all"
            )
        up, down = (None if codec is None else as_codec(codec) for codec in pair)
        self.require_fit(up, down)
        return up, down

    @staticmethod
    def require_fit(*codecs: Codec | None) -> None:
        """Refuse codecs that count on a device's next round being coded as this one is.

        Raises
        ------
        SettingError
            If one has error feedback or remembers samples.
        """
        for codec in codecs:
            if isinstance(codec, Feedback) or (codec and codec.needs_samples):
                raise SettingError(
                    f"{format_codec(codec)} remembers values from round to round, and "
                    "with codecs of devices' own a device may code otherwise in the "
                    "next; give codecs without feedback(...) and temporal(...)"
                )
