"""The contract: one suite that every registered codec passes."""

import importlib
import json
import math
import os
import pkgutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from hashlib import sha256
from inspect import isabstract

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import flwr_slfac.codec
from flwr_slfac.codec import Codec, decode, encode, format_codec, parse_codec
from flwr_slfac.codec import registered as registered_codecs
from flwr_slfac.codec.wire import DTYPES, pack_frame, unpack_frame
from flwr_slfac.errors import DecodeError, EncodeError
from tests.codec.cases import CASES, FLOATS, Case, golden_tensor, tensors
from tests.codec.goldens.write import decoded_path, frame_path

LIMIT = 20_000
FEW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.text)
float_cases = pytest.mark.parametrize(
    "case", [c for c in CASES if torch.float32 in c.codec.dtypes], ids=lambda c: c.text
)


def subclasses(cls: type[Codec]) -> Iterator[type[Codec]]:
    """Yield every class below a class."""
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


def seal(body: bytes) -> bytes:
    """Return the bytes with the checksum that belongs to them."""
    return body + struct.pack("<I", zlib.crc32(body))


def decode_or_refuse(data: bytes) -> None:
    """Assert that bytes give DecodeError or the tensor that they declare, finite."""
    try:
        tensor = decode(data, max_elements=LIMIT)
    except DecodeError:
        return
    frame = unpack_frame(data, max_elements=LIMIT)
    assert (tensor.dtype, tuple(tensor.shape)) == (frame.dtype, frame.shape)
    assert tensor.numel() <= LIMIT
    codec = registered_codecs()[frame.codec_id]
    if not codec.carries_nonfinite and tensor.is_floating_point():
        assert torch.isfinite(tensor).all()


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether tensors agree in dtype, shape and every value, NaN included."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(torch.nan_to_num(a, 123.0), torch.nan_to_num(b, 123.0))
    )


