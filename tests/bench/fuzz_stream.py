"""Fuzz a live service of streams: a run beside it ends in the right bits, all the same.

Usage: python -m tests.bench.fuzz_stream [--seconds 600] [--threads 3] [--seed 0]

Hostile peers hold dialogues that were valid once: envelopes dropped, repeated,
swapped, fields altered or cut, sizes huge or negative, noise, with a token or without;
swapped, fields altered or cut, sizes huge or negative, noise; with a token and without
again and again, and each training is compared with one in a process.
"""

import argparse
import logging
import threading
import time
from collections import Counter
from dataclasses import dataclass

import torch

from flwr_slfac.transport.stream import StreamService
from tests.transport.beside import Beside
from tests.transport.fuzzing import Hostile, Watch, resident_bytes
from tests.transport.loopback import LOOPBACK


@dataclass
class Found:
    """What came of fuzzing.

    Parameters
    ----------
    counts : Counter
        Dialogues, and what was read, by what came of them.
    escaped : list of str
        Errors that were logged or not caught.
    num_trainings : int
        Trainings beside, all of them right.
    num_dialogues : int
        All of them.
    resident_bytes : list of int
        Memory of the process, fuzzer included, after each tenth of the time.
    more_threads : int
        Threads at the end but those at the beginning.
    """

    counts: Counter[str]
    escaped: list[str]
    num_trainings: int
    num_dialogues: int
    resident_bytes: list[int]
    more_threads: int


def fuzz(seconds: float, num_threads: int, seed: int) -> Found:
    """Fuzz a service for a while."""
    service = StreamService(LOOPBACK)
    run, watch = Beside(service), Watch(service)
    hostile = [Hostile(service, 100 * seed + number) for number in range(num_threads)]
    run.train()
    before, start = threading.active_count(), time.monotonic()
    deadline = start + seconds
    threads = [threading.Thread(target=h.run, args=(deadline,)) for h in hostile]
    for thread in threads:
        thread.start()
    num_trainings, memory = 0, list[int]()
    while time.monotonic() < deadline or not num_trainings:
        run.train()
        num_trainings += 1
        if time.monotonic() > start + seconds * (1 + len(memory)) / 10:
            memory.append(resident_bytes())
    for thread in threads:
        thread.join()
    run.train()
    more_threads = threading.active_count() - before
    run.close()
    watch.close()
    counts = sum((each.counts for each in hostile), Counter[str]())
    num_dialogues = counts.total()
    counts += watch.counts
    return Found(
        counts, watch.escaped, num_trainings, num_dialogues, memory, more_threads
    )


def main() -> None:
    """Print what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    found = fuzz(options.seconds, options.threads, options.seed)
    print(f"{found.num_dialogues} dialogues in {options.seconds:g} s")
    for what, number in sorted(found.counts.items()):
        print(f"- {what}: {number}")
    memory = ", ".join(f"{each / 2**20:.0f}" for each in found.resident_bytes)
    print(
        f"{found.num_trainings} trainings beside, bit-equal; "
        f"{found.more_threads:+d} threads; {len(found.escaped)} errors escaped; "
        f"MiB after each tenth: {memory}"
    )
    for each in found.escaped[:20]:
        print(each)
    raise SystemExit(bool(found.escaped))


if __name__ == "__main__":
    main()
