"""Quantized gradients: the front's optimizer sees only a few levels a value."""

from collections.abc import Iterable

import torch
from torch import nn

from flwr_slfac.errors import DivergedError, SettingError
from flwr_slfac.lightweight.quantization.qsgd import (
    DEFAULT_BUCKET,
    bucket_scales,
    code_values,
    in_buckets,
    require_qsgd,
    stochastic_codes,
)


def quantize(
    values: torch.Tensor,
    bits: int,
    generator: torch.Generator,
    bucket: int = DEFAULT_BUCKET,
) -> torch.Tensor:
    """Round values to a few levels, unbiasedly.

    QSGD, as the module `qsgd` draws it; its variance is that of :func:`qsgd_variance`.
    Zeros stay zero, so a pruned weight's gradient does. The mean is the value to
    2**-24 of a level, the grain of noise in float32; in float16 and bfloat16 the levels
    are rounded to the dtype.

    Parameters
    ----------
    values : Tensor of any shape
        Floating and finite.
    bits : int
        2 to 8 bits a value, sign included.
    generator : torch.Generator
        Source of the noise, on any device; the noise is drawn there.
    bucket : int (default: 512)
        Consecutive values, in C order, that share a scale; 1 to 65535.

    Returns
    -------
    Tensor
        Of the dtype, shape and device of `values`.

    Raises
    ------
    SettingError
        If a setting is out of range.
    DivergedError
        If a value is NaN or infinite.

    Examples
    --------
    >>> g = torch.Generator().manual_seed(0)
    >>> quantize(torch.tensor([-2.0, 0.0, 2.0]), 2, g)
    tensor([-2.,  0.,  2.])
    """
    require_qsgd(bits, bucket)
    buckets = in_buckets(values, bucket)
    scales = bucket_scales(buckets)
    codes = stochastic_codes(buckets, scales, bits, generator)
    flat = code_values(codes, scales, bits).reshape(-1)[: values.numel()]
    return flat.reshape(values.shape).to(values.dtype)


def quantize_gradients(
    parameters: Iterable[nn.Parameter],
    bits: int,
    generator: torch.Generator,
    bucket: int = DEFAULT_BUCKET,
) -> None:
    """Quantize the gradients of parameters in place, before the optimizer's step.

    Every gradient begins a new bucket. The noise depends on the generator's state and
    on the order and shapes of the gradients only, so a seed of (seed, round, device,
    step, role) makes the step repeatable.

    Parameters
    ----------
    parameters : iterable of nn.Parameter
        Those without a gradient are passed over.
    bits, generator, bucket
        As in `quantize`.

    Raises
    ------
    SettingError
        If a setting is out of range, or a gradient is sparse.
    DivergedError
        If a gradient holds NaN or infinity; the message names its shape.

    Examples
    --------
    >>> layer = nn.Linear(3, 2)
    >>> layer(torch.randn(4, 3)).sum().backward()
    >>> quantize_gradients(layer.parameters(), 2, torch.Generator().manual_seed(0))
    >>> layer.weight.grad.unique().numel() <= 3
    True
    """
    require_qsgd(bits, bucket)
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.layout is not torch.strided:
            raise SettingError(
                f"a gradient of layout {gradient.layout} cannot be quantized; build "
                "the embedding with sparse=False"
            )
        try:
            gradient.copy_(quantize(gradient, bits, generator, bucket))
        except DivergedError as error:
            raise DivergedError(
                f"the gradient of a parameter of shape {tuple(parameter.shape)}: "
                f"{error}"
            ) from error
