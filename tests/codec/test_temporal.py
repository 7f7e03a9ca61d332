"""Samples are predicted from what both sides remember of them, and never from else."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_slfac.codec import (
    Float16,
    Identity,
    Memory,
    SampleMemory,
    Temporal,
    Uniform,
    Waterfill,
    decode,
    encode,
    parse_codec,
)
from flwr_slfac.codec.temporal import memory as temporal_memory
from flwr_slfac.codec.temporal.header import PLAIN, SAME, Header
from flwr_slfac.codec.wire import Frame, pack_frame, unpack_frame
from flwr_slfac.errors import DecodeError, EncodeError, SettingError

INNERS = ("waterfill(nrmse=0.1)", "uniform(bits=4)", "float16", "topk(fraction=0.3)")
SHAPES = (
    ((8, 3, 4, 4), 16),
    ((8, 3, 4, 4), 8),
    ((8, 5), 8),
    ((8, 4, 6), 16),
    ((8,), 16),
    ((8, 2, 3, 2, 2), 8),
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return a tensor of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def header_of(frame: bytes) -> Header:
    """Return the header of a frame of maps."""
    outer = unpack_frame(frame, max_elements=10**8)
    channels = {1: 1, 3: 2}.get(len(outer.shape), 1)
    num_channels = outer.shape[channels] if len(outer.shape) > 1 else 1
    return Header.of_bytes(outer.sections[0], outer.shape[0], num_channels)


class Dictionary:
    """The decoder by its definition: one row a sample, one number at a time."""

    def __init__(self, bits: int, max_bytes: int) -> None:
        self.rows: dict[int, np.ndarray] = {}
        self.frames: list[list[int]] = []
        self.sizes: list[int] = []
        self.inner: Memory = {}
        self.bits, self.max_bytes = bits, max_bytes
        self.most_frames = 2**14

    def decode(self, data: bytes, known: list[int]) -> torch.Tensor:
        """Decode a frame and remember its samples, known if it names none."""
        frame = unpack_frame(data, max_elements=10**8)
        header = header_of(data)
        said = header.samples
        assert said is not None
        samples = known if said.ids is None else said.ids.tolist()
        modes = [PLAIN] * len(samples) if said.modes is None else said.modes.tolist()
        num_sent = sum(mode != SAME for mode in modes)
        shape = (num_sent, *frame.shape[1:])
        rest = [bytes(s) for s in frame.sections[1:]]
        sent = []
        if num_sent:
            lone = pack_frame(header.inner, frame.dtype, shape, rest)
            sent = list(decode(lone, memory=self.inner))
        out = []
        for sample, mode in zip(samples, modes, strict=True):
            row = torch.zeros(frame.shape[1:])
            if mode != PLAIN:
                row = self.gained(torch.as_tensor(self.rows[sample]), said.gains)
            if mode != SAME:
                row = row + sent.pop(0)
            out.append(row.clamp(min=0) if said.clamps else row)
        self.remember(samples, out)
        return torch.stack(out)

    @staticmethod
    def gained(row: torch.Tensor, gains: np.ndarray | None) -> torch.Tensor:
        """Return a row, each channel times its gain."""
        if gains is None:
            return row
        row = row.clone()
        dim = {0: None, 2: 1}.get(row.ndim, 0)
        for channel, gain in enumerate(gains.tolist()):
            part = row if dim is None else row.select(dim, channel)
            part *= float(gain) / 255
        return row

    def remember(self, samples: Sequence[int], rows: list[torch.Tensor]) -> None:
        """Keep rows; of all frames, drop those that are used up, then the oldest."""
        for sample, row in zip(samples, rows, strict=True):
            self.rows[sample] = self.rounded(row)
        for frame in self.frames:
            frame[:] = [s for s in frame if s not in samples]
        self.frames.append(list(dict.fromkeys(samples)))
        each = rows[0].numel() * self.bits // 8 + (8 if self.bits == 8 else 0)
        self.sizes.append(each * len(rows))
        self.drop(lambda: [] in self.frames, lambda: self.frames.index([]))
        self.drop(lambda: self.num_bytes() > self.max_bytes, lambda: 0)
        self.drop(lambda: len(self.frames) > self.most_frames, lambda: 0)

    def drop(self, is_to: Callable[[], bool], which: Callable[[], int]) -> None:
        """Drop frames while there is reason to."""
        while self.frames and is_to():
            at = which()
            del self.sizes[at]
            for sample in self.frames.pop(at):
                del self.rows[sample]

    def num_bytes(self) -> int:
        """Bytes of rows, of an index of three numbers a sample, and 32 more."""
        return sum(self.sizes) + 24 * len(self.rows) + 32

    def rounded(self, row: torch.Tensor) -> np.ndarray:
        """Return a row as it is remembered."""
        if self.bits == 16:
            half = row.numpy().clip(-65504, 65504).astype("f2")
            return np.asarray(half, np.float32)
        low, high = np.float32(row.min()), np.float32(row.max())
        step = np.float32((high - low) / np.float32(255))
        codes = np.rint((row.numpy() - low) / (step if step > 0 else np.float32(1)))
        return np.asarray(codes.clip(0, 255) * step + low, np.float32)


@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize(("shape", "bits"), SHAPES)
def test_a_stream_is_that_of_a_dictionary(
    inner: str,
    shape: tuple[int, ...],
    bits: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit for bit, under limits that drop samples, in any order, named or known."""
    limit = 6 * (8 * 48 * bits // 8)
    codec = Temporal(parse_codec(inner), max_bytes=limit, bits=bits)
    slow = Dictionary(bits, limit)
    slow.most_frames = 9
    monkeypatch.setattr(temporal_memory, "_MOST_FRAMES", slow.most_frames)
    here, there = Memory(), Memory()
    values = normal(60, *shape[1:])
    draw = random.Random(5)
    for step in range(30):
        samples = [draw.randrange(60) for _ in range(shape[0])]
        values = values + 0.1 * draw.random() * normal(*values.shape, seed=step)
        x = values[samples]
        x = x.relu() if step % 3 else x
        known = bool(step % 2)
        frame = encode(x, codec, memory=here, samples=samples, samples_known=known)
        found = decode(frame, memory=there, samples=samples if known else None)
        assert torch.equal(found, slow.decode(frame, samples))
        assert SampleMemory(here).version == SampleMemory(there).version
        for memory in (here, there):
            assert SampleMemory(memory).num_bytes == slow.num_bytes() <= limit
            rows, known = SampleMemory(memory).find(np.arange(60), shape[1:])
            assert set(np.flatnonzero(known).tolist()) == set(slow.rows)
            for sample, row in slow.rows.items():
                assert np.array_equal(rows[sample].numpy(), row)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("threshold", [0.5, 0.98, 1.0])
def test_samples_above_a_threshold_of_similarity_are_not_sent(
    threshold: float, bits: int
) -> None:
    """They stay what is remembered; the others are what the inner codec sends."""
    codec = Temporal(Float16(), bits=bits, threshold=threshold)
    slow, here, there = Dictionary(bits, 2**26), Memory(), Memory()
    values, draw = normal(40, 3, 4, 4), random.Random(3)
    values[7], values[8] = 0, 1e-30
    modes: list[int] = []
    for step in range(40):
        samples = [draw.randrange(40) for _ in range(8)]
        change = draw.choice([0.0, 0.02, 0.3, 1.0])
        values = values + change * normal(*values.shape, seed=step)
        values[7] = step // 20
        x = values[samples] * draw.choice([1.0, 2.0])
        held = [slow.rows.get(sample) for sample in samples]
        frame = encode(x, codec, memory=here, samples=samples)
        said = header_of(frame).samples
        assert said is not None
        found = decode(frame, memory=there)
        assert torch.equal(found, slow.decode(frame, samples))
        own = [PLAIN] * 8 if said.modes is None else said.modes.tolist()
        for row, mode, before, now in zip(x, own, held, found, strict=True):
            likeness = similarity(row, before)
            if abs(likeness - threshold) > 1e-6:
                assert mode == (SAME if likeness > threshold else PLAIN)
            whole = row.half().float()
            assert torch.equal(now, whole if mode == PLAIN else torch.tensor(before))
        modes += own
    assert 20 < modes.count(SAME) < 300 or threshold == 1.0


def similarity(row: torch.Tensor, before: np.ndarray | None) -> float:
    """Return the cosine by its definition; of zero with zero it is 1, with else 0."""
    if before is None:
        return -1.0
    a, b = row.double().numpy().ravel(), before.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not norms:
        return float(not a.any() and not b.any()) * 2
    return float(a @ b) / norms


@pytest.mark.parametrize("relu", [False, True])
def test_the_relative_error_is_that_of_the_inner_codec(relu: bool) -> None:
    """Whatever of a batch is predicted, its error is within 10 percent of `nrmse`."""
    codec, memory = Temporal(Waterfill(nrmse=0.1)), Memory()
    there, values = Memory(), normal(96, 8, 8, 8)
    for epoch in range(5):
        for part in torch.randperm(96).split(32):
            x = values[part].relu() if relu else values[part]
            frame = encode(x, codec, memory=memory, samples=part.tolist())
            error = (decode(frame, memory=there) - x).norm() / x.norm()
            assert 0.0 < error < 0.11
        values += [0.5, 0.2, 0.1, 0.02][min(epoch, 3)] * normal(96, 8, 8, 8, seed=epoch)


def test_a_front_that_rests_costs_next_to_nothing() -> None:
    """From the second epoch on a frame is its numbers of samples and its headers."""
    x, memory = normal(64, 8, 8, 8).relu(), Memory()
    codec = Temporal(Waterfill(nrmse=0.1))
    first, second, third = (
        encode(x[order], codec, memory=memory, samples=order.tolist())
        for order in (torch.arange(64), torch.randperm(64), torch.randperm(64))
    )
    assert len(first) > 5000
    assert len(second) <= len(third) <= 130


def test_where_prediction_does_not_pay_it_is_off() -> None:
    """Samples that are new each time cost the inner frame and their numbers."""
    codec, memory, inner_memory = Temporal(Waterfill(nrmse=0.1)), Memory(), Memory()
    for step in range(6):
        x, order = normal(64, 4, 8, 8, seed=step), torch.randperm(64)
        frame = encode(x, codec, memory=memory, samples=order.tolist())
        inner = encode(x, Waterfill(nrmse=0.1), memory=inner_memory)
        assert len(frame) <= len(inner) + 80
        said = header_of(frame).samples
        assert said is not None
        assert said.modes is None


def test_samples_that_changed_are_sent_whole_and_others_predicted() -> None:
    """The choice is each sample's own."""
    codec, memory = Temporal(Waterfill(nrmse=0.1)), Memory()
    x = normal(32, 4, 8, 8)
    seen = decode(encode(x, codec, memory=memory, samples=range(32)))
    changed = x + 0.2 * normal(32, 4, 8, 8, seed=1)
    changed[:5] = normal(5, 4, 8, 8, seed=2)
    changed[5:9] = seen[5:9]
    said = header_of(encode(changed, codec, memory=memory, samples=range(32))).samples
    assert said is not None
    assert said.modes is not None
    assert said.modes.tolist() == [0] * 5 + [2] * 4 + [1] * 23


def stream(codec: Temporal, num: int = 4, *, known: bool = False) -> list[bytes]:
    """Return frames of samples that change little, named or known."""
    memory, x = Memory(), normal(10, 3, 4, 4)
    return [
        encode(
            x + 0.01 * i, codec, memory=memory, samples=range(10), samples_known=known
        )
        for i in range(num)
    ]


def test_sides_out_of_step_are_noticed() -> None:
    """A frame lost, told twice or of another stream is refused and changes nothing."""
    frames = stream(Temporal(Waterfill(nrmse=0.1)))
    others = stream(Temporal(Waterfill(nrmse=0.2)))
    for wrong in ([0, 2], [0, 1, 1], [1], [0, 1, 3]):
        memory = Memory()
        for index in wrong[:-1]:
            decode(frames[index], memory=memory)
        before = dict(memory)
        with pytest.raises(DecodeError, match="begin anew"):
            decode(frames[wrong[-1]], memory=memory)
        assert memory.keys() == before.keys()
        assert all(memory[name] is before[name] for name in before)
    memory = Memory()
    decode(frames[0], memory=memory)
    with pytest.raises(DecodeError, match="begin anew"):
        decode(others[1], memory=memory)
    for frame in frames[1:]:
        decode(frame, memory=memory)
    decode(others[0], memory=memory)
    decode(others[1], memory=memory)


def test_samples_that_are_known_cost_no_byte() -> None:
    """A frame is shorter by the numbers of its samples, and all else is the same."""
    codec, draw = Temporal(Waterfill(nrmse=0.1)), torch.Generator().manual_seed(0)
    named, known, one, other = (Memory() for _ in range(4))
    for _ in range(4):
        order = torch.randperm(1000, generator=draw)[:32].tolist()
        x = normal(1000, 16)[order]
        frame = encode(x, codec, memory=named, samples=order)
        short = encode(x, codec, memory=known, samples=order, samples_known=True)
        width = max(order).bit_length()
        assert len(frame) - len(short) == 1 + 32 * width // 8
        whole = decode(short, memory=one, samples=order)
        assert torch.equal(whole, decode(frame, memory=other))


@pytest.mark.parametrize("others", [[4, 7, 1], [4, 7, 2, 2], [7, 4, 2], None, "abc"])
def test_other_samples_than_those_of_the_encoder_are_refused(others: Any) -> None:
    """In the same frame if it counts on any, in the next if it begins anew."""
    codec, here, there = Temporal(Float16()), Memory(), Memory()
    x = normal(3, 4)
    frames = [
        encode(x, codec, memory=here, samples=[4, 7, 2], samples_known=True)
        for _ in range(3)
    ]
    mine = [4, 7, 2]
    decode(frames[0], memory=there, samples=mine)
    before = dict(there)
    with pytest.raises(DecodeError, match="sample"):
        decode(frames[1], memory=there, samples=others)
    assert all(there[name] is before[name] for name in before)
    found = decode(frames[1], memory=there, samples=mine)
    torch.testing.assert_close(found, x, rtol=1e-3, atol=0)
    if others in ([4, 7, 1], [7, 4, 2]):
        wrong = Memory()
        decode(frames[0], memory=wrong, samples=others)
        with pytest.raises(DecodeError, match="begin anew"):
            decode(frames[1], memory=wrong, samples=mine)


def test_an_encoder_that_forgot_begins_anew() -> None:
    """Its next frame makes the decoder forget too, and both go on."""
    codec, here, there = Temporal(Uniform(8)), Memory(), Memory()
    x = normal(6, 4)
    for _ in range(3):
        decode(encode(x, codec, memory=here, samples=range(6)), memory=there)
        SampleMemory(here).forget()
        assert SampleMemory(here).version == ""
        decode(encode(x, codec, memory=here, samples=[50, 1, 2, 3, 4, 5]), memory=there)
        _, known = SampleMemory(there).find(np.arange(6), (4,))
        assert known.tolist() == [False] + [True] * 5


def test_another_limit_begins_anew() -> None:
    """Both sides are told the limit of memory at the beginning."""
    here, there = Memory(), Memory()
    SampleMemory(there).allow(2**30)
    x = normal(6, 4)
    for limit in (2**20, 2**29):
        codec = Temporal(Uniform(8), max_bytes=limit)
        decode(encode(x, codec, memory=here, samples=range(6)), memory=there)
        assert SampleMemory(there).max_bytes == limit
    with pytest.raises(DecodeError, match="the limit here is 67108864"):
        decode(encode(x, codec, memory={}, samples=range(6)), memory={})


def test_memory_stays_under_its_limit_over_ten_thousand_steps() -> None:
    """Both sides, all tensors counted, whatever samples come."""
    limit = 20_000
    codec, here, there = Temporal(Float16(), max_bytes=limit), Memory(), Memory()
    draw, most = random.Random(1), 0
    x = normal(7, 30)
    for step in range(10_000):
        samples = [draw.randrange(2000) for _ in range(7)]
        frame = encode(x, codec, memory=here, samples=samples)
        if step % 10 and step > 100:
            decode(frame, memory=there)
        else:
            there = dict(here)
        sizes = [
            sum(t.nbytes for name, t in memory.items() if name.startswith("temporal."))
            for memory in (here, there)
        ]
        most = max(most, *sizes)
    assert 0.9 * limit < most <= limit


def test_a_frame_above_the_limit_is_not_remembered() -> None:
    """It is coded, and both sides forget it at once."""
    codec, here, there = Temporal(Float16(), max_bytes=100), Memory(), Memory()
    for _ in range(3):
        frame = encode(normal(8, 30), codec, memory=here, samples=range(8))
        assert decode(frame, memory=there).shape == (8, 30)
    assert SampleMemory(here).version == SampleMemory(there).version != ""
    assert SampleMemory(there).num_bytes <= 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("bits", [8, 16])
def test_values_of_any_size_are_carried(dtype: torch.dtype, bits: int) -> None:
    """Huge, tiny and constant rows decode to finite values on both sides alike."""
    info = torch.finfo(dtype)
    here, there = Memory(), Memory()
    codec = Temporal(Identity(), bits=bits)
    sign = normal(4, 6).sign().to(dtype)
    for scale in (1.0, info.max, info.smallest_normal / 8, 0.0, info.max, -info.max):
        x = sign * scale
        frame = encode(x, codec, memory=here, samples=range(4))
        found = decode(frame, memory=there)
        assert found.dtype is dtype
        assert found.isfinite().all()
        torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-3 * abs(scale))
        assert SampleMemory(here).version == SampleMemory(there).version


