"""``python -m simulation.measure``: this machine as a device, written as a tier.

Speeds are medians of repeated runs on one thread count, after a warm-up: of matrix
products and of the reference model's forward and backward (`simulation.reference`),
with operations counted as training counts them, and of a codec on its smashed data.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from flwr_slfac import SlfacError, cut
from flwr_slfac.codec import decode, encode, parse_codec
from flwr_slfac.lightweight import step_cost
from simulation.profiles import FIGURES, LINK_FIGURES
from simulation.reference import INPUT_SHAPE, small_resnet
from simulation.tiers import read_tier

# A matrix that fits no cache of a small device's processor, yet its memory: 1 MB.
_MATRIX = 512
_CUT = "layer1"
_ESTIMATE = "our estimate: not measured by this program"
_ESTIMATES = {
    "transmit_dbm": 20.0,
    "receive_w": 0.5,
    "compute_w": 5.0,
    "battery_j": float("inf"),
    "availability": 1.0,
}


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Parameters
    ----------
    matmul_flop_per_s, forward_flop_per_s, backward_flop_per_s : float
        Of a 512 x 512 matrix product, and of the reference model's front.
    encode_byte_per_s, decode_byte_per_s : float
        Raw float32 bytes of smashed data through the codec.
    memory_bytes : float
        Physical memory of the machine.
    conditions : str
        Under which.
    """

    matmul_flop_per_s: float
    forward_flop_per_s: float
    backward_flop_per_s: float
    encode_byte_per_s: float
    decode_byte_per_s: float
    memory_bytes: float
    conditions: str


def measure(
    codec: str = "waterfill", batch_size: int = 32, repeats: int = 9
) -> Measured:
    """Measure this machine.

    Parameters
    ----------
    codec : str
        As `flwr_slfac.codec.parse_codec` reads it.
    batch_size : int
        Of the reference model's front, its first stage.
    repeats : int
        Runs of which the median is taken.

    Raises
    ------
    SlfacError
        If the codec is not known.
    """
    own, inputs = parse_codec(codec), torch.randn(batch_size, *INPUT_SHAPE)
    front = cut(small_resnet(), at=_CUT, example=inputs).front.train()
    cost = step_cost(front, front, inputs, saved_bits=32)
    matrix = torch.randn(_MATRIX, _MATRIX)
    matmul_s = _median_s(lambda: matrix @ matrix, repeats)
    forward_s = _median_s(lambda: front(inputs), repeats)
    both_s = _median_s(lambda: front(inputs).sum().backward(), repeats)
    smashed = front(inputs).detach()
    frame = encode(smashed, own)
    raw_bytes = smashed.numel() * 4
    encode_s = _median_s(lambda: encode(smashed, own), repeats)
    decode_s = _median_s(lambda: decode(frame), repeats)
    conditions = (
        f"measured by python -m simulation.measure: {platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of "
        f"{repeats}, front of the reference model to {_CUT}, batch {batch_size}, "
        f"codec {codec}"
    )
    return Measured(
        2 * _MATRIX**3 / matmul_s,
        cost.forward_flops / forward_s,
        # A backward can be faster than the clock's noise on tiny batches only.
        cost.backward_flops / max(both_s - forward_s, 0.05 * both_s),
        raw_bytes / encode_s,
        raw_bytes / decode_s,
        _memory_bytes(),
        conditions,
    )


def _median_s(work: Callable[[], object], repeats: int) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _memory_bytes() -> float:
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def tier_text(measured: Measured, name: str) -> str:
    """Return a tier file of a measurement; what was not measured says so.

    Parameters
    ----------
    measured : Measured
        The measurement.
    name : str
        Name of the tier.
    """
    lines = [f'name = "{name}"', f"# Matrix product: {measured.matmul_flop_per_s:.4g}."]
    for key in FIGURES:
        if key in LINK_FIGURES:
            continue
        guess = _ESTIMATES.get(key)
        value = getattr(measured, key) if guess is None else guess
        source = measured.conditions if guess is None else _ESTIMATE
        lines += ["", f"[{key}]", f"value = {value!r}", f'source = "{source}"']
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m simulation.measure")
    parser.add_argument("--name", default="measured", help="name of the tier")
    parser.add_argument("--codec", default="waterfill", help="as in run-config")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, help="TOML to write; else it is printed")
    own = parser.parse_args(arguments)
    try:
        measured = measure(own.codec, own.batch_size, own.repeats)
        text = tier_text(measured, own.name)
        if own.output is None:
            print(text, end="")
        else:
            own.output.write_text(text, encoding="utf-8")
            read_tier(own.output)
    except SlfacError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
