import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flwr_slfac.codec import decode, encode, format_codec, parse_codec
from flwr_slfac.codec.slfac import SLFAC
from flwr_slfac.codec.slfac.sections import Header, Sections
from flwr_slfac.codec.wire import pack_frame, unpack_frame
from flwr_slfac.errors import DecodeError, SettingError
from tests.codec import slfac_reference as reference

CODECS = [
    SLFAC(),
    SLFAC(theta=0.5, bit_widths=(3, 5)),
    SLFAC(theta=1.0, bit_widths=(1, 1)),
    SLFAC(basis="identity"),
    SLFAC(tokens="td"),
    SLFAC(energy="sum"),
    SLFAC(components="magnitude"),
    SLFAC(components="deviation"),
    SLFAC(widths="powerquant"),
    SLFAC(widths="easyquant"),
]


def images(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Return smooth planes with noise, cut off at zero as a ReLU does."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(*shape, generator=generator, dtype=torch.float64)
    smooth = noise.cumsum(-1)
    if len(shape) > 1:
        smooth = smooth.cumsum(-2)
    return (smooth / shape[-1] + 0.1 * noise).relu().to(dtype)


def sent(tensor: torch.Tensor, codec: SLFAC) -> tuple[memoryview, ...]:
    """Return the sections that a tensor is coded to."""
    return unpack_frame(encode(tensor, codec), max_elements=2**24).sections


@pytest.mark.parametrize("basis", ["dct", "haar:2", "db2:1"])
@pytest.mark.parametrize(
    "shape", [(3, 4, 8, 8), (2, 2, 28, 28), (2, 5, 12, 8), (6, 24), (4, 8)]
)
@pytest.mark.parametrize("theta", [0.5, 0.9, 0.99])
def test_bytes_equal_the_reference(
    basis: str, shape: tuple[int, ...], theta: float
) -> None:
    """Splits, widths, ranges and codes are the reference's to the bit, in float64."""
    codec = SLFAC(theta=theta, bit_widths=(2, 8), basis=basis)
    x = images(*shape)
    planes = list(x.numpy().reshape(-1, *shape[2 if len(shape) == 4 else 1 :]))
    rows = reference.encode(planes, theta, (2, 8), basis)
    _check_sections(sent(x, codec), rows, planes[0].size)


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (2, 5, 12, 8), (6, 24)])
@pytest.mark.parametrize("theta", [0.6, 0.9])
def test_widths_by_sums_equal_the_reference(
    shape: tuple[int, ...], theta: float
) -> None:
    """Where widths follow the sum of squares, so do the reference's; bits are more."""
    x = images(*shape)
    planes = list(x.numpy().reshape(-1, *shape[2 if len(shape) == 4 else 1 :]))
    rows = reference.encode(planes, theta, energy="sum")
    codec = SLFAC(theta=theta, energy="sum")
    _check_sections(sent(x, codec), rows, planes[0].size)
    means, sums = encode(x, SLFAC(theta=theta)), encode(x, codec)
    assert len(sums) > len(means)
    assert (decode(sums) - x).norm() < (decode(means) - x).norm()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
    st.floats(0.05, 1),
    st.sampled_from([(2, 8), (1, 8), (1, 1), (5, 5), (8, 8)]),
)
def test_bytes_equal_the_reference_for_any_shape(
    samples: int,
    channels: int,
    h: int,
    w: int,
    seed: int,
    theta: float,
    bit_widths: tuple[int, int],
) -> None:
    """The same for odd sizes, any theta and any bounds of the widths."""
    x = images(samples, channels, h, w, seed=seed)
    planes = list(x.numpy().reshape(-1, h, w))
    if h == w == 1:
        planes = list(x.numpy().reshape(samples, channels))
    rows = reference.encode(planes, theta, bit_widths)
    if min(min(row.split_margin, row.range_margin) for row in rows) < 1e-12:
        return
    codec = SLFAC(theta=theta, bit_widths=bit_widths)
    _check_sections(sent(x, codec), rows, planes[0].size, bit_widths)


