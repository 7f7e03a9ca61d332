"""Error bounds as the codecs' docstrings state them, each asserted on one tensor.

Written against the docstrings, not the code: keep probabilities, for example, come from
`torch.std` and a bisection here.
"""

from collections.abc import Callable

import numpy as np
import scipy.fft
import torch

Bound = Callable[[torch.Tensor, torch.Tensor], None]


def _ulps(tensor: torch.Tensor, number: float = 2) -> torch.Tensor:
    """Return some units in the last place of the largest magnitude, as float64."""
    info = torch.finfo(tensor.dtype)
    largest = tensor.double().abs().amax() if tensor.numel() else torch.zeros(())
    # Halved first: a sum with the largest float64 must not overflow.
    return number * (info.eps * largest.double()).clamp(
        min=info.smallest_normal * info.eps
    )


def _error(tensor: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """Return the magnitude of the error; halves avoid overflow of float64."""
    half = decoded.double() / 2 - tensor.double() / 2
    return 2 * half.abs().clamp(max=torch.finfo(torch.float64).max / 2)


def exact(tensor: torch.Tensor, decoded: torch.Tensor) -> None:
    """Assert that every value is the same."""
    assert torch.equal(tensor, decoded)


def rounded_to(half: torch.dtype) -> Bound:
    """Bound by half a unit in the last place of a 16-bit float."""
    info = torch.finfo(half)

    def bound(tensor: torch.Tensor, decoded: torch.Tensor) -> None:
        relative = tensor.double().abs() * (info.eps / 2)
        least = info.smallest_normal * info.eps / 2
        assert (_error(tensor, decoded) <= relative.clamp(min=least)).all()

    return bound


def half_step(bits: int, *, per_channel: bool = False) -> Bound:
    """Bound by 0.51 steps of a min-max grid."""

    def bound(tensor: torch.Tensor, decoded: torch.Tensor) -> None:
        if tensor.numel() == 0:
            return
        x, y = tensor.reshape(1, -1), decoded.reshape(1, -1)
        if per_channel and tensor.ndim > 1:
            dim = 2 if tensor.ndim == 3 else 1
            x = tensor.movedim(dim, 0).flatten(1)
            y = decoded.movedim(dim, 0).flatten(1)
        hi, lo = (x.double().amax(1, True), x.double().amin(1, True))
        step = hi / (2**bits - 1) - lo / (2**bits - 1)
        assert (_error(x, y) <= 0.51 * step + _ulps(x)).all()
        assert (y >= x.amin(1, True)).all()
        assert (y <= x.amax(1, True)).all()

    return bound


def share_of_largest(bits: int, share: Callable[[int], float]) -> Bound:
    """Bound by a share of the largest magnitude that depends on the last code."""

    def bound(tensor: torch.Tensor, decoded: torch.Tensor) -> None:
        if tensor.numel() == 0:
            return
        signed = bool((tensor < 0).any())
        last = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
        largest = tensor.double().abs().amax()
        limit = min(1.0, share(last)) * largest + _ulps(tensor)
        assert (_error(tensor, decoded) <= limit).all()
        assert (decoded.double() * tensor.double().sign() >= 0).all()

    return bound


def some_kept(tensor: torch.Tensor, decoded: torch.Tensor) -> None:
    """Assert that a value is dropped or, as a scaled half, nearly itself."""
    if tensor.numel() == 0:
        return
    relative = tensor.double().abs() * 2**-11
    least = tensor.double().abs().amax() * 2**-24
    close = _error(tensor, decoded) <= torch.maximum(relative, least) + _ulps(tensor)
    assert (close | (decoded == 0)).all()


def largest_kept(tensor: torch.Tensor, decoded: torch.Tensor) -> None:
    """Assert `some_kept`, and that none dropped exceeds one kept of its sample."""
    some_kept(tensor, decoded)
    if tensor.numel() == 0:
        return
    num_samples = tensor.shape[0] if tensor.ndim > 1 else 1
    size = tensor.reshape(num_samples, -1).double().abs()
    kept = decoded.reshape(num_samples, -1) != 0
    # A kept value may itself round to zero where the largest is 2**24 times larger.
    visible = size > size.amax() * 2**-24
    dropped = torch.where(kept | ~visible, 0.0, size).amax(1)
    least = torch.where(kept, size, float("inf")).amin(1)
    assert (dropped <= least).all()


def spectrum(least_bits: int, *, symmetric: bool = False) -> Bound:
    """Bound the L2 error of each row by half a step of its whole DCT range.

    Components divide a row's range and take at least `least_bits` bits, so this holds
    without knowledge of the split; the basis is orthonormal, so L2 errors are equal.
    A `symmetric` range is twice the largest magnitude.
    """

    def bound(tensor: torch.Tensor, decoded: torch.Tensor) -> None:
        if tensor.numel() == 0:
            return
        scale = tensor.double().abs().amax().clamp(min=1e-300)
        x, y = _spectral_rows(tensor) / scale, _spectral_rows(decoded) / scale
        axes = tuple(range(1, x.ndim))
        coefficients = scipy.fft.dctn(x.numpy(), norm="ortho", axes=axes)
        span = coefficients.max(axes) - coefficients.min(axes)
        if symmetric:
            span = 2 * np.abs(coefficients).max(axes)
        largest = np.abs(coefficients).max()
        num = x[0].numel()
        widened = span + 2**-10 * np.abs(coefficients).max(axes) + 2**-22 * largest
        step = widened / (2**least_bits - 1)
        error = (x - y).flatten(1).norm(dim=1).numpy()
        info = torch.finfo(tensor.dtype)
        ulp = info.eps + info.smallest_normal * info.eps / float(scale)
        rounding = 2**-18 * float(x.norm()) + ulp * num**0.5
        assert (error <= 0.5 * step * num**0.5 + rounding).all()

    return bound


def _spectral_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return what one spectrum covers, as documented: planes, or rows."""
    x = tensor.double()
    if tensor.ndim >= 4 and tensor.shape[-2:] != (1, 1):
        return x.reshape(-1, *tensor.shape[-2:])
    if tensor.ndim >= 4:
        return x.reshape(-1, tensor.shape[-3])
    if tensor.ndim == 3 and tensor.shape[1] != 1:
        return x.transpose(1, 2).reshape(-1, tensor.shape[1])
    return x.reshape(-1, tensor.shape[-1]) if tensor.ndim else x.reshape(1, 1)


def features_kept(feature: str) -> Bound:
    """Bound a kept feature, times its keep probability, by half its range."""

    def bound(tensor: torch.Tensor, decoded: torch.Tensor) -> None:
        if tensor.numel() == 0:
            return
        x, y = _rows(tensor, feature), _rows(decoded, feature)
        keep = _keep_probabilities(x, drop=0.5)
        span = x.amax(1, True) / 2 - x.amin(1, True) / 2
        limit = torch.finfo(tensor.dtype).max
        wanted = (x / keep).clamp(-limit, limit)
        # The keep probability comes from codes of 12 bits: 1 % covers that.
        allowed = (1.01 * span + 0.01 * x.abs()) / keep + _ulps(tensor, 4) / keep
        assert ((_error(wanted, y) <= allowed) | (y == 0).all(1, True)).all()

    return bound


def _rows(tensor: torch.Tensor, feature: str) -> torch.Tensor:
    x = tensor.double()
    if tensor.ndim < 2:
        return x.reshape(1, -1)
    if feature == "column":
        return x.flatten(1).T
    return x.movedim(2 if tensor.ndim == 3 else 1, 0).flatten(1)


def _keep_probabilities(rows: torch.Tensor, drop: float) -> torch.Tensor:
    if len(rows) == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    scale = rows.abs().amax().clamp(min=1e-300)
    # By its ends, since the deviation of equal values is rounding noise, not zero.
    deviation = (rows / scale).std(1, correction=0, keepdim=True)
    deviation = deviation * (rows.amax(1, True) > rows.amin(1, True))
    wanted = (1 - drop) * len(rows)
    spread = deviation > 0
    if int(spread.sum()) <= wanted:
        rest = (wanted - spread.sum()) / max(1, int((~spread).sum()))
        return torch.where(spread, 1.0, rest.double())
    low, high = wanted / float(deviation.sum()), float(wanted / deviation[spread].min())
    for _ in range(200):
        factor = low**0.5 * high**0.5
        if float((deviation * factor).clamp(max=1).sum()) < wanted:
            low = factor
        else:
            high = factor
    return (deviation * high).clamp(1e-300, 1)


def relative_error(nrmse: float) -> Bound:
    """Bound the L2 error by a share of the tensor's norm, within 2 percent."""

    def bound(tensor: torch.Tensor, decoded: torch.Tensor) -> None:
        if tensor.numel() == 0:
            return
        scale = tensor.double().abs().amax().clamp(min=1e-300)
        x, y = tensor.double() / scale, decoded.double() / scale
        rounding = float(_ulps(tensor, 1) / scale) * tensor.numel() ** 0.5
        allowed = (1.02 * nrmse + 2**-16) * float(x.norm()) + rounding
        assert float((x - y).norm()) <= allowed
        if not bool((tensor < 0).any()):
            assert not bool((decoded < 0).any())

    return bound


def within_step(step: float) -> Bound:
    """Bound the L2 error by that of a dead zone of 0.6 steps for every coefficient."""

    def bound(tensor: torch.Tensor, decoded: torch.Tensor) -> None:
        if tensor.numel() == 0:
            return
        scale = max(float(tensor.double().abs().amax()), step)
        error = scale * float((_error(tensor, decoded) / scale).norm())
        norm = scale * float((tensor.double() / scale).norm())
        each = 0.7 * step + float(_ulps(tensor, 1))
        assert error <= each * tensor.numel() ** 0.5 + 2**-16 * norm

    return bound


def never_louder(tensor: torch.Tensor, decoded: torch.Tensor) -> None:
    """Assert that the error is no larger than the tensor, whatever the rate."""
    relative_error(1.0)(tensor, decoded)
