"""What a slow device does less of, so that devices finish together.

A choice is a small pure function of what a device's options would take it. One of your
own, ``device_batches = "my_module:my_choice"``, takes the same arguments::

    def fastest(seconds, in_time_s):
        return len(seconds) - 1
"""

from collections.abc import Callable, Sequence

from flwr_slfac import SettingError
from simulation.functions import find_function, require_function

Choice = Callable[[Sequence[float], float], int]


def alike(seconds: Sequence[float], in_time_s: float) -> int:
    """Return the first option with which a device keeps up with the others.

    Parameters
    ----------
    seconds : sequence of float
        What each option takes the device: first that of all devices, then what asks
        less and less of it.
    in_time_s : float
        What the first option takes the slowest but a tenth of the devices.

    Returns
    -------
    int
        Its place; the last where none is fast enough.

    Examples
    --------
    >>> alike([9.0, 6.0, 4.0, 3.0], 5.0), alike([9.0, 6.0], 5.0), alike([2.0, 1.0], 5.0)
    (2, 1, 0)
    """
    fit = (place for place, own_s in enumerate(seconds) if own_s <= in_time_s)
    return next(fit, len(seconds) - 1)


CHOICES: dict[str, Choice] = {"alike": alike}


def require_choice(setting: str, name: str) -> None:
    """Raise SettingError unless a name is "none" or may be a choice's."""
    require_function(setting, name, ("none", *CHOICES))


def find_choice(setting: str, name: str) -> Choice:
    """Return a choice by name; what it returns is checked.

    Raises
    ------
    SettingError
        If it cannot be found.
    """
    own = find_function(setting, name, CHOICES)

    def checked(seconds: Sequence[float], in_time_s: float) -> int:
        place = own(seconds, in_time_s)
        if place not in range(len(seconds)):
            raise SettingError(
                f"{setting} {name!r} chooses {place!r}; there are options 0 to "
                f"{len(seconds) - 1}"
            )
        return place

    return checked