def test_rows_of_another_shape_predict_nothing() -> None:
    """A sample whose values are of another shape is sent whole."""
    codec, here, there = Temporal(Waterfill(nrmse=0.1)), Memory(), Memory()
    for shape in ((6, 4, 5), (6, 4, 7), (6, 20), (6, 4, 5)):
        x = torch.ones(shape)
        frame = encode(x, codec, memory=here, samples=range(6))
        torch.testing.assert_close(decode(frame, memory=there), x, rtol=0, atol=0.2)
        said = header_of(frame).samples
        assert said is not None
        assert said.modes is None


def test_a_lone_frame_remembers_nothing() -> None:
    """Without samples it is the inner codec's frame, and memory is left alone."""
    memory = Memory()
    codec = Temporal(Uniform(4))
    for x in (normal(3, 4), torch.zeros(0, 3), torch.tensor(1.0)):
        frame = encode(x, codec, memory=memory)
        assert torch.equal(decode(frame), decode(encode(x, Uniform(4))))
    encode(torch.zeros(0, 3), codec, memory=memory, samples=[])
    assert SampleMemory(memory).version == ""


def test_the_memory_survives_being_stored() -> None:
    """A stream whose memory is copied between steps gives the same bytes."""
    codec = Temporal(Waterfill(nrmse=0.1))
    memory, frames = Memory(), []
    for i in range(4):
        memory = {name: value.clone() for name, value in memory.items()}
        x = normal(10, 3, 4, 4) + 0.01 * i
        frames.append(encode(x, codec, memory=memory, samples=range(10)))
    assert frames == stream(codec)


