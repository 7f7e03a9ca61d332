"""The frame: what is packed comes back, and nothing else is believed."""

import math
import struct
import zlib
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_slfac.codec.wire import (
    DTYPES,
    MAX_DIMS,
    VERSION,
    Frame,
    pack_frame,
    unpack_frame,
)
from flwr_slfac.errors import DecodeError, EncodeError

LIMIT = 10_000
IDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=32)
SHAPES = st.lists(st.integers(0, 5), max_size=5).map(tuple)
SECTIONS = st.lists(st.binary(max_size=20), max_size=4)


def seal(body: bytes) -> bytes:
    """Return the bytes with the checksum that belongs to them."""
    return body + struct.pack("<I", zlib.crc32(body))


def crafted(
    *,
    magic: bytes = b"SLFC",
    version: int = VERSION,
    dtype_code: int = 0,
    shape: tuple[int, ...] = (2,),
    num_dims: int | None = None,
    codec_id: bytes = b"identity",
    id_length: int | None = None,
    num_sections: int | None = None,
    lengths: tuple[int, ...] = (8,),
    body: bytes = bytes(8),
) -> bytes:
    """Return a frame, valid unless told otherwise, with the right checksum."""
    head = struct.pack(
        "<4s5B",
        magic,
        version,
        dtype_code,
        len(shape) if num_dims is None else num_dims,
        len(codec_id) if id_length is None else id_length,
        len(lengths) if num_sections is None else num_sections,
    )
    table = struct.pack(f"<{len(shape) + len(lengths)}I", *shape, *lengths)
    return seal(head + codec_id + table + body)


def test_layout_is_the_documented_one() -> None:
    """A frame of version 1 is these bytes, on every machine."""
    frame = pack_frame("identity", torch.float32, (2, 1), [b"\x01\x02", b"\x03"])
    assert frame == seal(
        b"SLFC\x01\x00\x02\x08\x02identity"
        b"\x02\x00\x00\x00\x01\x00\x00\x00"
        b"\x02\x00\x00\x00\x01\x00\x00\x00"
        b"\x01\x02\x03"
    )


def test_dtype_codes_never_change() -> None:
    """A dtype's place in the table is its code on the wire, so it is fixed."""
    assert DTYPES[:10] == (
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.bool,
    )


@given(IDS, st.sampled_from(DTYPES), SHAPES, SECTIONS)
def test_what_is_packed_comes_back(
    codec_id: str, dtype: torch.dtype, shape: tuple[int, ...], sections: list[bytes]
) -> None:
    """Unpacking inverts packing for every id, dtype, shape and sections."""
    data = pack_frame(codec_id, dtype, shape, sections)
    frame = unpack_frame(data, max_elements=LIMIT)
    assert frame == Frame(codec_id, dtype, shape, tuple(map(memoryview, sections)))
    assert frame.num_elements == math.prod(shape)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_like_is_read_without_copying(kind: type) -> None:
    """Sections are views into the frame, whatever buffer holds it."""
    data = kind(pack_frame("identity", torch.uint8, (3,), [b"abc"]))
    (section,) = unpack_frame(data, max_elements=3).sections
    assert bytes(section) == b"abc"
    assert section.obj is memoryview(data).obj


def test_every_truncation_is_refused() -> None:
    """No proper prefix of a frame is a frame."""
    data = pack_frame("identity", torch.float32, (2,), [bytes(8), b"x"])
    for end in range(len(data)):
        with pytest.raises(DecodeError):
            unpack_frame(data[:end], max_elements=LIMIT)
    for end in range(len(data) - 4):
        with pytest.raises(DecodeError):
            unpack_frame(seal(data[:end]), max_elements=LIMIT)


def test_every_flipped_bit_is_refused() -> None:
    """The checksum finds each change of one bit."""
    data = pack_frame("identity", torch.float32, (2,), [bytes(8)])
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DecodeError):
            unpack_frame(bytes(changed), max_elements=LIMIT)


