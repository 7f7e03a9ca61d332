"""What strategies tell devices, and what devices add to metrics, as text and back."""

import json
from collections.abc import Mapping
from typing import Any, cast

from flwr.app import ConfigRecord, MetricRecord

from flwr_slfac.errors import DecodeError, TrainingError


def told_to_text(told: Mapping[str, Any]) -> str:
    """Return what a ConfigRecord holds as JSON, its bytes in hexadecimal digits."""
    return json.dumps({key: _to_json(value) for key, value in told.items()})


def told_of_text(text: str) -> dict[str, Any]:
    """Undo `told_to_text`.

    Raises
    ------
    DecodeError
        If the text does not describe what a ConfigRecord can hold.
    """
    try:
        told = {key: _of_json(v) for key, v in dict(json.loads(text)).items()}
        return dict(ConfigRecord(told))
    except (KeyError, TypeError, ValueError) as error:
        raise DecodeError(
            f"what the strategy tells the device cannot be read: {error}"
        ) from error


def metrics_to_text(metrics: Mapping[str, Any]) -> str:
    """Return what a MetricRecord holds as JSON."""
    return json.dumps(dict(metrics))


def metrics_of_text(text: str) -> dict[str, float | list[float]]:
    """Undo `metrics_to_text`.

    Raises
    ------
    TrainingError
        If the text does not describe what a MetricRecord can hold.
    """
    try:
        metrics = dict(MetricRecord(dict(json.loads(text))))
    except (TypeError, ValueError, RecursionError) as error:
        raise TrainingError(f"a device's metrics cannot be read: {error}") from error
    return cast(dict[str, float | list[float]], metrics)


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    return [_to_json(part) for part in value] if isinstance(value, list) else value


def _of_json(value: Any) -> Any:
    if isinstance(value, dict):
        return bytes.fromhex(value["bytes"])
    return [_of_json(part) for part in value] if isinstance(value, list) else value
