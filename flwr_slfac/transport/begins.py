"""What a device is told at the start of a round, as text and bytes, and back."""

import json
from dataclasses import asdict
from typing import Any

from flwr_slfac.codec import format_codec, parse_codec
from flwr_slfac.errors import DecodeError
from flwr_slfac.lightweight import DeviceConfig
from flwr_slfac.split import Begin, CutFeature, feature_fields, feature_of
from flwr_slfac.transport.told import told_of_text, told_to_text

_PLAIN = ("seed", "release", "version", "aggregate")
_RENAMED = {
    "server_round": "round",
    "min_batch": "min-batch",
    "proximal_mu": "proximal-mu",
}
_KEYS = {**{name: name for name in _PLAIN}, **_RENAMED}
_DEPTH = "pipeline-depth"


def begin_to_fields(begin: Begin) -> dict[str, Any]:
    """Return what a Begin says but its front and mask: numbers, bools and texts."""
    fields = {key: getattr(begin, name) for name, key in _KEYS.items()}
    features = [feature_fields(feature) for feature in begin.cut_features]
    texts = {
        "config": _config_to_text(begin.config),
        "features": json.dumps(features) if features else "",
        "told": told_to_text(begin.told) if begin.told else "",
    }
    # Flower's message_size_mod refuses to measure empty texts.
    present: dict[str, Any] = {key: text for key, text in texts.items() if text}
    if begin.pipeline_depth:
        present[_DEPTH] = begin.pipeline_depth
    return {**fields, "up": format_codec(begin.up), **present}


def begin_of_fields(fields: dict[str, Any]) -> Begin:
    """Return a Begin without front and mask.

    Parameters
    ----------
    fields : dict
        With the keys of `begin_to_fields`.

    Raises
    ------
    DecodeError
        If a key is missing or a text cannot be read.
    SettingError
        If the codec, the configuration or a feature is not known here.
    """
    expected = [*_KEYS.values(), "up"]
    if missing := [key for key in expected if key not in fields]:
        raise DecodeError(f"the start of a round lacks {', '.join(missing)}")
    return Begin(
        **{name: fields[key] for name, key in _KEYS.items()},
        front=None,
        up=parse_codec(str(fields["up"])),
        config=_config_of_text(str(fields.get("config", ""))),
        cut_features=_features_of_text(str(fields.get("features", ""))),
        told=told_of_text(str(fields.get("told", "{}"))),
        pipeline_depth=fields.get(_DEPTH, 0),
    )


def _config_to_text(config: DeviceConfig) -> str:
    """Return a configuration as JSON; nothing for the default."""
    return "" if config == DeviceConfig() else json.dumps(asdict(config))


def _config_of_text(text: str) -> DeviceConfig:
    try:
        return DeviceConfig(**json.loads(text)) if text else DeviceConfig()
    except (TypeError, ValueError) as error:
        raise DecodeError(
            f"the server's configuration cannot be read: {error}"
        ) from error


def _features_of_text(text: str) -> tuple[CutFeature, ...]:
    try:
        pairs = [(str(name), dict(own)) for name, own in json.loads(text or "[]")]
    except (TypeError, ValueError) as error:
        raise DecodeError(f"the server's features cannot be read: {error}") from error
    return tuple(feature_of(name, own) for name, own in pairs)