def a_tensor(case: Case, *shape: int) -> torch.Tensor:
    """Return a tensor of a dtype that the codec takes."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return x if torch.float32 in case.codec.dtypes else (100 * x).to(torch.int32)


def test_every_codec_class_is_registered() -> None:
    """No concrete codec in the package is unknown to `decode`."""
    package = flwr_slfac.codec
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
    ours = {
        cls
        for cls in subclasses(Codec)
        if cls.__module__.startswith(package.__name__)
        and not isabstract(cls)
        and not cls.__name__.startswith("_")
    }
    assert ours <= set(registered_codecs().values())


def test_every_registered_codec_has_a_case() -> None:
    """A codec that this suite does not run is a failure."""
    test_every_codec_class_is_registered()
    with_a_case = {case.codec.codec_id for case in CASES}
    ids = {
        codec_id
        for codec_id, cls in registered_codecs().items()
        if cls.__module__.startswith("flwr_slfac.")
    }
    assert ids == with_a_case


@every_case
def test_error_is_within_the_documented_bound(case: Case) -> None:
    """Shape and dtype come back, and the error is what the docstring allows."""
    for name, tensor in tensors(case.codec):
        try:
            data = case.encode(tensor)
        except EncodeError:
            if tensor.double().abs().max() > case.largest:
                continue
            raise
        decoded = decode(data)
        assert (decoded.dtype, decoded.shape) == (tensor.dtype, tensor.shape), name
        assert decoded.device.type == "cpu"
        if tensor.is_floating_point():
            assert decoded.isfinite().all(), name
        try:
            case.bound(tensor, decoded)
        except AssertionError as error:
            raise AssertionError(f"bound of {case.text} broken on {name}") from error


@float_cases
@FEW
@given(
    array=arrays(
        np.float32,
        array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=5),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_bound_holds_for_any_finite_tensor(case: Case, array: np.ndarray) -> None:
    """Hypothesis finds no finite float32 tensor outside of the bound."""
    tensor = torch.from_numpy(np.array(array))
    try:
        data = case.encode(tensor)
    except EncodeError:
        assert tensor.abs().max() > case.largest
        return
    case.bound(tensor, decode(data))


@float_cases
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nonfinite_is_counted_or_carried(case: Case, dtype: torch.dtype) -> None:
    """NaN and infinity raise an error that counts them, or come back exactly."""
    x = torch.zeros(3, 4, dtype=dtype)
    x[0, 0], x[1, 1], x[2] = math.nan, math.inf, -math.inf
    if case.codec.carries_nonfinite:
        assert same(decode(case.encode(x)), x)
    else:
        with pytest.raises(EncodeError, match="1 NaN and 5 infinite of 12 values"):
            case.encode(x)


@every_case
def test_memory_layout_does_not_matter(case: Case) -> None:
    """Transposed, strided, expanded and channels-last tensors give the same bytes."""
    x = a_tensor(case, 4, 6, 8, 10)
    views = [
        x.transpose(0, 3),
        x[::2, :, 1::3],
        x[:1].expand(3, -1, -1, -1),
        x.contiguous(memory_format=torch.channels_last),
        x[1, 2],
    ]
    for view in views:
        assert case.encode(view) == case.encode(view.clone().contiguous())


@every_case
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same(case: Case) -> None:
    """Tensors on a GPU code to the same bytes, or within the bound, and come back."""
    for name, tensor in tensors(case.codec):
        try:
            here = case.encode(tensor)
        except EncodeError:
            continue
        there = case.encode(tensor.cuda())
        if case.exact_bytes:
            assert there == here, name
        decoded = decode(there, device="cuda")
        assert decoded.is_cuda
        case.bound(tensor, decoded.cpu())


@float_cases
def test_gradients_are_not_tracked(case: Case) -> None:
    """A tensor that requires a gradient codes like another, and is left as it was."""
    x = a_tensor(case, 2, 3, 6, 6)
    leaf = x.clone().requires_grad_()
    data = case.encode(2 * leaf)
    assert data == case.encode(2 * x)
    assert not decode(data).requires_grad
    assert torch.equal(leaf.detach(), x)


@every_case
def test_the_tensor_is_not_changed(case: Case) -> None:
    """Encoding reads its input only."""
    for name, tensor in tensors(case.codec):
        before = tensor.clone()
        try:
            case.encode(tensor)
        except EncodeError:
            continue
        assert same(tensor, before), name


@every_case
def test_settings_survive_json_and_text(case: Case) -> None:
    """A codec comes back from the JSON of its config and from its own text."""
    codec = case.codec
    config = json.loads(json.dumps(codec.config()))
    assert type(codec)(**config) == codec
    assert parse_codec(format_codec(codec)) == codec
    assert format_codec(parse_codec(format_codec(codec))) == format_codec(codec)
    assert hash(type(codec)(**config)) == hash(codec)


@every_case
def test_the_seed_decides_and_the_global_generator_does_not(case: Case) -> None:
    """One seed gives one frame, whatever torch's own generator does in between."""
    x = a_tensor(case, 3, 8, 6, 6)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = case.encode(x, seed=2**63 - 1)
        torch.manual_seed(2)
        state = torch.get_rng_state()
        assert case.encode(x, seed=2**63 - 1) == first
        assert torch.equal(torch.get_rng_state(), state)


_DIGESTS = """
import json, sys, torch
torch.set_num_threads(int(sys.argv[1]))
from tests.codec.test_contract import digests
print(json.dumps(digests()))
"""


