"""What strategies tell devices and what devices add to metrics survive their text."""

from typing import Any

import pytest
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st

from flwr_slfac import DecodeError
from flwr_slfac.errors import TrainingError
from flwr_slfac.transport.told import (
    metrics_of_text,
    metrics_to_text,
    told_of_text,
    told_to_text,
)

WHOLE = st.integers(-(2**63), 2**63 - 1)
REAL = st.floats(allow_nan=False)
KINDS = (WHOLE, REAL, st.booleans(), st.text(), st.binary())
VALUES = st.one_of(*KINDS, *(st.lists(kind) for kind in KINDS))


@given(st.dictionaries(st.text(), VALUES))
def test_a_configuration_comes_back(told: dict[str, Any]) -> None:
    """Every value of a ConfigRecord comes back with its type, bytes included."""
    back = told_of_text(told_to_text(told))
    assert back == told == dict(ConfigRecord(told))
    assert {k: type(v) for k, v in back.items()} == {
        k: type(v) for k, v in told.items()
    }


@given(st.dictionaries(st.text(), st.one_of(WHOLE, REAL, st.lists(REAL))))
def test_metrics_come_back(metrics: dict[str, Any]) -> None:
    """Every value of a MetricRecord comes back."""
    assert metrics_of_text(metrics_to_text(metrics)) == metrics


@given(st.text())
def test_any_other_text_is_an_error_of_ours(text: str) -> None:
    """A device or server that sends something else is told so, and nothing more."""
    for read, error in (
        (told_of_text, DecodeError),
        (metrics_of_text, TrainingError),
    ):
        try:
            assert isinstance(read(text), dict)
        except error:
            continue


@pytest.mark.parametrize(
    "text", ['{"a": {"bytes": "xy"}}', '{"a": {}}', '{"a": null}', "[1]", "{", "3"]
)
def test_what_no_record_holds_is_refused(text: str) -> None:
    """Neither half a byte, nor null, nor another shape of JSON is a configuration."""
    with pytest.raises(DecodeError):
        told_of_text(text)
