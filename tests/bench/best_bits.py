"""Bytes of the coders "best" and "range" at equal error, on tensors of many networks.

Usage: python -m tests.bench.best_bits CAPTURED [--names TEXT]

CAPTURED is the folder that `tests.bench.plan_captures` wrote. Each tensor is coded
alone at four relative errors by both coders; errors are those of what was decoded.
Speeds are of processor time, on one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from flwr_slfac.codec import Waterfill, decode, encode
from flwr_slfac.codec.wire import unpack_frame
from tests.bench.plan_captures import load
from tests.bench.revision import head

ERRORS = (0.05, 0.1, 0.2, 0.5)
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """One tensor at one error: bytes, errors over the one asked for, and seconds."""

    name: str
    asked: float
    raw_bytes: int
    range_bytes: int
    best_bytes: int
    range_error: float
    best_error: float
    encode_s: float
    decode_s: float
    falls_back: bool

    @property
    def share(self) -> float:
        """Bytes of "best" over those of "range"."""
        return self.best_bytes / self.range_bytes


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("captured", type=Path)
    parser.add_argument("--names", default="", help="only names that hold this text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tensors = load(options.captured)
    cases = [
        measured(name, x, error)
        for name, x in tensors.items()
        if options.names in name
        for error in ERRORS
    ]
    print("\n".join(report(cases)))


def measured(name: str, x: Tensor, error: float) -> Case:
    """Code a tensor by both coders."""
    plain = encode(x, Waterfill(nrmse=error))
    codec = Waterfill(nrmse=error, coder="best")
    best, encode_s = timed(lambda: encode(x, codec))
    decoded, decode_s = timed(lambda: decode(best))
    errors = [
        float((x - y).norm() / x.norm()) / error for y in (decode(plain), decoded)
    ]
    raw_bytes = x.numel() * x.element_size()
    falls_back = len(unpack_frame(best, max_elements=x.numel()).sections) > 2
    sizes = raw_bytes, len(plain), len(best)
    return Case(name, error, *sizes, *errors, encode_s, decode_s, falls_back)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return what a call returns, and its seconds of processor time."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def report(cases: list[Case]) -> list[str]:
    """Return the lines of a page."""
    lines = [
        f"Commit {head()}, torch {torch.__version__}, {len(cases)} cases.",
        "",
        "| what | cases | best / range, bytes, geometric mean | worst | "
        "encode, MB/s | decode, MB/s |",
        "|---|---|---|---|---|---|",
    ]
    groups: dict[str, Callable[[Case], bool]] = {
        "all": lambda case: True,
        **{f"error {error}": _at(error) for error in ERRORS},
        "activations": lambda case: case.name.endswith("activation"),
        "gradients": lambda case: case.name.endswith("gradient"),
        "frames below 3 kB": lambda case: case.range_bytes < 3000,
        "frames of 3 kB and more": lambda case: case.range_bytes >= 3000,
    }
    for what, belongs in groups.items():
        if some := [case for case in cases if belongs(case)]:
            lines.append(summary(what, some))
    errors = [case.best_error for case in cases]
    plain = [case.range_error for case in cases]
    mean = statistics.geometric_mean
    lines += [
        "",
        f"Errors over what was asked for: best {min(errors):.4f} to {max(errors):.4f}, "
        f"geometric mean {mean(errors):.4f}; range {min(plain):.4f} to "
        f"{max(plain):.4f}, geometric mean {mean(plain):.4f}. "
        f"{sum(case.falls_back for case in cases)} frames are the range coder's.",
        "",
        "| tensor | error | range, bytes | best, bytes | x | error of best |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {case.name} | {case.asked} | {case.range_bytes} | {case.best_bytes} | "
        f"{case.share:.3f} | {case.best_error * case.asked:.4f} |"
        for case in cases
    ]
    return lines


def _at(error: float) -> Callable[[Case], bool]:
    return lambda case: case.asked == error


def summary(what: str, cases: list[Case]) -> str:
    """Return the row of some cases; speeds are of all their bytes together."""
    shares = [case.share for case in cases]
    megabytes = sum(case.raw_bytes for case in cases) / 1e6
    encode_s = sum(case.encode_s for case in cases)
    decode_s = sum(case.decode_s for case in cases)
    return (
        f"| {what} | {len(cases)} | {statistics.geometric_mean(shares):.3f} | "
        f"{max(shares):.3f} | {megabytes / encode_s:.1f} | {megabytes / decode_s:.1f} |"
    )


if __name__ == "__main__":
    main()
