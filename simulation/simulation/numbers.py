"""Numbers that settings must be."""

from flwr_slfac import SettingError


def require_at_least(name: str, value: float, least: float) -> None:
    """Raise SettingError unless a number is at least this much; NaN never is.

    Examples
    --------
    >>> require_at_least("latency_s", 0.02, 0)
    >>> require_at_least("latency_s", -1, 0)
    Traceback (most recent call last):
    flwr_slfac.errors.SettingError: latency_s is -1; give a number of at least 0
    """
    if not value >= least:
        raise SettingError(f"{name} is {value!r}; give a number of at least {least}")


def require_positive(name: str, value: float) -> None:
    """Raise SettingError unless a number is above 0; infinity is.

    Examples
    --------
    >>> require_positive("rate_bit_per_s", float("inf"))
    >>> require_positive("rate_bit_per_s", 0)
    Traceback (most recent call last):
    flwr_slfac.errors.SettingError: rate_bit_per_s is 0; give a number above 0
    """
    if not value > 0:
        raise SettingError(f"{name} is {value!r}; give a number above 0")


def require_between(name: str, value: float, least: float, most: float) -> None:
    """Raise SettingError unless a number is within two limits, both allowed.

    Examples
    --------
    >>> require_between("transmit_dbm", 23, -200, 200)
    >>> require_between("shadowing_db", float("inf"), 0, 200)
    Traceback (most recent call last):
    flwr_slfac.errors.SettingError: shadowing_db is inf; give a number from 0 to 200
    """
    if not least <= value <= most:
        raise SettingError(f"{name} is {value!r}; give a number from {least} to {most}")


# A factor of 150 to one standard deviation is more than any kind of device spreads.
MOST_SPREAD = 5
# Of powers and losses: beyond them 10^(dB / 10) leaves what float64 can multiply.
MOST_DB = 200


def require_share(name: str, value: float, *, below_one: bool = False) -> None:
    """Raise SettingError unless a number is in [0, 1], or in [0, 1).

    Examples
    --------
    >>> require_share("availability", 1.0)
    >>> require_share("packet_loss", 1.0, below_one=True)
    Traceback (most recent call last):
    flwr_slfac.errors.SettingError: packet_loss is 1.0; give a number in [0, 1)
    """
    if not 0 <= value <= 1 or (below_one and value == 1):
        end = ")" if below_one else "]"
        raise SettingError(f"{name} is {value!r}; give a number in [0, 1{end}")
