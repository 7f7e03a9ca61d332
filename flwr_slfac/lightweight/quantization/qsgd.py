"""QSGD: unbiased stochastic quantization in buckets, and its variance.

A bucket of consecutive values shares one scale. With ``levels = 2**(bits - 1) - 1``::

    values (d,) --scale--> r = levels * value / scale  in [-levels, levels]
    r --up with probability frac(r), else down--> code, a whole number
    code * scale / levels  is the quantized value, and its mean is the value

Source: Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization
and Encoding" (2017), section 3; the scale is the bucket's largest magnitude (their
practical variant) or its Euclidean norm (the one that they analyse).
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F

from flwr_slfac.errors import DivergedError, SettingError

Norm = Literal["max", "l2"]

DEFAULT_BUCKET = 512
MIN_BITS, MAX_BITS = 2, 8
MAX_BUCKET = 2**16 - 1


def num_levels(bits: int) -> int:
    """Return how many levels lie above zero; as many lie below it.

    Examples
    --------
    >>> [num_levels(bits) for bits in (2, 4, 8)]
    [1, 7, 127]
    """
    return (1 << (bits - 1)) - 1


def require_qsgd(bits: int, bucket: int, norm: str = "max") -> None:
    """Raise SettingError unless the settings of a quantizer are in range."""
    if type(bits) is not int or not MIN_BITS <= bits <= MAX_BITS:
        raise SettingError(
            f"bits is {bits!r}; give a whole number {MIN_BITS} to {MAX_BITS}"
        )
    if type(bucket) is not int or not 1 <= bucket <= MAX_BUCKET:
        raise SettingError(
            f"bucket is {bucket!r}; give a whole number 1 to {MAX_BUCKET}"
        )
    if norm not in get_args(Norm):
        raise SettingError(f"norm is {norm!r}; give 'max' or 'l2'")


def qsgd_variance(bits: int, bucket: int = DEFAULT_BUCKET, norm: Norm = "max") -> float:
    r"""Return q with ``E |Q(x) - x|^2 <= q |x|^2`` for every x.

    A value at `r` levels is rounded with variance ``frac(r) (1 - frac(r))``, at most
    ``min(1/4, |r|)`` squared levels. Summed over a bucket of d values, with s levels:

    - ``"l2"``: ``min(d / (4 s^2), sqrt(d) / s)``. Lemma 3.1 of QSGD has ``d / s^2`` in
      the first place; the factor 1/4 is the largest variance of a coin.
    - ``"max"``: the largest value is exact, which leaves d - 1 of them:
      ``min((d - 1) / (4 s^2), sqrt(d - 1) / (2 s))``. The second is the largest of
      ``m sum |x_i| / (s |x|^2)`` over the rest, m being the largest magnitude.

    Parameters
    ----------
    bits : int
        2 to 8 bits a value, sign included.
    bucket : int (default: 512)
        Values that share a scale, 1 to 65535.
    norm : {"max", "l2"} (default: "max")
        What the scale is.

    Raises
    ------
    SettingError
        If a setting is out of range.

    Examples
    --------
    >>> round(qsgd_variance(8, 512), 4), round(qsgd_variance(8, 512, "l2"), 4)
    (0.0079, 0.0079)
    >>> qsgd_variance(2, 1)
    0.0
    """
    require_qsgd(bits, bucket, norm)
    s = num_levels(bits)
    if norm == "l2":
        return min(bucket / (4 * s**2), math.sqrt(bucket) / s)
    return min((bucket - 1) / (4 * s**2), math.sqrt(bucket - 1) / (2 * s))


def in_buckets(values: torch.Tensor, bucket: int) -> torch.Tensor:
    """Return values of any shape as rows (B, bucket), the last one filled with zeros.

    Half precision is widened to float32, in which all is computed.
    """
    wide = values.dtype if values.dtype is torch.float64 else torch.float32
    flat = values.detach().reshape(-1).to(wide)
    return F.pad(flat, (0, -flat.numel() % bucket)).reshape(-1, bucket)


def bucket_scales(buckets: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Return the scale (B, 1) of each row, never below its largest magnitude.

    Raises
    ------
    DivergedError
        If a row holds NaN or infinity.
    """
    if buckets.numel() == 0:
        return buckets.new_zeros(buckets.shape[0], 1)
    largest = buckets.abs().amax(1, keepdim=True)
    if not bool(torch.isfinite(largest).all()):
        raise DivergedError(
            "NaN or infinity cannot be quantized; lower the learning rate or clip "
            "gradients"
        )
    if norm == "max":
        return largest
    # Relative to the largest, squares neither overflow nor vanish.
    relative: torch.Tensor = torch.linalg.vector_norm(
        buckets / _nonzero(largest), dim=1, keepdim=True
    )
    return (largest * relative).clamp_(max=torch.finfo(buckets.dtype).max)


def stochastic_codes(
    buckets: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return whole numbers (B, bucket) in -levels to levels, right in the mean."""
    r: torch.Tensor = _in_levels(buckets, scales, bits)
    noise = torch.rand(
        r.shape, generator=generator, device=generator.device, dtype=r.dtype
    ).to(r.device)
    down = r.floor()
    # Comparing with the fraction, not flooring r + noise, which would round in float.
    up = noise < r.sub_(down)
    return down.add_(up)


def nearest_codes(
    buckets: torch.Tensor, scales: torch.Tensor, bits: int
) -> torch.Tensor:
    """Return the whole numbers (B, bucket) of the nearest levels."""
    return _in_levels(buckets, scales, bits).round_()


def code_values(codes: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """Return what codes (B, bucket) stand for; a code of `levels` is the scale."""
    return codes / num_levels(bits) * scales


def _in_levels(buckets: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    return (buckets / _nonzero(scales)).mul_(num_levels(bits))


def _nonzero(scales: torch.Tensor) -> torch.Tensor:
    return torch.where(scales == 0, 1, scales)
