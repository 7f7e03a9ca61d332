"""Whether hundreds of cut, late and repeated connections change a bit, or a count.

Usage: python -m tests.bench.stream_cuts [--rounds 40] [--every 0.1]

Trains three devices over streams through a proxy that harms every connection at random
moments, and compares weights and the number of requests with those of one process:

- cut: connections are reset;
- late: connections are cut, and what was under way is delivered after the next ones;
- repeated: what was said is said again in connections beside;
- slow: cut, with all that passes in fragments of 2,000 bytes at most, held back for up
  to 5 ms each;
- all: each of these by chance.
"""

import argparse
import logging
import time

import torch

from flwr_slfac.split import LocalLink
from flwr_slfac.transport import Reply, Request
from flwr_slfac.transport.stream import Answer
from tests.split import builders
from tests.transport.proxy import Proxy
from tests.transport.test_faults import REQUESTS, Run, train

SLOW = {"fragment": 2000, "delay_s": 0.005}
KINDS = {
    "cut": {"harms": ["cut"]},
    "late": {"harms": ["strand"]},
    "repeated": {"harms": ["replay", "cut"]},
    "slow": {"harms": ["cut"], **SLOW},
    "all": {"harms": ["cut", "strand", "replay"], **SLOW},
}


def measure(kind: str, num_rounds: int, every: float) -> str:
    """Train, and say what was harmed; raises if anything differs."""
    counts: dict[int, int] = {}

    def count(answer: Answer, partition: int, proxy: Proxy) -> Answer:
        def counted(request: Request) -> Reply:
            counts[partition] = counts.get(partition, 0) + 1
            return answer(request)

        return counted

    run = Run(count, mean_s=every, **KINDS[kind])  # type: ignore[arg-type]
    start = time.perf_counter()
    result, back = run.train(num_rounds)
    seconds = time.perf_counter() - start
    lost = [each.lost for each in result.rounds if each.lost]
    assert not lost
    assert not run.opener.errors
    local, local_back = train(LocalLink, num_rounds)
    builders.assert_same(dict(result.front), dict(local.front))
    builders.assert_same(dict(back), dict(local_back))
    assert counts == {device: num_rounds * n for device, n in REQUESTS.items()}
    harmed = run.proxy.counts
    return (
        f"| {kind} | {harmed['cut']} | {harmed['strand']} | {harmed['replay']} | "
        f"{sum(counts.values())} | {len(run.opener.openings)} | {seconds:.1f} |"
    )


def main() -> None:
    """Print what was harmed, a row a kind."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--every", type=float, default=0.1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    print("| kind | cut | late | repeated | requests | sessions | seconds |")
    print("|---|---|---|---|---|---|---|")
    for kind in options.kinds:
        print(measure(kind, options.rounds, options.every), flush=True)


if __name__ == "__main__":
    main()