def digests() -> dict[str, list[str]]:
    """Return a digest of each case's bytes, of a tensor that threads share."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(8, 16, 24, 24, generator=generator)
    out = {}
    for case in CASES:
        y = x if torch.float32 in case.codec.dtypes else (100 * x).to(torch.int64)
        frames = [case.encode(y), case.encode(y.relu())]
        out[case.text] = [sha256(frame).hexdigest() for frame in frames]
    return out


def test_bytes_are_equal_across_processes_and_threads() -> None:
    """New processes with one thread and with three make the bytes of this one."""
    exact = {case.text for case in CASES if case.exact_bytes}
    runs = [
        subprocess.run(
            [sys.executable, "-c", _DIGESTS, threads],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONHASHSEED": threads},
        )
        for threads in ("1", "3")
    ]
    here = digests()
    for run in runs:
        assert run.returncode == 0, run.stderr
        there = json.loads(run.stdout)
        differ = [text for text in exact if there[text] != here[text]]
        assert not differ


@every_case
def test_golden_bytes_have_not_changed(case: Case) -> None:
    """The bytes of the golden tensor are those in git, for this wire version."""
    path = frame_path(case)
    assert path.exists(), "run python -m tests.codec.goldens.write and commit it"
    data = case.encode(golden_tensor(case.codec))
    if case.exact_bytes:
        assert data == path.read_bytes()
    else:
        largest = golden_tensor(case.codec).abs().max()
        apart = (decode(data) - decode(path.read_bytes())).abs().max()
        assert apart <= 0.05 * largest


@every_case
def test_golden_frames_stay_decodable(case: Case) -> None:
    """A frame in git decodes to the values that it decoded to when it was written."""
    path = decoded_path(case)
    assert path.exists(), "run python -m tests.codec.goldens.write and commit it"
    x = golden_tensor(case.codec)
    wanted = torch.from_numpy(np.load(path, allow_pickle=False))
    decoded = decode(frame_path(case).read_bytes())
    case.bound(x, decoded)
    # Float arithmetic may differ by a unit in the last place between machines.
    torch.testing.assert_close(decoded, wanted, rtol=1e-6, atol=1e-6)


@every_case
def test_the_limit_is_honoured(case: Case) -> None:
    """A tensor of exactly `max_elements` decodes; with one less it is refused."""
    x = a_tensor(case, 2, 3, 4, 5)
    data = case.encode(x)
    assert decode(data, max_elements=120).shape == x.shape
    with pytest.raises(DecodeError, match="120 elements; the limit is 119"):
        decode(data, max_elements=119)


@every_case
def test_another_shape_than_expected_is_refused(case: Case) -> None:
    """A frame decodes where its shape is expected, and nowhere else."""
    data = case.encode(a_tensor(case, 2, 3, 4, 5))
    assert decode(data, shape=(2, 3, 4, 5)).shape == (2, 3, 4, 5)
    for shape in ((2, 3, 5, 4), (120,), ()):
        with pytest.raises(DecodeError, match="is expected here"):
            decode(data, shape=shape)


@pytest.mark.parametrize(
    "text",
    ["float16", "bfloat16", "topk(values='exact')", "feedback(inner='identity')"],
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_a_codec_does_not_carry_are_refused(
    text: str, value: float
) -> None:
    """Elements on the wire that are NaN or infinite are refused by name."""
    data = encode(torch.ones(3, 4), parse_codec(text))
    frame = unpack_frame(data, max_elements=12)
    dtype = getattr(torch, text, torch.float32)
    *head, elements = (bytes(s) for s in frame.sections)
    wrong = torch.tensor([value], dtype=dtype).view(torch.uint8).numpy().tobytes()
    elements = wrong + elements[len(wrong) :]
    changed = pack_frame(frame.codec_id, frame.dtype, frame.shape, [*head, elements])
    with pytest.raises(DecodeError, match="carries no NaN"):
        decode(changed)


@every_case
def test_every_truncation_is_refused(case: Case) -> None:
    """No prefix of a frame decodes, and none with a repaired checksum does harm."""
    data = case.encode(a_tensor(case, 2, 3, 4, 5))
    for end in range(0, len(data), 1 + len(data) // 200):
        with pytest.raises(DecodeError):
            decode(data[:end])
        decode_or_refuse(seal(data[:end]))


@every_case
def test_shortened_sections_are_refused_or_harmless(case: Case) -> None:
    """With lengths that agree, a section cut or grown by bytes does no harm."""
    frame = unpack_frame(case.encode(a_tensor(case, 2, 3, 4, 5)), max_elements=LIMIT)
    for place, section in enumerate(frame.sections):
        for new in (
            b"",
            section[:1],
            section[:-1],
            bytes(section) + b"\0",
            bytes(section) + b"\xff" * 40,
            b"\xff" * len(section),
            bytes(len(section)),
        ):
            sections: list[bytes | memoryview] = [*frame.sections]
            sections[place] = new
            decode_or_refuse(
                pack_frame(frame.codec_id, frame.dtype, frame.shape, sections)
            )


@every_case
@FEW
@given(data=st.data())
def test_changed_bytes_are_refused_or_harmless(case: Case, data: st.DataObject) -> None:
    """Frames with changed bytes and the right checksum do no harm."""
    shape = data.draw(st.sampled_from([(2, 3, 4, 5), (2, 5, 6), (3, 7), (9,), ()]))
    body = bytearray(case.encode(a_tensor(case, *shape))[:-4])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place] = data.draw(st.integers(0, 255))
    decode_or_refuse(seal(bytes(body)))


@every_case
@FEW
@given(data=st.data())
def test_spliced_frames_are_refused_or_harmless(
    case: Case, data: st.DataObject
) -> None:
    """Sections under another shape, dtype, codec or order do no harm."""
    frame = unpack_frame(case.encode(a_tensor(case, 2, 3, 4, 5)), max_elements=LIMIT)
    other = data.draw(st.sampled_from(CASES))
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(
        st.lists(st.sampled_from([0, 1, 2, 3, 5, 8, 24, 120, 2**31]), max_size=8)
    )
    sections = data.draw(st.permutations(frame.sections))
    codec_id = data.draw(st.sampled_from([frame.codec_id, other.codec.codec_id]))
    decode_or_refuse(pack_frame(codec_id, dtype, shape, sections))


@every_case
@FEW
@given(
    shape=st.lists(st.sampled_from([0, 1, 2, 7, 2**14, 2**31]), max_size=8),
    dtype=st.sampled_from(DTYPES),
    sections=st.lists(st.binary(max_size=40), max_size=8),
)
def test_crafted_frames_are_refused_or_harmless(
    case: Case, shape: list[int], dtype: torch.dtype, sections: list[bytes]
) -> None:
    """Arbitrary sections under the codec's id do no harm."""
    decode_or_refuse(pack_frame(case.codec.codec_id, dtype, shape, sections))


