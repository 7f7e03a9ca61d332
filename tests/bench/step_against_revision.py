"""How fast a split step is against that of another revision, in process.

Usage: python -m tests.bench.step_against_revision OTHER-TREE [--pairs 60] [--threads 2]

OTHER-TREE is a checkout of the other revision (`git worktree add`). Two processes, one
with each package, take one step at a time in turn, in alternating order, so that the
noise of a shared machine hits both. Printed are the median and quartiles of the ratio
this / other, of wall and of processor time.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CUTS = ("bn1", "layer1", "layer3")


def main() -> None:
    """Print the ratio of step times at three cuts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.threads)
        return
    if options.other is None:
        parser.error("give a checkout of the other revision")
    print(f"{'cut':8} {'this s':>8} {'wall':>7} {'quartiles':>15} {'cpu':>7}")
    for at in CUTS:
        compare(at, options.other.resolve(), options.pairs, options.threads)


def compare(at: str, other: Path, pairs: int, threads: int) -> None:
    """Print one line for a cut."""
    both = [worker(tree, at, threads) for tree in (ROOT, other)]
    for process in both:
        step(process)
    rows: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for i in range(pairs):
        order = (0, 1) if i % 2 else (1, 0)
        times = {which: step(both[which]) for which in order}
        rows.append((times[0], times[1]))
    wall = [this[0] / that[0] for this, that in rows]
    cpu = statistics.median(this[1] / that[1] for this, that in rows)
    low, median, high = statistics.quantiles(wall, n=4)
    print(
        f"{at:8} {statistics.median(this[0] for this, _ in rows):8.4f} {median:7.3f} "
        f"{f'{low:.3f}-{high:.3f}':>15} {cpu:7.3f}",
        flush=True,
    )
    for process in both:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def worker(tree: Path, at: str, threads: int) -> subprocess.Popen[str]:
    """Start a process that trains with the package of a tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.Popen(
        [sys.executable, __file__, "--serve", at, "--threads", str(threads)],
        cwd=tree, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def step(process: subprocess.Popen[str]) -> tuple[float, float]:
    """Let a process take one step; return its wall and processor seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("step\n")
    process.stdin.flush()
    wall, cpu = process.stdout.readline().split()
    return float(wall), float(cpu)


def serve(at: str, threads: int) -> None:
    """Take a step for each line that comes in, and tell how long it took."""
    import torch

    torch.set_num_threads(threads)
    from tests.bench.overhead_in_process import pair

    _, split = pair(at)
    for _ in sys.stdin:
        start, before = time.perf_counter(), time.process_time()
        split()
        print(time.perf_counter() - start, time.process_time() - before, flush=True)


if __name__ == "__main__":
    main()
