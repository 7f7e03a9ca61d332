"""Messages in envelopes: what is put in comes out, and nothing else is taken."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from hypothesis import given
from hypothesis import strategies as st

import flwr_slfac
from flwr_slfac.errors import DecodeError, SettingError, SlfacError
from flwr_slfac.split import Lost, Smashed, TrainReply
from flwr_slfac.transport.channels import channels_of_text
from flwr_slfac.transport.stream import slfac_pb2 as pb
from flwr_slfac.transport.stream import wire
from flwr_slfac.transport.stream.blobs import BlobReader, BlobWriter, StateBytes
from flwr_slfac.transport.stream.replies import pack_reply, unpack_reply
from flwr_slfac.transport.stream.wire import Assembly, Packed, parse, read_data

ROOT = Path(flwr_slfac.__file__).parents[1]
PROTO = "flwr_slfac/transport/stream/slfac.proto"
LIMIT = 2**30
DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex128,
    torch.complex64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    torch.bool,
)  # fmt: skip


def put_together(envelopes: list[bytes], limit: int = LIMIT) -> Packed | None:
    """Return what envelopes of a reply come to."""
    assembly, done = Assembly(), None
    for raw in envelopes:
        assert done is None
        head, data = None, read_data(raw)
        if data is None:
            envelope = parse(pb.ToServer, raw)
            head, data = envelope.reply, memoryview(envelope.data)
        done = assembly.add(head, data, limit)
    return done


@given(sizes=st.lists(st.integers(0, 40), max_size=12), part=st.integers(1, 50))
def test_blobs_cross_in_parts_of_any_size(sizes: list[int], part: int) -> None:
    """Blobs of any number and size come out whole and in order, in any parts."""
    blobs = tuple(bytes([i]) * size for i, size in enumerate(sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "DATA_BYTES", part)
        envelopes = list(Packed(pb.Reply(), blobs).envelopes(7))
    assert all(len(parse(pb.ToServer, raw).data) <= part for raw in envelopes)
    done = put_together(envelopes)
    assert done is not None
    assert done.blobs == blobs
    assert done.head.number == 7


@given(size=st.sampled_from([0, 1, 127, 128, 16383, 16384, 2**20, 2**20 + 1]))
def test_envelopes_are_those_of_protobuf(size: int) -> None:
    """What is written by hand is, byte for byte, what protobuf writes."""
    blob = b"x" * size
    raw = next(iter(Packed(pb.Reply(), (blob,)).envelopes(1)))
    reply = pb.Reply(number=1, blob_sizes=[size])
    expected = pb.ToServer(reply=reply, data=blob[: wire.DATA_BYTES])
    assert raw == expected.SerializeToString()


@given(raw=st.binary(max_size=64) | st.binary(max_size=8).map(lambda b: b"\x7a" + b))
def test_any_bytes_are_an_envelope_or_a_decode_error(raw: bytes) -> None:
    """Arbitrary bytes never raise anything but DecodeError, and read_data agrees."""
    data = read_data(raw)
    if data is not None:
        assert parse(pb.ToServer, raw) == pb.ToServer(data=bytes(data))
    try:
        put_together([raw])
    except DecodeError:
        return


def test_what_does_not_follow_is_refused() -> None:
    """Too many bytes, too few, none begun, one begun twice, too large: DecodeError."""
    begin = pb.ToServer(reply=pb.Reply(number=1, blob_sizes=[4]), data=b"ab")
    more = pb.ToServer(data=b"cde")
    none = pb.ToServer(data=b"")
    raw = begin.SerializeToString()
    for envelopes in (
        [raw, more.SerializeToString()],
        [raw, none.SerializeToString()],
        [more.SerializeToString()],
        [raw, raw],
    ):
        with pytest.raises(DecodeError):
            put_together(envelopes)
    with pytest.raises(DecodeError, match="the limit is 3 bytes"):
        put_together([raw], limit=3)
    huge = pb.Reply(number=1, blob_sizes=[2**63, 2**63])
    with pytest.raises(DecodeError, match="the limit"):
        put_together([pb.ToServer(reply=huge).SerializeToString()])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (3, 5, 2)], ids=str)
def test_states_cross_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Tensors of every dtype and shape come out equal, bit for bit, and writable."""
    tensor = torch.randn((*shape, 2)).mul(100).to(dtype)[..., 0]  # not contiguous
    if dtype.is_complex:
        tensor = tensor.conj()
    state, writer = pb.State(), BlobWriter()
    writer.put_state(StateBytes({"a.b": tensor}), state)
    (back,) = BlobReader(writer.blobs).state(state).values()
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(back, tensor)
    back.zero_()


