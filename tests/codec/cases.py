"""What the contract suite and the fuzzer put through the codecs.

`CASES` has at least one setting of every registered codec, with the error bound that
its docstring states. Add an entry when you add a codec, then write its goldens with
``python -m tests.codec.goldens.write``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from flwr_slfac.codec import (
    Codec,
    easyquant,
    encode,
    feedback,
    parse_codec,
    powerquant,
    slfac,
    sparse,
    splitfc,
    uniform,
    waterfill,
)
from tests.codec import bounds
from tests.codec.bounds import Bound

__all__ = ["CASES", "Case", "float_tensors", "golden_tensor", "tensors"]

# Imported to be registered.
_ = easyquant, feedback, powerquant, slfac, sparse, splitfc, uniform, waterfill

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)


@dataclass(frozen=True)
class Case:
    """One setting of one codec.

    Parameters
    ----------
    text : str
        The codec, as `parse_codec` reads it.
    bound : callable
        Takes the tensor and what was decoded; asserts the documented bound.
    largest : float
        Finite magnitudes above this may be refused.
    exact_bytes : bool
        Whether bytes are equal on every machine and number of threads. A codec whose
        codes follow the last bits of a float transform says False: its bytes are then
        only compared on one machine and one number of threads, elsewhere what they
        decode to.
    """

    text: str
    bound: Bound
    largest: float = float("inf")
    exact_bytes: bool = True

    @property
    def codec(self) -> Codec:
        """The codec that the text describes."""
        return parse_codec(self.text)

    @property
    def file_name(self) -> str:
        """The text as part of a file name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.text.lower()).strip("-")

    def encode(self, tensor: torch.Tensor, seed: int = 7) -> bytes:
        """Return the tensor's frame."""
        return encode(tensor, self.codec, seed=seed)


CASES = (
    Case("identity", bounds.exact),
    Case("float16", bounds.rounded_to(torch.float16), largest=65504.0),
    Case("bfloat16", bounds.rounded_to(torch.bfloat16), largest=3.38e38),
    Case("integers", bounds.exact),
    Case("uniform", bounds.half_step(8)),
    Case("uniform(bits=3, per='channel')", bounds.half_step(3, per_channel=True)),
    Case("uniform(bits=16)", bounds.half_step(16)),
    Case("powerquant", bounds.share_of_largest(8, lambda last: 2 / last)),
    Case("powerquant(bits=3)", bounds.share_of_largest(3, lambda last: 2 / last)),
    Case("easyquant", bounds.share_of_largest(8, lambda last: max(0.5, 1 / last))),
    Case(
        "easyquant(bits=2)", bounds.share_of_largest(2, lambda last: max(0.5, 1 / last))
    ),
    Case("topk", bounds.largest_kept),
    Case("topk(fraction=0.5, values='exact')", bounds.largest_kept),
    Case("randtopk(alpha=0.3)", bounds.some_kept),
    Case("splitfc", bounds.features_kept("channel")),
    Case("splitfc(bits=2, feature='column')", bounds.features_kept("column")),
    Case("slfac", bounds.spectrum(2), exact_bytes=False),
    Case("slfac(theta=0.5, bit_widths=(4, 6))", bounds.spectrum(4), exact_bytes=False),
    Case("slfac(components='deviation')", bounds.spectrum(2), exact_bytes=False),
    Case(
        "slfac(components='magnitude', widths='powerquant')",
        bounds.spectrum(2, symmetric=True),
        exact_bytes=False,
    ),
    Case("waterfill", bounds.relative_error(0.1), exact_bytes=False),
    Case("waterfill(nrmse=0.5)", bounds.relative_error(0.5), exact_bytes=False),
    Case("waterfill(noise=0.1)", bounds.relative_error(0.1**0.5), exact_bytes=False),
    Case("waterfill(nrmse=0.1, bits=0.5)", bounds.never_louder, exact_bytes=False),
    Case("waterfill(bits=2.0)", bounds.never_louder, exact_bytes=False),
    Case(
        "waterfill(step=0.25)",
        bounds.within_step(0.25),
        largest=2.0**20,
        exact_bytes=False,
    ),
    Case(
        "waterfill(nrmse=0.2, coder='best')",
        bounds.relative_error(0.2),
        exact_bytes=False,
    ),
    Case(
        "waterfill(nrmse=0.2, basis='identity', channels=None)",
        bounds.relative_error(0.2),
        exact_bytes=False,
    ),
    Case("feedback(inner=topk(fraction=0.25))", bounds.largest_kept),
    Case("feedback(inner=uniform(bits=4))", bounds.half_step(4)),
    Case("temporal(inner=uniform(bits=4))", bounds.half_step(4)),
    Case(
        "temporal(inner=waterfill(nrmse=0.2), bits=8)",
        bounds.relative_error(0.2),
        exact_bytes=False,
    ),
)


