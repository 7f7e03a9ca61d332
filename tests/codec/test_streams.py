"""The entropy stage: every stream comes back, crafted bytes are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flwr_slfac.codec.waterfill.digits import LARGE, QUINARY, SMALL, TERNARY, Digits
from flwr_slfac.codec.waterfill.model import ideal_bits
from flwr_slfac.codec.waterfill.stream_reader import StreamReader
from flwr_slfac.codec.waterfill.stream_writer import StreamWriter
from flwr_slfac.errors import DecodeError

KINDS = (TERNARY, QUINARY, SMALL, LARGE)
kinds = pytest.mark.parametrize("digits", KINDS, ids=str)


def reader_of(parts: tuple[bytes, bytes]) -> StreamReader:
    """Return a reader over what a writer made."""
    return StreamReader(*(memoryview(part) for part in parts))


@kinds
@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(
        arrays(np.int64, st.integers(0, 40), elements=st.integers(-(2**38), 2**38))
        | arrays(np.int64, st.integers(0, 900), elements=st.integers(-3, 3)),
        max_size=4,
    )
)
def test_streams_come_back(digits: Digits, values: list[np.ndarray]) -> None:
    """Streams of any integers of 38 bits are read back in the order of writing."""
    writer = StreamWriter()
    bulk = [stream for stream in values if stream.size]
    writer.bulk([(stream, digits) for stream in bulk])
    for stream in values:
        writer.stream(stream, digits)
    reader = reader_of(writer.finish())
    for stream, read in zip(
        bulk, reader.bulk([(s.size, digits) for s in bulk]), strict=True
    ):
        np.testing.assert_array_equal(read, stream)
    for stream in values:
        np.testing.assert_array_equal(reader.stream(stream.size, digits), stream)
    reader.finish()


def test_raw_bits_come_back_between_streams() -> None:
    """Equally likely integers share the words with modelled ones."""
    random = np.random.default_rng(0)
    raw, modelled = random.integers(0, 2**18, 500), random.integers(-2, 3, 2000)
    writer = StreamWriter()
    writer.raw(raw, 18)
    writer.bulk([(modelled, QUINARY)])
    reader = reader_of(writer.finish())
    np.testing.assert_array_equal(reader.raw(500, 18), raw)
    np.testing.assert_array_equal(reader.bulk([(2000, QUINARY)])[0], modelled)
    reader.finish()


@pytest.mark.parametrize("scale", [0.2, 0.5, 1.0, 4.0, 20.0])
def test_range_coder_is_near_the_entropy(scale: float) -> None:
    """Bytes exceed the empirical entropy of a Laplacian stream by 3 percent at most."""
    values = np.rint(np.random.default_rng(1).laplace(0, scale, 50_000)).astype(int)
    digits = TERNARY if scale < 1 else LARGE
    writer = StreamWriter()
    writer.stream(values, digits)
    num_bits = 8 * sum(map(len, writer.finish()))
    counts = np.unique(values, return_counts=True)[1].astype(float)
    assert ideal_bits(counts) <= num_bits < 1.03 * ideal_bits(counts) + 300


@pytest.mark.parametrize("num_parts", [1, 10])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changed_bytes_give_values_or_decode_error(
    num_parts: int, data: st.DataObject
) -> None:
    """A changed parameter or word gives as many values as asked, or an error."""
    writer = StreamWriter()
    values = np.random.default_rng(2).integers(-4, 5, 2000)
    writer.bulk([(values, SMALL)] * num_parts)
    writer.stream(values[:50], LARGE)
    parts = [bytearray(part) for part in writer.finish()]
    part = data.draw(st.sampled_from([p for p in parts if p]))
    place = data.draw(st.integers(0, len(part) - 1))
    part[place] = data.draw(st.integers(0, 255))
    try:
        reader = reader_of((bytes(parts[0]), bytes(parts[1])))
        for part in reader.bulk([(2000, SMALL)] * num_parts):
            assert part.size == 2000
        assert reader.stream(50, LARGE).size == 50
        reader.finish()
    except DecodeError:
        pass
