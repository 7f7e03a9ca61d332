"""Whether kill -9 at any moment loses or repeats a step of a real deployment.

Usage: python -m tests.bench.kills [--kinds supernode ...] [--kills 50]

Each kind has a deployment of its own: a SuperLink with TLS, known nodes and a database,
two SuperNodes, streams. Most of the time is waiting, so that several may run at once
(``--at-once``) where there are cores for some ten processes each. What is killed, and
what has to hold then, is in tests/flower/killing.py.
"""

import argparse
import logging
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from tests.flower.deployed import Deployed
from tests.flower.killing import KINDS, Killings, Kind, until

# Kills in one training: the devices' leave rounds to train, the servers' resume.
_EACH = {"supernode": 3, "clientapp": 3, "serverapp": 3, "superlink": 3}


def run_kind(
    kind: Kind,
    num_kills: int,
    seed: int,
    deployed: Deployed,
    places: threading.Semaphore,
    is_over: threading.Event,
) -> None:
    """Kill one kind, saying how far it has come."""
    with places:
        start = time.monotonic()
        deployed.start()
        killings = Killings(deployed, kind, seed)
        found = killings.finding

        def say() -> None:
            if is_over.is_set():
                return  # what was killed now was killed by the end of this bench
            minutes = (time.monotonic() - start) / 60
            print(
                f"| {kind} | {found.num_kills} | {found.num_runs} | "
                f"{found.num_losses} | {found.num_again} | {len(found.faults)} | "
                f"{minutes:.0f} |",
                *found.faults,
                flush=True,
            )

        until(killings, num_kills, _EACH[kind], say)
        deployed.stop()


def main() -> None:
    """Print a row after each training; the last one of a kind is its result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    print(folder)
    print("| kind | kills | trainings | losses | begun again | faults | minutes |")
    print("|---|---|---|---|---|---|---|")
    threads, places = [], threading.Semaphore(options.at_once)
    deployments, is_over = [], threading.Event()
    # What was started here is ended, also when this process is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        for number, kind in enumerate(options.kinds):
            own = folder / kind
            own.mkdir()
            deployments.append(Deployed(own))
            seed = 1000 * options.seed + number
            arguments = (kind, options.kills, seed, deployments[-1], places, is_over)
            threads.append(
                threading.Thread(target=run_kind, args=arguments, daemon=True)
            )
            threads[-1].start()
        for thread in threads:
            thread.join()
    finally:
        is_over.set()
        for deployed in deployments:
            deployed.stop()


if __name__ == "__main__":
    main()
