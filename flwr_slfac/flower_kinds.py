"""Flower's records in checkpoints, byte for byte."""

from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from flwr_slfac.checkpoint import register_kind


def _plain_array(array: Array) -> tuple[Any, ...]:
    return array.dtype, tuple(array.shape), array.stype, array.data


def _array_of(plain: tuple[Any, ...]) -> Array:
    dtype, shape, stype, data = plain
    return Array(dtype, shape, stype, data)


def _record_of(plain: dict[str, Array]) -> ArrayRecord:
    return ArrayRecord(plain)


register_kind("Array", Array, _plain_array, _array_of)
register_kind("ArrayRecord", ArrayRecord, dict, _record_of)
register_kind("MetricRecord", MetricRecord, dict, MetricRecord)
register_kind("ConfigRecord", ConfigRecord, dict, ConfigRecord)