def float_tensors(dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors of every shape and kind that a codec must take."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    info = torch.finfo(dtype)
    maps = normal(4, 3, 8, 8)
    yield "maps", maps
    yield "maps after relu", maps.relu()
    yield "odd maps", normal(3, 2, 7, 5)
    yield "maps of one value", normal(2, 5, 1, 1)
    yield "tokens", normal(2, 5, 6)
    yield "vectors", normal(7, 11)
    yield "one sample", normal(1, 9)
    yield "vector", normal(13)
    yield "scalar", normal()
    yield "five dimensions", normal(2, 3, 2, 3, 2)
    yield "no values", torch.zeros(0, dtype=dtype)
    yield "no samples", torch.zeros(0, 3, 4, 4, dtype=dtype)
    yield "no features", torch.zeros(2, 0, dtype=dtype)
    yield "no tokens", torch.zeros(2, 0, 5, dtype=dtype)
    yield "constant", torch.full((2, 3, 4, 4), 3.3, dtype=dtype)
    yield "negative constant", torch.full((3, 4), -0.7, dtype=dtype)
    yield "zeros", torch.zeros(2, 3, 4, 4, dtype=dtype)
    yield "negative zeros", -torch.zeros(5, 4, dtype=dtype)
    yield "outlier", torch.cat([normal(4, 20), torch.full((1, 20), 1e4, dtype=dtype)])
    yield "subnormal", (normal(2, 3, 4, 4) * (info.smallest_normal / 8)).to(dtype)
    yield "huge", normal(2, 3, 4, 4).sign() * info.max
    yield "huge and small", torch.where(normal(3, 8) > 1, info.max, normal(3, 8))
    yield "offset", (normal(2, 3, 4, 4).double() + 1000).to(dtype)


def integer_tensors(dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield integer tensors of every shape and the dtype's extremes."""
    yield "labels", (torch.arange(60).reshape(3, 4, 5) % 10).to(dtype)
    yield "scalar", torch.tensor(1).to(dtype)
    yield "no values", torch.zeros(0, 3, dtype=dtype)
    if dtype is not torch.bool:
        info = torch.iinfo(dtype)
        yield "extremes", torch.tensor([info.min, 0, info.max], dtype=dtype)


def tensors(codec: Codec) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a name and a tensor, of each dtype that the codec takes."""
    for dtypes, make in ((FLOATS, float_tensors), (INTEGERS, integer_tensors)):
        for dtype in dtypes:
            if dtype in codec.dtypes:
                for name, tensor in make(dtype):
                    yield f"{name}, {dtype}", tensor


def golden_tensor(codec: Codec) -> torch.Tensor:
    """Return a tensor whose bits are the same everywhere: made of integers alone."""
    index = torch.arange(2 * 3 * 6 * 5)
    noise = index * 2654435761 % 2**16 - 2**15
    if torch.float32 not in codec.dtypes:
        return noise.to(codec.dtypes[-2]).reshape(2, 3, 6, 5)
    wave = (index % 30 - 15).abs() * 2**11
    scale = 2.0 ** -(12 + index // 30 % 3)
    return ((noise // 4 + wave).float() * scale).reshape(2, 3, 6, 5)
