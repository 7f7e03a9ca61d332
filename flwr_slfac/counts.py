"""Settings that count something."""

from flwr_slfac.errors import SettingError


def require_count(name: str, value: object) -> None:
    """Raise SettingError unless a setting is a whole number above 0.

    Examples
    --------
    >>> require_count("keep", 3)
    >>> require_count("keep", True)
    Traceback (most recent call last):
    flwr_slfac.errors.SettingError: keep is True; give a whole number above 0
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingError(f"{name} is {value!r}; give a whole number above 0")
