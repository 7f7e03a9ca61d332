"""The packed model update: near, small, unbiased, and safe to unpack."""

import math
import struct
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flwr_slfac.cutting import cut
from flwr_slfac.errors import DecodeError, DivergedError, SettingError
from flwr_slfac.lightweight.quantization import (
    pack_update,
    unpack_update,
    update_variance,
)
from flwr_slfac.lightweight.quantization.update_layout import SCALE_SLACK, rounded_up
from tests import models

State = dict[str, torch.Tensor]
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator."""
    return torch.Generator().manual_seed(seed)


def small_net(dtype: torch.dtype = torch.float32) -> State:
    """Return the state of a front with BatchNorm."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 9, 3))
    return {
        k: v.to(dtype) if v.is_floating_point() else v
        for k, v in net.state_dict().items()
    }


def trained(reference: State, size: float = 0.01, seed: int = 1) -> State:
    """Return a state some way from the reference."""
    generator = seeded(seed)
    state = {}
    for name, old in reference.items():
        if old.is_floating_point():
            noise = torch.randn(old.shape, generator=generator)
            state[name] = (old.float() + size * noise.abs()).to(old.dtype)
        else:
            state[name] = old + 3
    return state


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_what_arrives_is_within_a_level_of_what_was_sent(
    bits: int, dtype: torch.dtype
) -> None:
    """Weights are off by one level of their bucket at most, the rest is exact."""
    old = small_net(dtype)
    new = trained(old)
    out = unpack_update(pack_update(new, old, bits, seeded(), bucket=64), old)
    levels = 2 ** (bits - 1) - 1
    assert list(out) == list(old)
    for name, value in out.items():
        assert (value.dtype, value.shape) == (new[name].dtype, new[name].shape)
        if "running" in name or "num" in name:
            assert torch.equal(value, new[name])
        else:
            update = (new[name].double() - old[name].double()).abs().max()
            allowed = SCALE_SLACK * update / levels
            allowed += 4 * torch.finfo(dtype).eps * (old[name].abs().max() + update)
            assert (value.double() - new[name].double()).abs().max() <= allowed


@pytest.mark.parametrize(
    ("build", "at", "what"),
    [
        (models.resnet18, "layer1", "ResNet-18"),
        (models.vgg19_bn, "features.13", "VGG-19-BN"),
        (lambda: models.resnet18(width=16), "layer1", "quarter ResNet-18"),
        (lambda: models.vgg19_bn(width=16), "features.13", "quarter VGG-19-BN"),
    ],
)
def test_the_upload_falls_with_the_bits(build: object, at: str, what: str) -> None:
    """Packed with headers and scales: 8 bits 0.27, 4 bits 0.15 of float32's bytes."""
    old = cut(build(), at=at).front.state_dict()  # type: ignore[operator]
    new = trained(old)
    raw = sum(v.numel() * v.element_size() for v in old.values())
    for bits, bar in ((8, 0.27), (4, 0.15)):
        share = len(pack_update(new, old, bits, seeded())) / raw
        assert share <= bar, f"{what}: {share:.4f} at {bits} bits"


def test_the_mean_of_many_updates_is_the_update_and_its_variance_is_bounded() -> None:
    """Averaged over devices' noise, nothing is lost: 4 sigma, variance as promised."""
    old = {"w": torch.zeros(64, dtype=torch.float64)}
    new = {"w": torch.randn(64, generator=seeded(), dtype=torch.float64)}
    sent = torch.stack(
        [
            unpack_update(pack_update(new, old, 3, seeded(i)), old)["w"]
            for i in range(999)
        ]
    )
    error = (sent.mean(0) - new["w"]).abs()
    assert (error <= 4 * sent.std(0) / math.sqrt(999) + 1e-9).all()
    measured = (sent - new["w"]).square().sum(1).mean()
    assert measured <= update_variance(3, 64) * new["w"].square().sum()


def test_error_feedback_sends_in_the_end_what_was_left() -> None:
    """With a residual the sum of many coarse updates follows the sum of the moves."""
    old = {"w": torch.zeros(1000)}
    steps = torch.randn(40, 1000, generator=seeded()) + 0.2
    residual: State = {}
    here = old
    for step in steps:
        data = pack_update(
            {"w": here["w"] + step}, here, 2, seeded(), residual=residual
        )
        here = unpack_update(data, here)
    unsent = steps.sum(0) - here["w"]
    assert torch.allclose(unsent, residual["w"], atol=1e-3)
    assert unsent.norm() <= 0.5 * steps.sum(0).norm()


def test_a_residual_is_sent_even_if_the_weights_stand_still() -> None:
    """What feedback owes travels in a round without any change."""
    old = {"w": torch.zeros(4)}
    residual = {"w": torch.tensor([0.5, 0.0, 0.0, -0.5])}
    out = unpack_update(pack_update(old, old, 8, seeded(), residual=residual), old)
    assert torch.allclose(out["w"], torch.tensor([0.5, 0.0, 0.0, -0.5]), atol=0.01)
    assert residual["w"].abs().max() < 0.01


def test_equal_seeds_give_equal_bytes() -> None:
    """The bytes are a function of the states, the settings and the seed."""
    old = small_net()
    new = trained(old)
    assert pack_update(new, old, 4, seeded(3)) == pack_update(new, old, 4, seeded(3))
    assert pack_update(new, old, 4, seeded(3)) != pack_update(new, old, 4, seeded(4))


