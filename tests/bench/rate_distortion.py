"""Bits per value at equal relative error, on captured smashed data.

Usage: python -m tests.bench.rate_distortion CAPTURED [--streams TEXT] [--out FOLDER]

CAPTURED is the folder that `tests.bench.capture` wrote. Every codec codes the last of
three consecutive steps of every stream; where a setting does not hit an error, bits are
interpolated over the logarithm of the error, on the lower hull of the settings tried.
`Waterfill` aims at the error itself: alone, and with the streams' memory in its steady
state. Bytes are whole frames, headers included.
"""

import argparse
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flwr_slfac.codec import decode, encode, parse_codec
from flwr_slfac.codec.layout import PlaneShape
from flwr_slfac.codec.waterfill.plan import make_plan
from flwr_slfac.codec.waterfill.target import Target
from flwr_slfac.codec.waterfill.transform import energy
from flwr_slfac.codec.waterfill.trials import bases_for
from tests.bench.capture import load
from tests.bench.rate_curves import Curve, bits_at, codec_curve, outside_curves
from tests.bench.rate_report import Row, plot, report

ERRORS = (0.05, 0.1, 0.2, 0.3)
SLFAC = "slfac"
PEERS = {
    "uniform": [f"uniform(bits={b})" for b in (1, 2, 3, 4, 5, 6, 8)],
    "uniform, channel": [
        f"uniform(bits={b}, per='channel')" for b in (1, 2, 3, 4, 5, 6, 8)
    ],
    "powerquant": [f"powerquant(bits={b})" for b in (2, 3, 4, 5, 6, 8)],
    "easyquant": [f"easyquant(bits={b})" for b in (2, 3, 4, 5, 6, 8)],
    "topk": [f"topk(fraction={f})" for f in (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)],
    "randtopk": [f"randtopk(fraction={f})" for f in (0.1, 0.3, 0.5, 0.7, 0.9)],
    "splitfc": [f"splitfc(drop={d}, bits=8)" for d in (0.01, 0.1, 0.3, 0.5)],
    "float16": ["float16"],
}


def main() -> None:
    """Measure every stream, write tables and plots."""
    parser = argparse.ArgumentParser()
    parser.add_argument("captured", type=Path)
    parser.add_argument("--streams", default="", help="only names that hold this text")
    parser.add_argument("--out", type=Path, default=Path("tests/bench/results"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    curves: dict[str, list[Curve]] = {}
    for name, steps in load(options.captured).items():
        if options.streams in name:
            measured, tried = measure(name, steps)
            rows += measured
            for codec, curve in tried.items():
                curves.setdefault(codec, []).append(curve)
            print(name, len(rows), flush=True)
    text = report(rows, ERRORS)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "rate_distortion.md").write_text(heading() + text)
    plot(rows, curves, options.out / "rate_distortion.png")


def measure(name: str, steps: list[Tensor]) -> tuple[list[Row], dict[str, Curve]]:
    """Return a row for each error, and the curves of the other codecs."""
    x = steps[-1]
    curves = {SLFAC: codec_curve(x, slfac_settings())}
    curves |= {peer: codec_curve(x, texts) for peer, texts in PEERS.items()}
    curves |= outside_curves(x, ERRORS)
    rows = []
    for error in ERRORS:
        others = {codec: bits_at(curve, error) for codec, curve in curves.items()}
        rows.append(water(name, steps, error, others))
    return rows, curves


def water(
    name: str, steps: list[Tensor], error: float, others: dict[str, float | None]
) -> Row:
    """Measure `Waterfill` at one error: alone, and in its steady state."""
    x = steps[-1]
    codec = parse_codec(f"waterfill(nrmse={error})")
    alone = encode(x, codec)
    memory: dict[str, Tensor] = {}
    sizes = [len(encode(step, codec, memory=memory)) for step in steps]
    decoded = decode(alone)
    got = float((decoded.double() - x.double()).norm() / x.double().norm())
    bits = 8 / x.numel()
    asked = encode(x, parse_codec(f"waterfill(bits={bits * len(alone)!r})"))
    return Row(
        name=name,
        error=error,
        alone=bits * len(alone),
        steady=bits * sizes[-1],
        got=got,
        rate_hit=len(asked) / len(alone),
        bound=gaussian_bound(x, got),
        others=others,
    )


def gaussian_bound(x: Tensor, error: float) -> float:
    """Return the bits per value that reverse water-filling needs for the plan's bands.

    A band is the coefficients to which the plan gives one energy; each is taken for
    Gaussian with the band's own mean square. The level is that at which the distortion
    is the measured one.
    """
    shape = PlaneShape.of(x.shape)
    planes = shape.to_planes(x.contiguous())
    total = energy(planes)
    target = Target(total, distortion=error**2 * total)
    bases = bases_for("auto", shape.sizes)
    plan = make_plan(planes, shape, target, {}, None, bases, use_klt=True)
    if plan.left_out > target.max_left_out(x.numel()):
        plan = make_plan(planes, shape, target, {}, None, bases, use_klt=False)
    frequencies, columns = plan.energies
    bands = (frequencies[:, None] + columns).reshape(-1)
    squares = plan.coefficients.double().square().reshape(-1).numpy()
    _, bands, counts = np.unique(bands, return_inverse=True, return_counts=True)
    variances = np.bincount(bands, squares) / counts
    wanted = max(error**2 * total - plan.left_out, 1e-12 * total)
    low, high = 0.0, float(variances.max())
    for _ in range(60):
        level = (low + high) / 2
        if float((counts * np.minimum(variances, level)).sum()) < wanted:
            low = level
        else:
            high = level
    bits = 0.5 * np.log2(np.maximum(variances / high, 1.0))
    return float((counts * bits).sum()) / x.numel()


def slfac_settings() -> Iterable[str]:
    """Return the settings over which SL-FAC may be its best."""
    widths = [(1, 2), (1, 4), (2, 4), (2, 6), (2, 8), (3, 8), (4, 8), (5, 8)]
    return [
        f"slfac(theta={theta}, bit_widths={pair})"
        for theta in (0.5, 0.7, 0.9, 0.97)
        for pair in widths
    ]


def heading() -> str:
    """Return the command, the commit and the class of machine."""
    commit = _run("git", "rev-parse", "--short", "HEAD")
    dirty = " dirty" if _run("git", "status", "--porcelain") else ""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, CPU only"
    return (
        "# Rate and distortion\n\n"
        f"Machine: {machine}. Commit {commit}{dirty}, torch {torch.__version__}.\n\n"
        "`python -m tests.bench.capture CAPTURED`, then "
        "`python -m tests.bench.rate_distortion CAPTURED`\n\n"
    )


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return result.stdout.strip()


if __name__ == "__main__":
    main()