def _check_sections(
    sections: tuple[memoryview, ...],
    rows: list[reference.Row],
    n: int,
    bit_widths: tuple[int, int] = (2, 8),
) -> None:
    _, splits, ranges, codes = sections
    split_bits = (n - 1).bit_length()
    width_bits = (bit_widths[1] - bit_widths[0]).bit_length()
    bits = []
    for row in rows:
        values = [row.split - 1, *(w - bit_widths[0] for w in row.widths)]
        for value, count in zip(
            values, (split_bits, width_bits, width_bits), strict=True
        ):
            bits += [value >> place & 1 for place in range(count)]
    packed = np.packbits(bits, bitorder="little").tobytes() if bits else b""
    assert bytes(splits) == packed
    low = [row.ranges[0] for row in rows]
    high = [row.ranges[1] for row in rows if len(row.ranges) > 1]
    expected = [r[end] for part in (low, high) for end in (0, 1) for r in part]
    np.testing.assert_array_equal(
        np.frombuffer(ranges, "<f2"), np.array(expected, dtype="<f2")
    )
    _check_codes(codes, rows, 1e-9)


def _check_codes(codes: memoryview, rows: list[reference.Row], tie: float) -> int:
    """Compare all codes but those at a tie of the rounding; return how many tied."""
    assert len(codes) == len(reference.bit_stream(rows))
    found = np.unpackbits(np.frombuffer(codes, np.uint8), bitorder="little")
    position = num_ties = 0
    for row in rows:
        for code, width, margin in zip(
            row.codes, row.code_widths, row.margins, strict=True
        ):
            bits = found[position : position + width]
            position += width
            # A coefficient of zero in a symmetric range is midway between two levels.
            num_ties += margin < tie
            assert margin < tie or int((bits * 2 ** np.arange(width)).sum()) == code
    assert not found[position:].any()
    return num_ties


@pytest.mark.parametrize("tokens", ["t", "td"])
def test_tokens_equal_the_reference(tokens: str) -> None:
    """A token's spectrum runs along T for each feature, or over (T, D) where asked."""
    x = images(3, 12, 10)
    planes = list(x.numpy())
    if tokens == "t":
        planes = [column for plane in planes for column in plane.T]
    rows = reference.encode(planes)
    _check_sections(sent(x, SLFAC(tokens=tokens)), rows, planes[0].size)


