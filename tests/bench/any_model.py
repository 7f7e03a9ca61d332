"""Law 1 on thousands of drawn models, losses, optimizers, schemes and sizes.

Usage: python -m tests.bench.any_model [--first 0] [--draws 5000]

Each draw is trained through the split and by a loop over the whole model: see
`tests.split.drawn_runs`. Printed are how many ended in equal bits, why others were
refused, and each that did neither.
"""

import argparse
import logging
import time
import warnings
from collections import Counter

import torch

from tests.split.drawn_runs import compare


def main() -> None:
    """Print what became of the draws."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--draws", type=int, default=5000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    start, outcomes = time.perf_counter(), Counter[str]()
    for seed in range(options.first, options.first + options.draws):
        try:
            outcome = compare(seed)
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        kind = outcome.partition("'")[0].partition("(")[0].strip() or "equal"
        outcomes[kind if kind.startswith(("equal", "refused")) else "wrong"] += 1
        if outcome and not outcome.startswith("refused: "):
            print(f"draw {seed}: {outcome.partition(chr(10))[0][:300]}", flush=True)
    for kind, number in outcomes.most_common():
        print(f"{number:6} {kind}")
    print(f"{time.perf_counter() - start:.0f} s, torch {torch.__version__}")


if __name__ == "__main__":
    main()