def test_tensors_that_did_not_change_cost_one_byte() -> None:
    """A frozen weight and a buffer of infinities add their mode byte only."""
    old = {"w": torch.ones(3)}
    more = old | {"mask": torch.full((9, 9), -math.inf), "frozen": torch.ones(999)}
    new = more | {"w": torch.zeros(3)}
    data = pack_update(new, more, 8, seeded())
    alone = pack_update({"w": torch.zeros(3)}, old, 8, seeded())
    assert len(data) == len(alone) + 2
    assert torch.equal(unpack_update(data, more)["mask"], more["mask"])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 3), st.sampled_from(FLOATS)),
        max_size=5,
    ),
    st.integers(2, 8),
    st.integers(1, 50),
)
def test_any_shapes_and_buckets_come_back(
    tensors: list[tuple[int, int, torch.dtype]], bits: int, bucket: int
) -> None:
    """Whatever the shapes, an update with a level per value comes back whole."""
    old = {
        f"t{i}": torch.zeros((size,) + (1,) * dims, dtype=dtype)
        for i, (size, dims, dtype) in enumerate(tensors)
    }
    new = {k: torch.ones_like(v) for k, v in old.items()}
    out = unpack_update(pack_update(new, old, bits, seeded(), bucket=bucket), old)
    assert all(torch.equal(out[k], v) for k, v in new.items())


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-39, 1.1, 3.3895e38, 1e-300])
def test_scales_are_rounded_up_by_less_than_the_slack(value: float) -> None:
    """A scale on the wire is never below the true one, and never 1/128 above it."""
    scale = torch.tensor([[value]], dtype=torch.float64)
    rounded = rounded_up(scale).double()
    assert rounded >= scale
    # Below the smallest normal number a bfloat16 is a multiple of 2**-133.
    assert rounded <= max(value * SCALE_SLACK, value + 2.0**-133)


def forged(data: bytes, at: int, new: bytes) -> bytes:
    """Return a frame with bytes replaced and a checksum that matches."""
    body = bytearray(data[:-4])
    body[at : at + len(new)] = new
    return bytes(body) + struct.pack("<I", zlib.crc32(bytes(body)))


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_hostile_bytes_raise_decode_error_or_give_the_reference_shapes(
    data: st.DataObject,
) -> None:
    """Bytes changed anywhere, checksum mended: DecodeError or a finite state."""
    old = {"w": torch.ones(70), "flag": torch.tensor([True]), "n": torch.tensor(3)}
    old["running_var"] = torch.ones(2, dtype=torch.float16)
    new = {k: v + 1 if k != "flag" else ~v for k, v in old.items()}
    good = pack_update(new, old, 4, seeded(), bucket=16)
    at = data.draw(st.integers(0, len(good) - 5))
    bad = forged(good, at, data.draw(st.binary(min_size=1, max_size=4)))
    try:
        out = unpack_update(bad[: len(good)], old)
    except DecodeError:
        return
    assert {k: (v.shape, v.dtype) for k, v in out.items()} == {
        k: (v.shape, v.dtype) for k, v in old.items()
    }
    assert all(torch.isfinite(v).all() for v in out.values())


@given(st.binary(max_size=200))
def test_arbitrary_and_truncated_bytes_raise_decode_error(data: bytes) -> None:
    """Bytes that are no update, and every beginning of one, raise DecodeError."""
    old = {"w": torch.ones(5)}
    good = pack_update({"w": torch.zeros(5)}, old, 8, seeded())
    for bad in (data, good[: len(data) % len(good)]):
        with pytest.raises(DecodeError):
            unpack_update(bad, old)


def test_another_reference_is_refused() -> None:
    """An update against another model, by name, shape or value, raises DecodeError."""
    old = {"w": torch.ones(5)}
    data = pack_update({"w": torch.zeros(5)}, old, 8, seeded())
    others = ({"v": torch.ones(5)}, {"w": torch.ones(5, 1)}, {"w": torch.zeros(5)})
    for other in others:
        with pytest.raises(DecodeError, match="another model"):
            unpack_update(data, other)
    with pytest.raises(DecodeError):
        unpack_update(data, {"w": torch.ones(2)})
    with pytest.raises(DecodeError):
        unpack_update(data, {})


@pytest.mark.parametrize("name", ["w", "running_mean"])
def test_a_state_that_is_not_finite_is_refused_by_name(name: str) -> None:
    """NaN after training raises DivergedError that names the tensor."""
    old = {name: torch.zeros(5)}
    with pytest.raises(DivergedError, match=name):
        pack_update({name: torch.full((5,), math.nan)}, old, 8, seeded())


def test_an_update_beyond_the_largest_scale_is_refused() -> None:
    """A value that no bfloat16 scale can carry raises DivergedError."""
    with pytest.raises(DivergedError, match="too large"):
        pack_update({"w": torch.tensor(3.4e38)}, {"w": torch.tensor(0.0)}, 8, seeded())


def test_states_that_do_not_fit_are_refused() -> None:
    """Other names, shapes or dtypes, and settings out of range: SettingError."""
    old = {"w": torch.zeros(5)}
    for new in ({}, {"w": torch.zeros(6)}, {"w": torch.zeros(5).double()}):
        with pytest.raises(SettingError, match="w"):
            pack_update(new, old, 8, seeded())
    with pytest.raises(SettingError, match="bits"):
        pack_update(old, old, 9, seeded())
    complex_state = {"w": torch.zeros(2, dtype=torch.complex64)}
    with pytest.raises(SettingError, match="complex"):
        pack_update(complex_state, complex_state, 8, seeded())
