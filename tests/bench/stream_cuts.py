"""Whether hundreds of cuts change a bit, or have a step taken twice.

Usage: python -m tests.bench.stream_cuts [--rounds 40] [--every 0.1] [--fragment 65536]

Trains three devices over streams through a proxy that resets every connection at random
moments, and compares weights and the number of requests with those of one process.
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


def main() -> None:
    """Print what was cut and whether it is equal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--every", type=float, default=0.1)
    parser.add_argument("--fragment", type=int, default=2**16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    counts: dict[int, int] = {}

    def count(answer: Answer, partition: int, proxy: Proxy) -> Answer:
        def counted(request: Request) -> Reply:
            counts[partition] = counts.get(partition, 0) + 1
            return answer(request)

        return counted

    run = Run(count, fragment=options.fragment, mean_s=options.every)
    start = time.perf_counter()
    result, back = run.train(options.rounds)
    seconds = time.perf_counter() - start
    local, local_back = train(LocalLink, options.rounds)
    builders.assert_same(dict(result.front), dict(local.front))
    builders.assert_same(dict(back), dict(local_back))
    assert counts == {device: options.rounds * n for device, n in REQUESTS.items()}
    print(
        f"{run.proxy.num_cuts} cuts in {seconds:.1f} s, {sum(counts.values())} "
        f"requests, {len(run.opener.openings)} sessions: bit-equal, each step once"
    )


if __name__ == "__main__":
    main()