@every_case
@pytest.mark.parametrize(
    "shape", [(2**31,), (2**20, 2**20), (2**32 - 1,) * 8, (0, 2**31, 2**31)], ids=str
)
def test_claims_of_terabytes_are_refused(case: Case, shape: tuple[int, ...]) -> None:
    """A frame that claims terabytes is refused at the default limit."""
    frame = unpack_frame(case.encode(a_tensor(case, 2, 3, 4, 5)), max_elements=LIMIT)
    data = pack_frame(frame.codec_id, frame.dtype, shape, frame.sections)
    with pytest.raises(DecodeError, match="limit"):
        decode(data)


@every_case
def test_a_stream_keeps_its_memory_outside_of_the_codec(case: Case) -> None:
    """Two streams of one codec with a memory each do not touch one another."""
    x = a_tensor(case, 4, 3, 6, 6)
    batches = [x, x * 2, x[:2], x]

    def stream() -> list[bytes]:
        memory: dict[str, torch.Tensor] = {}
        return [encode(b, case.codec, memory=memory, seed=1) for b in batches]

    first, second = stream(), stream()
    assert first == second
    memory: dict[str, torch.Tensor] = {}
    for data, batch in zip(first, batches, strict=True):
        assert decode(data, memory=memory).shape == batch.shape