@pytest.mark.parametrize("shape", [(4, 4, 16, 16), (4, 24, 6), (9, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_equals_the_reference_away_from_ties(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """In float32, codes differ from the reference's only at ties of the rounding."""
    x = images(*shape, dtype=dtype)
    wide = x.double().movedim(1, -1) if len(shape) == 3 else x.double()
    planes = list(wide.numpy().reshape(-1, *wide.shape[2 if len(shape) == 4 else -1 :]))
    rows = reference.encode(planes)
    _, _, _, codes = sent(x, SLFAC())
    assert _check_codes(codes, rows, 1e-3) < 0.05 * x.numel()


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (2, 2, 7, 9), (6, 24)])
@pytest.mark.parametrize("components", ["magnitude", "deviation"])
def test_other_components_equal_the_reference(
    components: str, shape: tuple[int, ...]
) -> None:
    """By magnitude or deviation, the same stages follow another order, on the wire."""
    x = images(*shape)
    planes = list(x.numpy().reshape(-1, *shape[2 if len(shape) == 4 else 1 :]))
    n = planes[0].size
    rows = reference.encode(planes, components=components)
    *sections, found = sent(x, SLFAC(components=components))
    _check_sections(tuple(sections), rows, n)
    spectra = [reference.spectrum(p, "dct") for p in planes]
    if components == "deviation":
        order = reference.deviation_first(spectra)
        if len(shape) == 4:
            # On the wire, positions are those of the plane.
            cells = reference.zigzag(*shape[2:])
            order = [cells[i][0] * shape[3] + cells[i][1] for i in order]
        bits = [i >> b & 1 for i in order for b in range((n - 1).bit_length())]
    else:
        chosen = [
            set(reference.largest_first(s, 0.9)[: row.split])
            for s, row in zip(spectra, rows, strict=True)
        ]
        bits = [i in low for low in chosen for i in range(n)]
    assert bytes(found) == np.packbits(bits, bitorder="little").tobytes()


@pytest.mark.parametrize("widths", ["powerquant", "easyquant"])
def test_symmetric_codes_follow_their_range_and_power(widths: str) -> None:
    """Codes of the middle width are the nearest levels in the range on the wire."""
    x = images(3, 4, 8, 8) - 0.3
    planes = list(x.numpy().reshape(-1, 8, 8))
    head, _, ends, codes = sent(x, SLFAC(widths=widths))
    header = Header.unpack(head, torch.float64)
    assert (header.power == 1) == (widths == "easyquant")
    rows = reference.encode(planes)
    upper = np.frombuffer(ends, "<f2").astype(float) * 2.0**header.exponent
    rest = iter(upper[len(rows) :])
    bits = np.unpackbits(np.frombuffer(codes, np.uint8), bitorder="little")
    found = iter(bits[: 5 * x.numel()].reshape(-1, 5) @ 2 ** np.arange(5))
    for plane, row, low in zip(planes, rows, upper, strict=False):
        coeffs = reference.spectrum(plane, "dct")
        for part in (coeffs[: row.split], coeffs[row.split :]):
            high = low if part == coeffs[: row.split] else next(rest)
            largest = max(map(abs, part))
            assert 0.499 * largest <= high <= 1.001 * largest
            for c in part:
                scaled = min(abs(c) / high, 1) ** header.power * 15 * np.sign(c)
                assert abs(int(next(found)) - 15 - scaled) <= 0.5 + 1e-9


def test_powerquant_takes_the_power_that_errs_least() -> None:
    """On a heavy-tailed tensor the power found is low, and errs less than 1 does."""
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    x = noise**5
    codec = SLFAC(basis="identity", widths="powerquant", bit_widths=(5, 5))
    power = Header.unpack(sent(x, codec)[0], torch.float32).power
    assert power < 0.8
    linear = SLFAC(basis="identity", widths="easyquant", bit_widths=(5, 5))
    errors = [float((decode(encode(x, c)) - x).norm()) for c in (codec, linear)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("theta", "expected"), [(1e-9, 1), (0.5, 2), (0.51, 3), (1, 7)]
)
def test_the_split_at_the_edges_of_theta(theta: float, expected: int) -> None:
    """The low component has at least one coefficient and no zeros at its end."""
    x = torch.zeros(1, 12, dtype=torch.float64)
    x[0, :7] = torch.tensor([0.5, 0.5, 0.5, 0, 0, 0, 0.5])
    codec = SLFAC(theta=theta, basis="identity")
    sections = Sections.parse(unpack_frame(encode(x, codec), max_elements=100))
    assert sections.split.tolist() == [expected]


def test_decoding_equals_the_reference() -> None:
    """What is decoded is the inverse DCT of the reference's levels."""
    x = images(2, 3, 12, 10)
    planes = list(x.numpy().reshape(-1, 12, 10))
    rows = reference.encode(planes)
    largest = max(abs(c) for p in planes for c in reference.spectrum(p, "dct"))
    decoded = decode(encode(x, SLFAC())).numpy().reshape(-1, 12, 10)
    for plane, row in zip(decoded, rows, strict=True):
        levels = reference.decode(row, 120, largest)
        np.testing.assert_allclose(
            reference.spectrum(plane, "dct"), levels, atol=1e-12 * largest
        )


def bound(x: torch.Tensor, codec: SLFAC) -> float:
    """Return the documented bound on the L2 error, from the reference's own steps."""
    wide = x.double()
    shape = tuple(wide.shape)
    planes = list(wide.numpy().reshape(-1, *shape[2 if len(shape) == 4 else 1 :]))
    rows = reference.encode(planes, codec.theta, codec.bit_widths)
    scale = max(
        (abs(c) for p in planes for c in reference.spectrum(p, "dct")), default=0
    )
    total = 0.0
    n = planes[0].size
    for row, plane in zip(rows, planes, strict=True):
        coeffs = reference.spectrum(plane, "dct")
        for part, width in zip(
            (coeffs[: row.split], coeffs[row.split :]), row.widths, strict=True
        ):
            if part:
                ends = abs(min(part)) + abs(max(part))
                widened = 2.0**-10 * ends + 2.0**-22 * scale
                step = (max(part) - min(part) + widened) / (2**width - 1)
                total += len(part) * (step / 2) ** 2
    assert n == len(coeffs)
    working = 2.0**-19 if x.dtype != torch.float64 else 2.0**-44
    rounding = torch.finfo(x.dtype).eps * (x.numel() ** 0.5) * float(wide.abs().max())
    return total**0.5 + working * float(wide.norm()) + rounding


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([(2, 3, 8, 8), (1, 2, 7, 5), (3, 24), (2, 13)]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e37]),
    st.sampled_from([SLFAC(), SLFAC(theta=0.5, bit_widths=(3, 6))]),
)
def test_the_documented_bound_holds(
    shape: tuple[int, ...],
    seed: int,
    dtype: torch.dtype,
    magnitude: float,
    codec: SLFAC,
) -> None:
    """The L2 error is at most half a step a coefficient, and the stated roundings."""
    x = images(*shape, seed=seed) * magnitude
    if dtype == torch.float16:
        x = images(*shape, seed=seed)
    x = x.to(dtype)
    decoded = decode(encode(x, codec))
    error = float((decoded.double() - x.double()).norm())
    assert error <= bound(x, codec)


