"""`Waterfill`: targets are hit, bases are reused, crafted frames are refused."""

import math

import pytest
import torch

from flwr_slfac.codec import Waterfill, decode, encode, restart
from flwr_slfac.codec.waterfill import plan
from flwr_slfac.codec.waterfill.level import gaussian_bits, water_level
from flwr_slfac.codec.waterfill.transform import reflect
from flwr_slfac.codec.waterfill.trials import best_trial
from flwr_slfac.codec.wire import pack_frame, unpack_frame
from flwr_slfac.errors import DecodeError, SettingError


def smooth_maps(
    num_samples: int = 16, num_channels: int = 8, size: int = 16, seed: int = 0
) -> torch.Tensor:
    """Return maps whose channels and pixels are correlated, as after a convolution."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randn(num_samples, 3, size, size, generator=generator)
    mix = torch.randn(num_channels, 3, generator=torch.Generator().manual_seed(9))
    smooth = torch.nn.functional.avg_pool2d(sources, 5, 1, 2)
    noise = torch.randn(num_samples, num_channels, size, size, generator=generator)
    return torch.einsum("kc,nchw->nkhw", mix, smooth) + 0.02 * noise


def relative_error(x: torch.Tensor, decoded: torch.Tensor) -> float:
    """Return the L2 error over the norm."""
    return float((x - decoded).norm() / x.norm())


TENSORS = {
    "maps": smooth_maps(),
    "maps after relu": smooth_maps().relu(),
    "odd maps": smooth_maps(9, 7, 15),
    "tokens": smooth_maps(32, 16, 8).flatten(2).transpose(1, 2),
    "vectors": smooth_maps(64, 64, 4).mean(3).flatten(1),
}
every_tensor = pytest.mark.parametrize("x", TENSORS.values(), ids=TENSORS.keys())


@every_tensor
@pytest.mark.parametrize("nrmse", [0.02, 0.1, 0.3])
def test_relative_error_is_hit(x: torch.Tensor, nrmse: float) -> None:
    """The relative error is within 2 percent of what was asked for."""
    decoded = decode(encode(x, Waterfill(nrmse=nrmse)))
    assert relative_error(x, decoded) == pytest.approx(nrmse, rel=0.02)


@every_tensor
@pytest.mark.parametrize("bits", [1.0, 3.0])
def test_rate_is_hit(x: torch.Tensor, bits: float) -> None:
    """The whole frame is within 2 percent of the bits asked for."""
    num_bits = 8 * len(encode(x, Waterfill(bits=bits)))
    assert num_bits / x.numel() == pytest.approx(bits, rel=0.02)


@pytest.mark.parametrize("basis", ["identity", "dct", "haar", "db2:1"])
@pytest.mark.parametrize("channels", ["klt", None])
def test_every_basis_hits_the_error(basis: str, channels: str | None) -> None:
    """The error is that of the coefficients, whichever orthonormal basis is used."""
    x = TENSORS["maps"]
    decoded = decode(encode(x, Waterfill(nrmse=0.1, basis=basis, channels=channels)))
    assert relative_error(x, decoded) == pytest.approx(0.1, rel=0.02)


def test_a_wavelet_refuses_odd_sizes() -> None:
    """A basis that cannot do the size is refused with the remedy, never replaced."""
    with pytest.raises(SettingError, match="use 'dct'"):
        encode(TENSORS["odd maps"], Waterfill(basis="haar"))


def test_correlated_channels_cost_less() -> None:
    """The channel basis pays for itself where channels are mixtures of few."""
    x = TENSORS["maps"]
    rotated = len(encode(x, Waterfill(nrmse=0.1)))
    assert rotated < 0.7 * len(encode(x, Waterfill(nrmse=0.1, channels=None)))


def test_a_reused_basis_is_not_sent_again() -> None:
    """In a stream the second frame is smaller, and decodes with the stream's memory."""
    generator = torch.Generator().manual_seed(9)
    mix = torch.randn(64, 16, generator=generator)
    first, second = torch.einsum(
        "kc,bnchw->bnkhw", mix, torch.randn(2, 8, 16, 8, 8, generator=generator)
    )
    mine: dict[str, torch.Tensor] = {}
    theirs: dict[str, torch.Tensor] = {}
    codec = Waterfill(nrmse=0.2)
    decode(encode(first, codec, memory=mine), memory=theirs)
    data = encode(second, codec, memory=mine)
    assert len(data) < 0.9 * len(encode(second, codec))
    decoded = decode(data, memory=theirs)
    assert relative_error(second, decoded) == pytest.approx(0.2, rel=0.02)
    with pytest.raises(DecodeError, match="not received"):
        decode(data)
    stranger: dict[str, torch.Tensor] = {}
    decode(encode(TENSORS["maps after relu"], codec), memory=stranger)
    with pytest.raises(DecodeError, match="not received"):
        decode(data, memory=stranger)


