"""How fast the codecs are against those of another revision, one thread, in one run.

Usage: python -m tests.bench.codec_against_revision OTHER-TREE [--rounds 15] [--alone]

OTHER-TREE is a checkout of the other revision (`git worktree add`) with its extension
built. Two processes, one with each package, code in turn, so that the noise of a shared
machine hits both; memcpy runs in both, as a measure of that noise. Times are processor
seconds. With ``--alone`` no frame knows of the ones before it. Printed are median and
quartiles of each, the ratio of medians, and whether the frames are the same.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CODECS = ("memcpy", "slfac", "waterfill(nrmse=0.1)")
SIZES = (2**16, 2**20, 2**23)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.alone)
    if options.other is None:
        parser.error("give a checkout of the other revision")
    both = [worker(tree, options.alone) for tree in (options.other.resolve(), ROOT)]
    times: dict[tuple[str, int, str], tuple[list[float], list[float]]] = {}
    digests: dict[tuple[str, int, int], set[str]] = {}
    for number in range(options.rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            for name, size, way, seconds, digest in turn(both[which]):
                times.setdefault((name, size, way), ([], []))[which].append(seconds)
                digests.setdefault((name, size, number), set()).add(digest)
    print("| codec | MB | way | other ms | quartiles | this ms | quartiles | MB/s |"
          " times as fast | same frames |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (name, size, way), (other, this) in times.items():
        cells = [name, f"{size / 1e6:.2f}", way, *spread(other), *spread(this)]
        median = statistics.median(this)
        cells.append(f"{size / median / 1e6:.0f}")
        cells.append(f"{statistics.median(other) / median:.2f}")
        found = [digests[name, size, number] for number in range(options.rounds)]
        cells.append("yes" if all(len(some) == 1 for some in found) else "no")
        print("| " + " | ".join(cells) + " |")
    for process in both:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    return None


def spread(seconds: list[float]) -> list[str]:
    """Return the median and the quartiles in milliseconds."""
    low, median, high = (1e3 * q for q in statistics.quantiles(seconds, n=4))
    return [f"{median:.2f}", f"{low:.2f} - {high:.2f}"]


def worker(tree: Path, alone: bool) -> subprocess.Popen[str]:
    """Start a process that codes with the package of a tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.Popen(
        [sys.executable, __file__, "--serve", *["--alone"] * alone],
        cwd=tree, env=environment, text=True, stderr=subprocess.DEVNULL,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def turn(process: subprocess.Popen[str]) -> Any:
    """Let a process code everything once; return what it tells."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("turn\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("["):
            return json.loads(line)
    raise RuntimeError("the process has ended")


def serve(alone: bool) -> None:
    """Code everything for each line that comes in, and tell how long it took."""
    from hashlib import sha256

    import torch

    torch.set_num_threads(1)
    from flwr_slfac.codec import decode, encode, parse_codec
    from tests.bench.codec_speed import smashed

    tensors = {size: smashed(size) for size in SIZES}
    # What each side of each stream remembers; the first frames fill it.
    memories: dict[Any, tuple[dict, dict]] = {}  # type: ignore[type-arg]
    for _ in sys.stdin:
        told = []
        for size, x in tensors.items():
            for name in CODECS:
                if name == "memcpy":
                    told += [(name, size, "both", timed(x.clone)[0], "")]
                    continue
                codec = parse_codec(name)
                kept = {} if alone else memories
                mine, theirs = kept.setdefault((name, size), ({}, {}))
                spent, frame = timed(lambda: encode(x, codec, memory=mine))  # noqa: B023
                digest = sha256(frame).hexdigest()
                told.append((name, size, "encode", spent, digest))
                spent, _ = timed(lambda: decode(frame, memory=theirs))  # noqa: B023
                told.append((name, size, "decode", spent, digest))
        print(json.dumps(told), flush=True)


def timed(work: Any) -> tuple[float, Any]:
    """Return processor seconds, and what the work returned."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


if __name__ == "__main__":
    main()