@pytest.mark.parametrize("codec", CODECS, ids=format_codec)
@pytest.mark.parametrize(
    "shape",
    [(), (1,), (5,), (0, 3, 4, 4), (3, 1), (2, 7, 5), (2, 1, 6), (2, 3, 1, 1),
     (2, 3, 4, 5, 6), (1, 1, 1, 9), (1, 700), (1, 1, 3, 600)],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["plain", "zeros", "constant", "tiny", "huge"])
def test_every_shape_decodes(codec: SLFAC, shape: tuple[int, ...], kind: str) -> None:
    """Any shape and magnitude comes back finite, of its shape and not far off."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    if kind == "zeros":
        x = torch.zeros(shape)
    elif kind == "constant":
        x = torch.full(shape, 0.7)
    elif kind == "tiny":
        x = x * 1e-44
    elif kind == "huge":
        x = x.clamp(-1, 1) * 3.4e38
    decoded = decode(encode(x, codec))
    assert decoded.shape == x.shape
    assert decoded.dtype == x.dtype
    assert decoded.is_contiguous()
    assert torch.isfinite(decoded).all()
    # The levels of a code of one bit may be further off than zero is.
    if codec.bit_widths != (1, 1) and x.numel():
        error = (decoded.double() - x.double()).norm()
        grain = 2e-45 * x.numel() ** 0.5
        largest = x.double().abs().max()
        assert error <= 0.75 * x.double().norm() + 0.01 * largest + grain
    if kind == "zeros":
        assert not decoded.any()


def test_codec_does_not_touch_the_tensor() -> None:
    """A strided tensor that requires a gradient is coded as its values, and kept."""
    x = images(4, 6, 8, 8, dtype=torch.float32).requires_grad_()
    view = x.permute(1, 0, 3, 2)[::2]
    kept = view.detach().clone()
    assert encode(view, SLFAC()) == encode(kept.contiguous(), SLFAC())
    assert torch.equal(view.detach(), kept)


def test_side_information_is_small_and_counted() -> None:
    """A row costs its split, two widths and four float16, no more."""
    x = images(4, 8, 28, 28, dtype=torch.float32)
    head, splits, ranges, codes = sent(x, SLFAC())
    num_rows = 32
    assert splits.nbytes == (num_rows * (10 + 3 + 3) + 7) // 8
    assert ranges.nbytes <= num_rows * 8
    assert head.nbytes < 20
    assert len(encode(x, SLFAC())) < sum(map(len, (head, splits, ranges, codes))) + 64


def test_zero_channels_cost_no_codes() -> None:
    """A component whose range is a point has no codes on the wire."""
    assert sent(torch.zeros(4, 4, 8, 8), SLFAC())[3].nbytes == 0


def test_smooth_planes_put_energy_in_few_coefficients() -> None:
    """The low component of smooth planes is small, so bits are few for the error."""
    noise = torch.randn(4, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.avg_pool2d(noise, 5, 1).relu()
    frame = encode(x, SLFAC())
    assert 8 * len(frame) / x.numel() < 6
    assert (decode(frame) - x).norm() < 0.4 * x.norm()


@pytest.mark.parametrize("codec", CODECS, ids=format_codec)
def test_settings_round_trip(codec: SLFAC) -> None:
    """Settings survive JSON and print as they are read."""
    assert SLFAC(**json.loads(json.dumps(codec.config()))) == codec
    assert parse_codec(format_codec(codec)) == codec


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"theta": 0}, "theta"),
        ({"theta": 1.1}, "theta"),
        ({"theta": True}, "theta"),
        ({"theta": "0.9"}, "theta"),
        ({"theta": float("nan")}, "theta"),
        ({"bit_widths": (0, 8)}, "bit_widths"),
        ({"bit_widths": (8, 2)}, "bit_widths"),
        ({"bit_widths": (2, 9)}, "bit_widths"),
        ({"bit_widths": (2.0, 8)}, "bit_widths"),
        ({"bit_widths": 8}, "bit_widths"),
        ({"basis": "dtc"}, "no basis"),
        ({"basis": 3}, "basis"),
        ({"components": "energy"}, "components"),
        ({"components": []}, "components"),
        ({"widths": "linear"}, "widths"),
        ({"widths": "powerquant", "bit_widths": (1, 2)}, "needs 2 bits"),
        ({"tokens": "d"}, "tokens"),
        ({"energy": "most"}, "energy"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object], said: str) -> None:
    """A wrong setting says what was found and what to give."""
    with pytest.raises(SettingError, match=said):
        SLFAC(**wrong)  # type: ignore[arg-type]


def test_odd_maps_and_wavelets() -> None:
    """A wavelet that cannot do the map's size says so when it meets it."""
    with pytest.raises(SettingError, match="use 'dct'"):
        encode(torch.zeros(1, 1, 7, 7), SLFAC(basis="haar"))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("codec", CODECS, ids=format_codec)
