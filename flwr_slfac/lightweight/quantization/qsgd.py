"""QSGD: unbiased stochastic quantization in buckets, and its variance.

A bucket of consecutive values shares one scale. With ``levels = 2**(bits - 1) - 1``::

    values (d,) --scale--> r = levels * value / scale  in [-levels, levels]
    r --up with probability frac(r), else down--> code, a whole number
    code * scale / levels  is the quantized value, and its mean is the value

Source: Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization
and Encoding" (2017), section 3, in their practical variant: the scale is the bucket's
largest magnitude, not its Euclidean norm, whose variance is about 50 times as large at
512 normal values.
"""

import math

import torch
import torch.nn.functional as F

from flwr_slfac.errors import DivergedError, SettingError

# Our choice: a scale of 2 bytes then costs 0.03 bits a value, and the variance, which
# grows with the bucket, stays below 1 percent at 8 bits.
DEFAULT_BUCKET = 512
# A sign and one level is the least there is. Our choice: above 8 bits float16 serves.
MIN_BITS, MAX_BITS = 2, 8
# The header of an update holds the bucket in 2 bytes.
MAX_BUCKET = 2**16 - 1


def num_levels(bits: int) -> int:
    """Return how many levels lie above zero; as many lie below it.

    Examples
    --------
    >>> [num_levels(bits) for bits in (2, 4, 8)]
    [1, 7, 127]
    """
    return (1 << (bits - 1)) - 1


def require_qsgd(bits: int, bucket: int) -> None:
    """Raise SettingError unless the settings of a quantizer are in range."""
    if type(bits) is not int or not MIN_BITS <= bits <= MAX_BITS:
        raise SettingError(
            f"bits is {bits!r}; give a whole number {MIN_BITS} to {MAX_BITS}"
        )
    if type(bucket) is not int or not 1 <= bucket <= MAX_BUCKET:
        raise SettingError(
            f"bucket is {bucket!r}; give a whole number 1 to {MAX_BUCKET}"
        )


def qsgd_variance(bits: int, bucket: int = DEFAULT_BUCKET) -> float:
    r"""Return q with ``E |Q(x) - x|^2 <= q |x|^2`` for every x.

    A value at `r` levels is rounded with variance ``frac(r) (1 - frac(r))``, at most
    ``min(1/4, |r|)`` squared levels. Summed over a bucket of d values, with s levels:
    the largest value is exact, which leaves d - 1 of them, so q is
    ``min((d - 1) / (4 s^2), sqrt(d - 1) / (2 s))``. The second is the largest of
    ``m sum |x_i| / (s |x|^2)`` over the rest, m being the largest magnitude. After
    Lemma 3.1 of QSGD, which is for the Euclidean norm as scale; derived here.

    Parameters
    ----------
    bits : int
        2 to 8 bits a value, sign included.
    bucket : int (default: 512)
        Values that share a scale, 1 to 65535.

    Returns
    -------
    float
        At least 0.

    Raises
    ------
    SettingError
        If a setting is out of range.

    Examples
    --------
    >>> round(qsgd_variance(8, 512), 4), qsgd_variance(2, 1)
    (0.0079, 0.0)
    """
    require_qsgd(bits, bucket)
    s = num_levels(bits)
    return min((bucket - 1) / (4 * s**2), math.sqrt(bucket - 1) / (2 * s))


def in_buckets(values: torch.Tensor, bucket: int) -> torch.Tensor:
    """Return values of any shape as rows (B, bucket), the last one filled with zeros.

    Half precision is widened to float32, in which all is computed.
    """
    wide = values.dtype if values.dtype is torch.float64 else torch.float32
    flat = values.detach().reshape(-1).to(wide)
    return F.pad(flat, (0, -flat.numel() % bucket)).reshape(-1, bucket)


def bucket_scales(buckets: torch.Tensor) -> torch.Tensor:
    """Return the scale (B, 1) of each row (B, bucket): its largest magnitude.

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
    return largest


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