@pytest.mark.parametrize("name", ["maps after relu", "vectors"])
def test_trials_that_agree_come_less_often(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was chosen of gradients serves later streams, and longer each time."""
    tried: list[int] = []

    def counted(*args: object) -> object:
        tried.append(step)
        return best_trial(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(plan, "best_trial", counted)
    x = TENSORS[name]
    memory: dict[str, torch.Tensor] = {}
    for step in range(120):
        memory = memory if step % 5 else restart(memory)
        data = encode(x, Waterfill(nrmse=0.1), role="gradient", memory=memory)
        if step % 5 == 0:
            assert relative_error(x, decode(data)) == pytest.approx(0.1, rel=0.02)
    assert tried == [0, 17, 50, 115]


def test_a_stream_begun_anew_needs_no_memory() -> None:
    """After `restart` the basis is sent again."""
    memory: dict[str, torch.Tensor] = {}
    encode(smooth_maps(), Waterfill(), memory=memory)
    assert memory
    x = smooth_maps(seed=1)
    data = encode(x, Waterfill(), memory=restart(memory))
    assert relative_error(x, decode(data)) == pytest.approx(0.1, rel=0.02)


def test_decoding_does_not_depend_on_threads() -> None:
    """The same bytes decode to the same tensor but for the last bits of a product."""
    data = encode(smooth_maps(), Waterfill(nrmse=0.2))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = decode(data)
        torch.set_num_threads(2)
        two = decode(data)
    finally:
        torch.set_num_threads(threads)
    assert float((one - two).abs().max()) <= 2**-20 * float(one.abs().max())


@pytest.mark.parametrize("target", [{"nrmse": 0.1}, {"nrmse": 0.4}, {"bits": 1.0}])
@pytest.mark.parametrize("is_relu", [False, True])
def test_every_frame_of_a_stream_meets_its_target(
    target: dict[str, float], is_relu: bool
) -> None:
    """What is kept of the step before changes no target, and hardly the size."""
    codec = Waterfill(**target)  # type: ignore[arg-type]
    mine: dict[str, torch.Tensor] = {}
    theirs: dict[str, torch.Tensor] = {}
    sizes, alone = [], []
    for step in range(20):
        # Drifting scale, offset and, at the end, a smaller batch.
        x = smooth_maps(9 if step == 19 else 16, seed=step) * 1.1**step + 0.05 * step
        x = x.relu() if is_relu else x
        data = encode(x, codec, memory=mine)
        error = relative_error(x, decode(data, memory=theirs))
        if "nrmse" in target:
            assert error == pytest.approx(target["nrmse"], rel=0.02)
        else:
            assert 8 * len(data) / x.numel() == pytest.approx(1.0, rel=0.03)
        sizes.append(len(data))
        alone.append(len(encode(x, codec)))
    assert sum(sizes) < 1.02 * sum(alone)


def test_a_last_batch_of_one_example_is_coded() -> None:
    """The mean of many examples, kept of the step before, does not outlive them."""
    generator = torch.Generator().manual_seed(0)
    alike = torch.randn(1, 8, 32, 32, generator=generator)
    maps = (alike + 0.1 * torch.randn(16, 8, 32, 32, generator=generator)).relu()
    memory: dict[str, torch.Tensor] = {}
    encode(maps, Waterfill(nrmse=0.1), memory=memory)
    for x in (maps[:2], maps[:1]):
        data = encode(x, Waterfill(nrmse=0.1), memory=dict(memory))
        assert relative_error(x, decode(data, memory=dict(memory))) < 0.102


def test_the_kept_choice_serves_the_tensors_it_was_made_for_only() -> None:
    """Another shape, and another basis setting, are coded as in an empty memory."""
    memory: dict[str, torch.Tensor] = {}
    encode(TENSORS["maps"], Waterfill(nrmse=0.1), memory=memory)
    for x, codec in (
        (TENSORS["tokens"], Waterfill(nrmse=0.1)),
        (TENSORS["odd maps"], Waterfill(nrmse=0.1)),
        (TENSORS["maps"], Waterfill(nrmse=0.1, channels=None)),
        (TENSORS["maps"], Waterfill(nrmse=0.1, basis="haar", channels=None)),
    ):
        data = encode(x, codec, memory=dict(memory))
        if codec.channels is None:
            assert data == encode(x, codec)
        assert relative_error(x, decode(data, memory=dict(memory))) < 0.102


@pytest.mark.parametrize("num_channels", [1025, 70_000])
def test_more_channels_than_a_basis_takes(num_channels: int) -> None:
    """Wide vectors are coded without a channel basis."""
    x = torch.randn(2, num_channels, generator=torch.Generator().manual_seed(0))
    decoded = decode(encode(x, Waterfill(nrmse=0.2)))
    assert relative_error(x, decoded) == pytest.approx(0.2, rel=0.02)


@pytest.mark.parametrize(
    "settings",
    [
        {"nrmse": 0.1, "step": 2.0},
        {"nrmse": 0.1, "noise": 0.1, "bits": 2.0},
        {"bits": 2.0, "step": 1.0},
        {"nrmse": 1.0},
        {"nrmse": 0.0},
        {"nrmse": math.nan},
        {"bits": 33},
        {"step": math.inf},
        {"step": True},
        {"channels": "dct"},
        {"coder": "fast"},
        {"basis": "bior2.2"},
    ],
    ids=str,
)
def test_wrong_settings_are_refused(settings: dict[str, object]) -> None:
    """Settings that contradict each other or are out of range are refused."""
    with pytest.raises(SettingError):
        Waterfill(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", range(11))
def test_no_byte_of_the_head_breaks_the_decoder(place: int) -> None:
    """Every value of every byte of the head gives DecodeError or the tensor's shape."""
    frame = unpack_frame(encode(smooth_maps(2, 3, 4), Waterfill()), max_elements=10**4)
    head, *rest = map(bytes, frame.sections)
    for value in range(256):
        changed = head[:place] + bytes([value]) + head[place + 1 :]
        data = pack_frame("waterfill", frame.dtype, frame.shape, [changed, *rest])
        try:
            assert decode(data).shape == frame.shape
        except DecodeError:
            continue


def test_a_frame_of_an_older_layout_is_refused_by_name() -> None:
    """Frames of the range coder before this one say which release they need."""
    head = bytes.fromhex("01000000803f00000100000003646374")
    data = pack_frame("waterfill", torch.float32, (2, 3), [head, b"", b""])
    with pytest.raises(DecodeError, match=r"layout 01 .* the same release"):
        decode(data)


def test_water_level_meets_the_distortion() -> None:
    """Components bear the level or their variance; the sum is the distortion."""
    variances = torch.rand(50, generator=torch.Generator().manual_seed(0)).numpy() ** 4
    for share in (0.001, 0.1, 0.5, 0.99):
        level = water_level(variances, share * variances.sum())
        borne = variances.clip(max=level).sum()
        assert borne == pytest.approx(share * variances.sum())


def test_gaussian_bits_are_those_of_half_a_log() -> None:
    """A component k times the level costs log2(k) / 2 bits, one below it nothing."""
    variances = torch.tensor([16.0, 4.0, 0.5]).double().numpy()
    assert gaussian_bits(variances, 1.0) == pytest.approx(3.0)


@pytest.mark.parametrize("num_samples", [1, 2, 9])
def test_reflection_brings_the_mean_forward_and_undoes_itself(num_samples: int) -> None:
    """Sample 0 becomes the scaled mean; twice is the identity."""
    x = torch.randn(num_samples, 2, 3, generator=torch.Generator().manual_seed(0))
    once = reflect(x)
    torch.testing.assert_close(once[0], x.mean(0) * math.sqrt(num_samples))
    torch.testing.assert_close(reflect(once), x)


@pytest.mark.parametrize("bits", [2.0, 8.0])
@pytest.mark.parametrize("value", [1e-30, 1.0, 1e30])
def test_a_lone_spike_takes_fewer_bits_than_allowed(bits: float, value: float) -> None:
    """Where no step is fine enough to take the bits, the finest is used."""
    x = torch.zeros(5, 5, 5, 5)
    x[0, 0, 0, 0] = value
    decoded = decode(encode(x, Waterfill(bits=bits)))
    torch.testing.assert_close(decoded, x, rtol=1e-4, atol=1e-5 * value)


@pytest.mark.parametrize("shape", [(30, 200), (40, 300), (3, 64), (5, 50, 2)])
@pytest.mark.parametrize("nrmse", [1e-3, 3e-3, 0.1])
def test_a_basis_is_no_larger_than_the_decoder_allows(
    shape: tuple[int, ...], nrmse: float
) -> None:
    """Few vectors of many channels, whose basis would outweigh them, come back."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape[0], 6, generator=generator)
    x = x @ torch.randn(6, math.prod(shape[1:]), generator=generator)
    x = (x + 1e-3 * torch.randn(x.shape, generator=generator)).reshape(shape)
    error = (decode(encode(x, Waterfill(nrmse=nrmse))) - x).norm() / x.norm()
    assert error < 1.02 * nrmse


@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 7, 3), (1, 5, 1), (4, 1, 6)])
def test_tokens_of_any_layout_are_coded(shape: tuple[int, int, int]) -> None:
    """Channels may come last, of one sample too, and lie anyhow in memory."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    turned = x.transpose(0, 2).contiguous().transpose(0, 2)
    for codec in (Waterfill(nrmse=0.05), Waterfill(nrmse=0.05, basis="identity")):
        frame = encode(x, codec)
        assert frame == encode(turned, codec)
        assert (decode(frame) - x).norm() <= 0.06 * x.norm()


def test_an_error_finer_than_float32_tells_gives_the_finest_step() -> None:
    """Encoding ends where one coefficient is too large for the step that is due."""
    generator = torch.Generator().manual_seed(0)
    x = 1 + 1e-3 * torch.randn(1, 1, 256, 256, generator=generator)
    decoded = decode(encode(x, Waterfill(nrmse=1e-5)))
    assert float((decoded - x).norm() / x.norm()) < 3e-5