def test_tensors_that_lie_are_refused() -> None:
    """A dtype that is not known, bytes that do not fit the shape: DecodeError."""
    writer = BlobWriter()
    blob = writer.put(b"12345678")
    for tensor in (
        pb.Tensor(name="w", dtype="object", shape=[8], blob=blob),
        pb.Tensor(name="w", dtype="float32", shape=[3], blob=blob),
        pb.Tensor(name="w", dtype="float32", shape=[2**63, 2**63, 0], blob=0),
        pb.Tensor(name="w", dtype="float32", shape=[2], blob=2),
        pb.Tensor(name="w", dtype="float32", shape=[1] * 65, blob=blob),
    ):
        with pytest.raises(DecodeError):
            BlobReader(writer.blobs).state(pb.State(tensors=[tensor]))
    empty = pb.Tensor(name="w", dtype="int8", shape=[2**63, 0], blob=1)
    with pytest.raises(DecodeError):
        BlobReader([b""]).state(pb.State(tensors=[empty]))


def test_what_cannot_be_carried_is_refused_by_name() -> None:
    """A sparse tensor, and more names than an envelope holds, are SettingErrors."""
    with pytest.raises(SettingError, match="in layout"):
        StateBytes({"w": torch.eye(2).to_sparse()})
    front = {f"{'x' * 1000}{i}": torch.zeros(1) for i in range(1100)}
    with pytest.raises(SettingError, match="transport='messages'"):
        pack_reply(TrainReply(0, 1, done=True, front=front))


def test_a_reply_without_its_parts_is_refused() -> None:
    """Smashed data without targets, or nothing at all, is no reply."""
    whole = pack_reply(TrainReply(0, 1, smashed=Smashed(b"a", b"t", 1)))
    with pytest.raises(DecodeError):
        unpack_reply(Packed(whole.head, whole.blobs[:1]))
    with pytest.raises(DecodeError):
        unpack_reply(Packed(pb.Reply()))
    refused = unpack_reply(pack_reply(Lost("it is cold", at_fault=True)))
    assert refused == Lost("refused: it is cold", at_fault=True)


TEXTS = st.text(max_size=20) | st.sampled_from(
    ["[" * 100_000, "{}", '{"a": 1}', '{"a": "b"}', "[]", "null", "1e400"]
)
REFERENCES = st.integers(0, 4)


@given(
    kind=st.sampled_from(["train", "evaluate", "describe", "refused"]),
    references=st.lists(REFERENCES, min_size=6, max_size=6),
    numbers=st.lists(st.integers(0, 2**64 - 1), min_size=3, max_size=3),
    texts=st.lists(TEXTS, max_size=4),
    cost=st.dictionaries(st.text(max_size=5), st.integers(-(2**63), 2**63 - 1)),
)
def test_any_reply_is_read_or_refused(
    kind: str, references: list[int], numbers: list[int], texts: list[str], cost: dict
) -> None:
    """What a device may send is a reply, or an error of ours, and never another."""
    blobs = tuple(text.encode() for text in texts)
    smashed = pb.Smashed(
        activations_blob=references[0],
        targets_blob=references[1],
        num_examples=numbers[0],
        shape=numbers,
    )
    tensor = pb.Tensor(name="w", dtype="float32", shape=numbers, blob=references[2])
    head = {
        "train": lambda: pb.Reply(
            train=pb.TrainReply(
                device=numbers[1],
                smashed=smashed,
                front=pb.State(tensors=[tensor] if references[5] else []),
                update_blob=references[3],
                metrics_blob=references[4],
                cost=pb.StepCost(values=cost) if cost else None,
            )
        ),
        "evaluate": lambda: pb.Reply(evaluate=pb.EvaluateReply(batches=[smashed])),
        "describe": lambda: pb.Reply(
            describe=pb.Description(
                profile_blob=references[0], channels_blob=references[1]
            )
        ),
        "refused": lambda: pb.Reply(refused=pb.Refused(reason="x" * 9000)),
    }[kind]()
    with suppress(SlfacError):
        unpack_reply(Packed(head, blobs))


def test_channels_beyond_any_number_are_refused() -> None:
    """A position that no tensor holds is no reason to end a run."""
    group = {"name": "g", "size": 1, "cut": [10**30], "members": []}
    text = json.dumps({"groups": [group], "cut": [1, 1], "fixed": {}})
    with pytest.raises(DecodeError, match="no channels"):
        channels_of_text(text)


def test_generated_code_is_that_of_the_proto_file(tmp_path: Path) -> None:
    """The checked-in module describes what slfac.proto says now."""
    out = tmp_path / "set.bin"
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I.",
         f"--descriptor_set_out={out}", PROTO],
        cwd=ROOT, check=True,
    )  # fmt: skip
    (compiled,) = FileDescriptorSet.FromString(out.read_bytes()).file
    checked_in = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(checked_in)

    def strip(message: object) -> None:
        for nested in message.nested_type:  # type: ignore[attr-defined]
            strip(nested)
        for field in message.field:  # type: ignore[attr-defined]
            field.ClearField("json_name")

    for message in (*compiled.message_type, *checked_in.message_type):
        strip(message)
    assert compiled == checked_in