def test_bytes_after_the_frame_are_refused() -> None:
    """A frame ends where it says, so two of them are not one."""
    data = pack_frame("identity", torch.float32, (2,), [bytes(8)])
    for more in (b"\x00", data):
        with pytest.raises(DecodeError):
            unpack_frame(data + more, max_elements=LIMIT)
        with pytest.raises(DecodeError, match="sections claim"):
            unpack_frame(seal(data + more), max_elements=LIMIT)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"magic": b"SLFD"}, "not a frame"),
        ({"version": 0}, "version 0"),
        ({"version": VERSION + 1}, "same release"),
        ({"dtype_code": len(DTYPES)}, "dtype code"),
        ({"shape": (1,) * 9}, "9 dimensions"),
        ({"num_dims": 255}, "255 dimensions"),
        ({"id_length": 255}, "inside its header"),
        ({"num_sections": 255}, "inside its header"),
        ({"codec_id": b"identit\xe9"}, "ASCII"),
        ({"lengths": (2**32 - 1,)}, "sections claim 4294967295 bytes"),
        ({"lengths": (7,)}, "sections claim 7 bytes, 8 are here"),
        ({"lengths": ()}, "sections claim 0 bytes"),
        ({"lengths": (2**32 - 1,) * 255}, "sections claim"),
    ],
)
def test_a_wrong_field_is_refused_by_name(
    field: dict[str, object], message: str
) -> None:
    """Each field is checked even if the checksum agrees, and the error names it."""
    unpack_frame(crafted(), max_elements=LIMIT)
    with pytest.raises(DecodeError, match=message):
        unpack_frame(crafted(**field), max_elements=LIMIT)  # type: ignore[arg-type]


def test_the_limit_is_the_last_allowed_number() -> None:
    """A frame of exactly `max_elements` passes; one element more does not."""
    data = pack_frame("identity", torch.uint8, (3, 4), [bytes(12)])
    assert unpack_frame(data, max_elements=12).shape == (3, 4)
    with pytest.raises(DecodeError, match="12 elements; the limit is 11"):
        unpack_frame(data, max_elements=11)


@pytest.mark.parametrize(
    "shape",
    [
        (2**32 - 1,),
        (2**32 - 1,) * 8,
        (2**20, 2**20),
        (0, 2**32 - 1, 2**32 - 1),
        (2**32 - 1,) * 7 + (0,),
    ],
)
def test_claims_of_terabytes_are_refused(shape: tuple[int, ...]) -> None:
    """A shape is refused when it, or its part without zeros, exceeds the limit.

    torch computes strides for an empty tensor too, and overflows over them.
    """
    with pytest.raises(DecodeError, match="limit"):
        unpack_frame(crafted(shape=shape), max_elements=2**28)


def test_what_fits_no_frame_is_refused_at_once() -> None:
    """Dtypes, dimensions and counts that have no place on the wire say so."""
    with pytest.raises(EncodeError, match=r"complex64.*convert"):
        pack_frame("identity", torch.complex64, (1,), [])
    with pytest.raises(EncodeError, match=f"at most {MAX_DIMS}"):
        pack_frame("identity", torch.uint8, (1,) * 9, [])
    with pytest.raises(EncodeError, match="4 GiB"):
        pack_frame("identity", torch.uint8, (2**32,), [])
    pack_frame("identity", torch.uint8, (), [b""] * 255)
    with pytest.raises(EncodeError, match="section"):
        pack_frame("identity", torch.uint8, (), [b""] * 256)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_decode_error(data: bytes) -> None:
    """Bytes from anywhere raise DecodeError, with or without a good start."""
    for hostile in (data, b"SLFC" + data, seal(b"SLFC\x01" + data)):
        with pytest.raises(DecodeError):
            unpack_frame(hostile, max_elements=LIMIT)


@given(SHAPES, SECTIONS, st.data())
def test_a_changed_header_never_reads_past_the_end(
    shape: tuple[int, ...], sections: list[bytes], data: st.DataObject
) -> None:
    """With the checksum repaired, a changed byte gives an error or whole sections."""
    body = bytearray(pack_frame("identity", torch.uint8, shape, sections)[:-4])
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] = data.draw(st.integers(0, 255))
    sealed = seal(bytes(body))
    try:
        frame = unpack_frame(sealed, max_elements=LIMIT)
    except DecodeError:
        return
    assert frame.num_elements <= LIMIT
    ends = list(accumulate((s.nbytes for s in frame.sections), initial=0))
    tail = sealed[len(sealed) - 4 - ends[-1] : -4]
    assert b"".join(frame.sections) == tail
