"""Error feedback: nothing is lost over a stream, and the wire needs nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_slfac.codec import decode, encode, format_codec, parse_codec, powerquant
from flwr_slfac.codec.feedback import Feedback
from flwr_slfac.codec.plain import Identity, Integers
from flwr_slfac.codec.sparse import TopK
from flwr_slfac.codec.uniform import Uniform
from flwr_slfac.codec.wire import pack_frame, unpack_frame
from flwr_slfac.errors import DecodeError, EncodeError, SettingError

INNERS = ["topk", "uniform(bits=1)", "powerquant(bits=2)", "identity", "float16"]
_ = powerquant  # imported to be registered


def batches(*shape: int, num: int = 8) -> list[torch.Tensor]:
    """Return a stream of tensors."""
    generator = torch.Generator().manual_seed(6)
    return [torch.randn(shape, generator=generator) for _ in range(num)]


@pytest.mark.parametrize("inner", INNERS)
def test_a_stream_adds_up_save_the_last_residual(inner: str) -> None:
    """Sum of decoded + last residual = sum of encoded."""
    codec, memory = parse_codec(f"feedback(inner={inner})"), {}
    stream = batches(4, 3, 5, 5)
    decoded = [decode(encode(x, codec, memory=memory)) for x in stream]
    total = torch.stack(decoded).sum(0) + memory["feedback.residual"]
    torch.testing.assert_close(total, torch.stack(stream).sum(0), rtol=0, atol=1e-4)


def test_the_mean_of_a_repeated_tensor_converges() -> None:
    """Coding one tensor again and again, the mean of what is decoded becomes it."""
    (x,) = batches(2, 50, num=1)
    codec, memory = Feedback(TopK(0.2)), {}
    frames = [encode(x, codec, memory=memory) for _ in range(200)]
    mean = torch.stack([decode(f) for f in frames]).mean(0)
    assert (mean - x).norm() < 0.05 * x.norm()
    assert (decode(frames[0]) - x).norm() > 0.2 * x.norm()


def test_without_memory_it_is_the_inner_codec() -> None:
    """The first tensor of a stream has no residual: the inner sections, the same."""
    (x,) = batches(3, 7, num=1)
    outer = unpack_frame(encode(x, Feedback(Uniform(4))), max_elements=100)
    inner = unpack_frame(encode(x, Uniform(4)), max_elements=100)
    assert bytes(outer.sections[0]) == b"uniform"
    assert outer.sections[1:] == inner.sections


def test_the_decoder_needs_no_memory() -> None:
    """Frames of a stream decode alone and in any order."""
    codec, memory = Feedback(TopK(0.3)), {}
    frames = [encode(x, codec, memory=memory) for x in batches(2, 20)]
    there = [decode(f) for f in frames]
    back = [decode(f) for f in reversed(frames)]
    assert all(torch.equal(a, b) for a, b in zip(there, reversed(back), strict=True))


def test_the_residual_survives_being_stored() -> None:
    """A stream whose memory is saved and loaded between steps gives the same bytes."""
    codec = Feedback(Uniform(2))
    memory: dict[str, torch.Tensor] = {}
    straight = [encode(x, codec, memory=memory) for x in batches(3, 8)]
    stored: dict[str, torch.Tensor] = {}
    resumed = []
    for x in batches(3, 8):
        stored = {key: value.clone() for key, value in stored.items()}
        resumed.append(encode(x, codec, memory=stored))
    assert resumed == straight


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_a_smaller_batch_leaves_the_other_places_waiting(sizes: list[int]) -> None:
    """Place by place the stream adds up, whatever the sizes of its batches."""
    codec, memory = Feedback(TopK(0.3, "exact")), {}
    sent, wanted = torch.zeros(5, 6), torch.zeros(5, 6)
    full = batches(5, 6, num=len(sizes))
    for x, size in zip(full, sizes, strict=True):
        sent[:size] += decode(encode(x[:size], codec, memory=memory))
        wanted[:size] += x[:size]
    residual = memory["feedback.residual"]
    sent[: len(residual)] += residual
    torch.testing.assert_close(sent, wanted, rtol=0, atol=1e-4)


def test_another_kind_of_sample_starts_afresh() -> None:
    """A residual of another shape or precision is not added, nor an error."""
    codec, memory = Feedback(TopK(0.3)), {}
    encode(torch.ones(4, 6), codec, memory=memory)
    for x in (torch.ones(4, 7), torch.ones(7), torch.ones(()), torch.ones(4).double()):
        assert encode(x, codec, memory=memory) == encode(x, codec)
        assert memory["feedback.residual"].shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_residual_of_halves_is_kept_in_float32(dtype: torch.dtype) -> None:
    """What rounding to a half loses is not lost to the stream."""
    codec, memory = Feedback(Uniform(4)), {}
    stream = [x.to(dtype) for x in batches(4, 16)]
    total = sum(decode(encode(x, codec, memory=memory)).float() for x in stream)
    assert memory["feedback.residual"].dtype is torch.float32
    wanted = torch.stack([x.float() for x in stream]).sum(0)
    torch.testing.assert_close(
        total + memory["feedback.residual"], wanted, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_growing_residual_saturates(dtype: torch.dtype) -> None:
    """Huge tensors whose residuals would overflow stay finite."""
    x = torch.full((1, 4), torch.finfo(dtype).max, dtype=dtype)
    x[0, 1:] *= -0.9
    codec, memory = Feedback(TopK(0.25)), {}
    for _ in range(4):
        assert decode(encode(x, codec, memory=memory)).isfinite().all()
        assert memory["feedback.residual"].isfinite().all()


def test_a_refused_tensor_leaves_the_memory_as_it_was() -> None:
    """After an EncodeError the stream goes on as if nothing had happened."""
    codec, memory = parse_codec("feedback(inner=float16)"), {}
    encode(torch.tensor([1.0001]), codec, memory=memory)
    before = memory["feedback.residual"].clone()
    with pytest.raises(EncodeError, match="overflows"):
        encode(torch.tensor([1e9]), codec, memory=memory)
    with pytest.raises(EncodeError, match="NaN"):
        encode(torch.tensor([float("nan")]), codec, memory=memory)
    assert torch.equal(memory["feedback.residual"], before)


def test_what_cannot_be_wrapped_is_refused() -> None:
    """Feedback in feedback, what is no codec, and wrong dtypes are errors."""
    for wrong in (Feedback(Identity()), 3, None):
        with pytest.raises(SettingError, match="give a codec other than feedback"):
            Feedback(wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="no codec is named"):
        Feedback("nothing")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="feedback"):
        parse_codec("feedback")
    with pytest.raises(EncodeError, match=r"does not take torch\.float32"):
        encode(torch.ones(2), Feedback(Integers()))


def test_the_text_names_the_inner_codec() -> None:
    """Text and config carry the inner codec as its text."""
    codec = parse_codec("feedback(inner=topk(fraction=0.2))")
    assert codec == Feedback(TopK(0.2))
    assert format_codec(codec) == "feedback(inner=topk(fraction=0.2))"
    assert codec.config() == {"inner": "topk(fraction=0.2)"}


@pytest.mark.parametrize(
    "sections",
    [
        [],
        [b""],
        [b"nothing"],
        [b"\xff\xfe"],
        [b"feedback", b"identity", bytes(8)],
        [b"integers", b"\x00", bytes(2)],
        [b"identity"],
        [b"identity", bytes(7)],
    ],
)
def test_hostile_inner_frames_are_refused(sections: list[bytes]) -> None:
    """Unknown, nested and malformed inner codecs raise DecodeError."""
    with pytest.raises(DecodeError):
        decode(pack_frame("feedback", torch.float32, (2,), sections))
