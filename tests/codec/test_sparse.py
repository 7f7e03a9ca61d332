"""Top-k, RandTopk and SplitFC: what is sent, and what it costs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_slfac.codec import decode, encode
from flwr_slfac.codec.sparse import RandTopK, TopK
from flwr_slfac.codec.splitfc import SplitFC, keep_probabilities, range_widths
from flwr_slfac.codec.wire import pack_frame, unpack_frame
from flwr_slfac.errors import DecodeError, SettingError


def normal(*shape: int, seed: int = 2) -> torch.Tensor:
    """Return standard normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 40), (2, 4, 5, 5), (2, 5, 8), (50,)])
def test_topk_sends_the_k_largest_of_each_sample(shape: tuple[int, ...]) -> None:
    """What comes back is the k largest magnitudes of a sample, exactly, and zeros."""
    x = normal(*shape)
    decoded = decode(encode(x, TopK(0.2, "exact")))
    rows, back = (
        t.reshape(shape[0] if len(shape) > 1 else 1, -1) for t in (x, decoded)
    )
    k = round(0.2 * rows.shape[1])
    for row, sent in zip(rows, back, strict=True):
        index = row.abs().topk(k).indices
        wanted = torch.zeros_like(row).index_copy(0, index, row[index])
        assert torch.equal(sent, wanted)


def test_topk_sends_the_earlier_of_equal_values() -> None:
    """Ties are broken by place, so bytes do not depend on a sort."""
    x = torch.tensor([[1.0, 2.0, 2.0, -2.0, 2.0, 0.0]])
    decoded = decode(encode(x, TopK(0.5)))
    assert decoded.tolist() == [[0, 2, 2, -2, 0, 0]]


def test_topk_does_not_send_zeros() -> None:
    """A sample with fewer values than k, as after a ReLU, costs only those."""
    x = torch.zeros(4, 1000)
    x[:, 5] = 1.0
    frame = unpack_frame(encode(x, TopK(0.5)), max_elements=10**6)
    assert len(frame.sections[3]) == 2 * 4
    assert len(encode(x, TopK(0.5))) < 90


def test_topk_costs_what_its_docstring_says() -> None:
    """At a fraction of 0.1 it takes 1.6 bits of values and about 0.47 of places."""
    x = normal(8, 16, 24, 24)
    assert 2.05 < 8 * len(encode(x, TopK(0.1))) / x.numel() < 2.09


def test_halves_of_any_scale_keep_their_precision() -> None:
    """The scale adapts: 1e-30 and 1e30 keep 11 bits as well as 1 does."""
    x = normal(2, 50)
    for scale in (1e-30, 1.0, 1e30):
        decoded = decode(encode(x * scale, TopK(1.0))).double()
        assert ((decoded - x * scale).abs() <= 2**-10 * (x * scale).abs()).all()


def test_randtopk_sends_k_values_of_which_alpha_are_from_outside() -> None:
    """Each sample sends k values; the share from outside the k largest is alpha."""
    x = normal(400, 200)
    decoded = decode(encode(x, RandTopK(0.1, alpha=0.3), seed=5))
    sent = decoded != 0
    assert (sent.sum(1) == 20).all()
    threshold = x.abs().topk(20, dim=1).values[:, -1:]
    outside = (sent & (x.abs() < threshold)).sum() / sent.sum()
    assert abs(float(outside) - 0.3) < 0.02


def test_randtopk_without_alpha_is_topk() -> None:
    """With alpha 0 the k largest are sent, whatever the seed."""
    x = normal(5, 3, 6, 6)
    plain = decode(encode(x, TopK(0.2)))
    assert torch.equal(decode(encode(x, RandTopK(0.2, alpha=0.0), seed=9)), plain)


def test_randtopk_draws_anew_with_each_seed() -> None:
    """Another seed is another draw; the same seed the same."""
    x = normal(5, 100)
    frames = [encode(x, RandTopK(0.1, 0.5), seed=s) for s in (1, 2, 1)]
    assert frames[0] == frames[2] != frames[1]


def test_randtopk_sends_everything_where_everything_fits() -> None:
    """At a fraction of 1 there is no outside to draw from."""
    x = normal(3, 7)
    assert (decode(encode(x, RandTopK(1.0, 0.9))) != 0).all()


@given(
    st.lists(st.floats(0, 1e3), min_size=2, max_size=40),
    st.floats(0, 0.99),
)
def test_keep_probabilities_share_the_budget(
    deviations: list[float], drop: float
) -> None:
    """They add up to the kept share, stay within [0, 1] and rise with deviation."""
    sigma = np.array(deviations)
    keep = keep_probabilities(sigma, drop)
    assert ((keep >= 0) & (keep <= 1)).all()
    assert math.isclose(keep.sum(), (1 - drop) * sigma.size, rel_tol=1e-9)
    order = np.argsort(sigma, kind="stable")
    assert (np.diff(keep[order]) >= -1e-9).all()