def test_no_tensor_in_memory_is_changed_in_place() -> None:
    """A copy of the dict goes back to where the stream was: the same frame again."""
    codec, memory, x = Temporal(Waterfill(nrmse=0.1)), Memory(), normal(10, 3, 4, 4)
    for i in range(5):
        before = dict(memory)
        samples = [(3 * i + k) % 20 for k in range(10)]
        frame = encode(x, codec, memory=memory, samples=samples)
        assert encode(x, codec, memory=before, samples=samples) == frame


@pytest.mark.parametrize(
    "samples",
    [[1, 2], [0, 1, -1], [[0, 1, 2]], [0, 1, 2**63], ["a", "b", "c"], [None] * 3],
)
def test_samples_that_are_none_are_refused(samples: list) -> None:
    """One number of 0 or more a row, or an error; the memory is left as it was."""
    memory = Memory()
    with pytest.raises(EncodeError, match="samples"):
        encode(normal(3, 4), Temporal(Float16()), memory=memory, samples=samples)
    assert memory == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    """Even around a codec that carries them, and nothing is remembered."""
    memory = Memory()
    x = torch.full((3, 4), value)
    with pytest.raises(EncodeError, match="finite"):
        encode(x, Temporal(Identity()), memory=memory, samples=range(3))
    assert memory == {}


