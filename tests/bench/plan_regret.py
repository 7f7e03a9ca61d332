"""What `basis="auto"` costs above the best fixed choice, on tensors of many networks.

Usage: python -m tests.bench.plan_regret CAPTURED [--names TEXT]

CAPTURED is the folder that `tests.bench.plan_captures` wrote. Each tensor is coded
alone at four relative errors, by ``auto`` and by every basis with and without the
channel basis; regret is the bytes of ``auto`` over the least of all fixed choices.
Frames of all reach the same error, so bytes compare.
"""

import argparse
import itertools
import statistics
from pathlib import Path

import torch
from torch import Tensor

from flwr_slfac.codec import Waterfill, encode
from flwr_slfac.errors import SettingError
from tests.bench.plan_captures import load
from tests.bench.revision import head

ERRORS = (0.05, 0.1, 0.2, 0.5)
BASES = ("identity", "dct", "haar", "db2", "sym4")
CHANNELS = ("klt", None)
LISTED = 1.05
Case = tuple[str, float, int, int, str]


def main() -> None:
    """Print mean and worst regret, and every case above 5 percent."""
    parser = argparse.ArgumentParser()
    parser.add_argument("captured", type=Path)
    parser.add_argument("--names", default="", help="only names that hold this text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tensors = load(options.captured)
    cases = [
        regret(name, x, error)
        for name, x in tensors.items()
        if options.names in name
        for error in ERRORS
    ]
    print("\n".join(report(cases)))


def regret(name: str, x: Tensor, error: float) -> Case:
    """Return name, error, bytes of auto, the least of all, and which choice that is."""
    auto = len(encode(x, Waterfill(nrmse=error)))
    fixed = []
    for basis, channels in itertools.product(BASES, CHANNELS):
        codec = Waterfill(nrmse=error, basis=basis, channels=channels)
        try:
            fixed.append((len(encode(x, codec)), f"{basis}, {channels}"))
        except SettingError:
            # A wavelet that cannot do the sizes.
            continue
    return name, error, auto, *min(fixed)


def report(cases: list[Case]) -> list[str]:
    """Return the lines of a page."""
    shares = [auto / least for _, _, auto, least, _ in cases]
    above = sum(share > LISTED for share in shares)
    lines = [
        f"Commit {head()}, torch {torch.__version__}, {len(cases)} cases.",
        "",
        "| what | regret |",
        "|---|---|",
        f"| mean | {100 * (statistics.mean(shares) - 1):.2f} % |",
        f"| worst | {max(shares):.3f} x |",
        f"| cases above 5 % | {100 * above / len(cases):.1f} % |",
        "",
        "| tensor | error | auto, bytes | best, bytes | x | best |",
        "|---|---|---|---|---|---|",
    ]
    for share, case in sorted(zip(shares, cases, strict=True), reverse=True):
        if share > LISTED:
            name, error, auto, least, which = case
            lines.append(
                f"| {name} | {error} | {auto} | {least} | {share:.3f} | {which} |"
            )
    return lines


if __name__ == "__main__":
    main()