@given(st.lists(st.floats(-60, 60), min_size=1, max_size=60), st.integers(1, 8))
def test_widths_keep_to_the_budget(log_ranges: list[float], bits: int) -> None:
    """Widths spend at most `bits` a feature, and wider ranges never get fewer."""
    logs = np.array(log_ranges)
    widths = range_widths(logs, bits)
    assert widths.sum() <= bits * logs.size
    assert widths.min() >= 0
    assert (np.diff(widths[np.argsort(logs, kind="stable")]) >= 0).all()


@pytest.mark.parametrize("feature", ["channel", "column"])
def test_splitfc_is_the_tensor_in_the_mean(feature: str) -> None:
    """Over seeds the decoded tensor's mean approaches the tensor: dropout unbiased."""
    x = normal(16, 6, 3, 3) * torch.tensor([1.0, 2, 3, 4, 5, 6]).reshape(6, 1, 1)
    codec = SplitFC(0.5, 8, feature)  # type: ignore[arg-type]
    total = sum(decode(encode(x, codec, seed=seed)) for seed in range(300))
    error = (total / 300 - x).norm() / x.norm()
    # One draw errs by about 1; 300 by about 1 / sqrt(300) = 0.06.
    assert error < 0.1


def test_splitfc_keeps_features_of_high_dispersion() -> None:
    """Features that hardly vary are dropped, those that vary most are kept."""
    x = normal(64, 8) * torch.tensor([1e-3] * 4 + [1.0] * 4)
    decoded = decode(encode(x, SplitFC(0.5, 8)))
    kept = (decoded != 0).any(0).tolist()
    assert kept[:4] == [False] * 4
    assert sum(kept) >= 3


def test_splitfc_without_drop_is_quantization_alone() -> None:
    """With nothing dropped every feature is within half a step of its width."""
    x = normal(32, 6, 4, 4)
    decoded = decode(encode(x, SplitFC(0.0, 8)))
    step = (x.amax((0, 2, 3)) - x.amin((0, 2, 3))) / (2**7 - 1)
    assert ((decoded - x).abs().amax((0, 2, 3)) <= 0.51 * step).all()


def test_splitfc_codes_cost_their_mean_bits() -> None:
    """Codes take at most `bits` a kept value; ranges and widths come beside them."""
    x = normal(32, 16, 6, 6) * torch.logspace(-2, 2, 16).reshape(16, 1, 1)
    frame = unpack_frame(encode(x, SplitFC(0.5, 3)), max_elements=10**6)
    header, mask, widths, ends, codes = frame.sections
    num_kept = int(np.unpackbits(np.frombuffer(mask, np.uint8)).sum())
    assert (len(header), len(mask)) == (1, 2)
    assert len(widths) == -(-num_kept // 2)
    assert len(ends) == 8 * num_kept
    assert len(codes) <= num_kept * 32 * 36 * 3 // 8 + num_kept


@pytest.mark.parametrize(
    "make",
    [
        lambda: TopK(0.0),
        lambda: TopK(1.1),
        lambda: TopK(math.nan),
        lambda: TopK(values="float8"),  # type: ignore[arg-type]
        lambda: RandTopK(alpha=1.0),
        lambda: RandTopK(alpha=-0.1),
        lambda: RandTopK(fraction=2),
        lambda: SplitFC(drop=1.0),
        lambda: SplitFC(bits=0),
        lambda: SplitFC(bits=9),
        lambda: SplitFC(feature="row"),  # type: ignore[arg-type]
    ],
)
def test_settings_out_of_range_are_refused(make: type) -> None:
    """A wrong fraction, probability or name says what is allowed."""
    with pytest.raises(SettingError, match="give"):
        make()


def test_hostile_values_are_refused() -> None:
    """Halves of 1 or more, and exponents beyond the dtype, raise DecodeError."""
    frame = unpack_frame(encode(normal(8), TopK(0.5)), max_elements=10)
    header, low, unary, values = frame.sections
    for sections in (
        [header, low, unary, b"\x00\x3c" * (len(values) // 2)],
        [header, low, unary, b"\x00\x7e" * (len(values) // 2)],
        [bytes(header[:2]) + b"\x81\x00", low, unary, values],
        [bytes(header[:2]) + b"\x00\x80", low, unary, values],
    ):
        with pytest.raises(DecodeError):
            decode(pack_frame("topk", torch.float32, (8,), sections))
