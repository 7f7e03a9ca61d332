"""Numbers in a record, of the kind that they must be."""

from flwr.app import ConfigRecord

from flwr_slfac.errors import TrainingError


def int_in(config: ConfigRecord, key: str) -> int:
    """Return a whole number, or raise TrainingError."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TrainingError(f"a message's {key!r} is {value!r}, not an integer")
    return value


def sizes_in(config: ConfigRecord, key: str) -> tuple[int, ...]:
    """Return sizes, none where there are none, or raise TrainingError."""
    value = config.get(key, [])
    if not isinstance(value, list) or any(type(n) is not int or n < 0 for n in value):
        raise TrainingError(f"a message's {key!r} is {value!r}, not a list of sizes")
    return tuple(int(n) for n in value)


def float_in(config: ConfigRecord, key: str) -> float:
    """Return a number, or raise TrainingError."""
    value = config.get(key)
    if not isinstance(value, (int, float)):
        raise TrainingError(f"a message's {key!r} is {value!r}, not a number")
    return float(value)