def test_one_thread_or_two(codec: SLFAC, threads: int) -> None:
    """Repeated calls give the same bytes, whatever the number of threads before."""
    before = torch.get_num_threads()
    x = images(8, 16, 16, 16, dtype=torch.float32)
    try:
        torch.set_num_threads(threads)
        first = encode(x, codec)
        assert encode(x.clone(), codec) == first
        assert torch.equal(decode(first), decode(first))
    finally:
        torch.set_num_threads(before)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes and decoded values are those of one chunk, however small the chunks."""
    x = images(3, 7, 9, 9)
    for codec in CODECS:
        whole = encode(x, codec)
        decoded = decode(whole)
        with monkeypatch.context() as patch:
            patch.setattr("flwr_slfac.codec.slfac.spectra.ENCODE_CHUNK", 1)
            patch.setattr("flwr_slfac.codec.slfac.codes.DECODE_CHUNK", 1)
            patch.setattr("flwr_slfac.codec.slfac.spectra._MIN_ROWS", 2)
            torch.testing.assert_close(decode(whole), decoded, atol=1e-12, rtol=0)
            assert len(encode(x, codec)) == len(whole)


def _frames() -> list[bytes]:
    x = images(2, 3, 6, 6, dtype=torch.float32)
    frames = [encode(x, c) for c in CODECS]
    return [*frames, encode(x[0, 0], SLFAC(basis="haar")), encode(x[0], CODECS[0])]


FRAMES = _frames()


@settings(max_examples=700, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(FRAMES), st.data())
def test_hostile_sections_decode_or_say_so(frame: bytes, data: st.DataObject) -> None:
    """Changed sections under a right checksum: DecodeError or a finite tensor."""
    parts = unpack_frame(frame, max_elements=2**20)
    sections = [bytearray(s) for s in parts.sections]
    for _ in range(data.draw(st.integers(1, 3))):
        section = data.draw(st.sampled_from(sections))
        kind = data.draw(st.sampled_from(["flip", "cut", "grow", "drop"]))
        if kind == "flip" and section:
            section[data.draw(st.integers(0, len(section) - 1))] = data.draw(
                st.integers(0, 255)
            )
        elif kind == "cut":
            del section[data.draw(st.integers(0, len(section))) :]
        elif kind == "grow":
            section.extend(data.draw(st.binary(max_size=4)))
        elif kind == "drop" and len(sections) > 1:
            sections.pop()
    shape = data.draw(
        st.sampled_from([parts.shape, (1, 216), (0,), (), (216,), (2**19,), (6, 6, 6)])
    )
    dtype = data.draw(st.sampled_from([parts.dtype, torch.float64, torch.float16]))
    changed = pack_frame("slfac", dtype, shape, [bytes(s) for s in sections])
    try:
        decoded = decode(changed, max_elements=2**20)
    except DecodeError:
        return
    assert decoded.shape == shape
    assert decoded.dtype == dtype
    assert torch.isfinite(decoded).all()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.binary(max_size=40), max_size=6), st.sampled_from([(4,), (2, 2), ()])
)
def test_arbitrary_sections_are_refused(
    sections: list[bytes], shape: tuple[int, ...]
) -> None:
    """Arbitrary sections raise DecodeError or decode, never anything else."""
    try:
        decoded = decode(pack_frame("slfac", torch.float32, shape, sections))
    except DecodeError:
        return
    assert decoded.shape == shape


def test_a_large_claim_without_bytes_is_refused_early() -> None:
    """A shape of 2**28 rows with empty sections is refused before rows are made."""
    head = bytes(sent(torch.zeros(2, 2, 2, 2), SLFAC(bit_widths=(2, 2)))[0])
    frame = pack_frame("slfac", torch.float32, (2**28, 1), [head, b"", b"", b""])
    with pytest.raises(DecodeError, match="bytes of ranges"):
        decode(frame)