@pytest.mark.parametrize(
    "text",
    [
        "temporal(inner=temporal(inner=float16))",
        "temporal(inner=feedback(inner=topk))",
        "feedback(inner=temporal(inner=topk))",
        "temporal(inner=float16, bits=4)",
        "temporal(inner=float16, max_bytes=0)",
        "temporal(inner=float16, threshold=0)",
        "temporal(inner=float16, threshold=1.01)",
        "temporal(inner=float16, threshold=-0.5)",
        "temporal(inner=float16, threshold='high')",
        "temporal(inner=float16, max_bytes=1.5)",
        "temporal",
    ],
)
def test_settings_that_cannot_be_carried_are_refused(text: str) -> None:
    """By name, before anything is coded."""
    with pytest.raises(SettingError):
        parse_codec(text)


def test_a_dtype_that_the_inner_codec_does_not_take_is_named() -> None:
    """Integers around an integer codec are no activations."""
    with pytest.raises(EncodeError, match="'integers' in 'temporal'"):
        encode(normal(3, 4), Temporal(parse_codec("integers")))


def sealed(frame: Frame, sections: list[bytes]) -> bytes:
    """Return a frame with other sections and the checksum that belongs to them."""
    return pack_frame("temporal", frame.dtype, frame.shape, sections)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_changed_frames_of_a_stream_do_no_harm(data: st.DataObject) -> None:
    """With a memory and the right checksum: DecodeError or the declared tensor."""
    inner = data.draw(st.sampled_from(["uniform(bits=4)", "waterfill(nrmse=0.2)"]))
    threshold = data.draw(st.sampled_from([None, 0.9]))
    known = data.draw(st.booleans())
    codec = Temporal(parse_codec(inner), threshold=threshold)
    frames = stream(codec, num=3, known=known)
    memory, samples = Memory(), range(10) if known else None
    decode(frames[0], memory=memory, samples=samples)
    if data.draw(st.booleans()):
        decode(frames[1], memory=memory, samples=samples)
    frame = unpack_frame(data.draw(st.sampled_from(frames)), max_elements=10**6)
    sections = [bytearray(s) for s in frame.sections]
    for _ in range(data.draw(st.integers(1, 4))):
        section = data.draw(st.sampled_from(sections))
        if section:
            at = data.draw(st.integers(0, len(section) - 1))
            section[at] = data.draw(st.integers(0, 255))
    before = dict(memory)
    try:
        found = decode(
            sealed(frame, [bytes(s) for s in sections]),
            max_elements=1000,
            memory=memory,
            samples=samples,
        )
    except DecodeError:
        assert all(memory[name] is before[name] for name in before)
        assert memory.keys() == before.keys()
    else:
        assert found.shape == frame.shape
        assert found.isfinite().all()


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.sampled_from([(), (0, 3), (4,), (3, 2), (2, 1, 2)]))
def test_any_header_does_no_harm(head: bytes, shape: tuple[int, ...]) -> None:
    """Arbitrary bytes in place of the header: DecodeError or the declared tensor."""
    rest = unpack_frame(encode(torch.ones(shape), Float16()), max_elements=100).sections
    name = b"float16"
    for header in (head, head[:1] + bytes([len(name)]) + name + head[1:]):
        frame = Frame("temporal", torch.float32, shape, ())
        try:
            found = decode(sealed(frame, [header, *map(bytes, rest)]), memory={})
        except DecodeError:
            continue
        assert found.shape == shape
        assert found.isfinite().all()


def test_a_sample_that_is_not_remembered_cannot_be_predicted() -> None:
    """A crafted frame that counts on the right version is refused all the same."""
    codec, here, there = Temporal(Float16()), Memory(), Memory()
    frames = [
        encode(torch.ones(2, 3), codec, memory=here, samples=[1, 2]) for _ in range(2)
    ]
    decode(frames[0], memory=there)
    header, frame = header_of(frames[1]), unpack_frame(frames[1], max_elements=100)
    assert header.samples is not None
    crafted = replace(header, samples=replace(header.samples, ids=np.array([1, 7])))
    with pytest.raises(DecodeError, match="not in memory"):
        decode(sealed(frame, [crafted.to_bytes()]), memory=there)
