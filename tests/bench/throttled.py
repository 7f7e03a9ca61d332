"""What compression buys in wall time: the quickstart deployed, over slow links.

Usage: python -m tests.bench.throttled [--link 1mbit] [--codecs identity default]

A SuperLink and two SuperNodes with TLS on the loopback (`examples/deployment`); each
device reaches the ServerApp through a link of its own: 1 Mbit/s both ways and 50 ms of
round trip, or the recorded rates of `SLFAC_DATA_DIR`'s ``links``, repeated, with the
same delay. Measured is the time from the first round's start until the joined model is
right on 95 % of images that no device has seen; training, evaluation and the fronts
cross meanwhile. What is slow is the link: other load on the machine changes little.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.rounds_to_95 import CODECS
from tests.bench.slow_link import Rate, SlowLink, constant, recorded

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES / "deployment"))
from run import NAME, Deployment, free_ports  # noqa: E402 - where the script is

ONE_WAY_S, ENOUGH, LIMIT_S = 0.025, 0.95, 1500.0


def rates(name: str) -> tuple[Rate, Rate]:
    """Return the rates up and down of a link."""
    if name == "1mbit":
        return constant(1e6), constant(1e6)
    folder = Path(os.environ["SLFAC_DATA_DIR"]) / "links"
    return recorded(folder / f"{name}-up.csv"), recorded(folder / f"{name}-down.csv")


def measure(link: str, codec: str, depth: int) -> tuple[float, int]:
    """Return seconds and rounds to enough accuracy; infinity if the limit is met."""
    (port,) = free_ports(1)
    links = [SlowLink(port, *rates(link), ONE_WAY_S) for _ in range(2)]
    folder = Path(tempfile.mkdtemp(prefix="throttled-"))
    deployment = Deployment(
        folder, 2, lambda number: f'slfac-server="{links[number].address}"'
    )
    up, down = CODECS[codec]
    config = f'listen="127.0.0.1:{port}" codec-up="{up}" codec-down="{down}"'
    config += f" pipeline-depth={depth}"
    try:
        deployment.start()
        app = str(EXAMPLES / "quickstart")
        words = ["flwr", "run", app, NAME, "--stream", "--run-config", config]
        run = subprocess.Popen(
            words, env=deployment.environment, cwd=folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return _watch(run)
    finally:
        deployment.stop()


def _watch(run: "subprocess.Popen[str]") -> tuple[float, int]:
    assert run.stdout is not None
    start, server_round = float("nan"), 0
    for line in run.stdout:
        if found := re.search(r"\[ROUND (\d+)/", line):
            server_round = int(found[1])
            start = time.monotonic() if server_round == 1 else start
        found = re.search(r"> MetricRecord: \{'accuracy': ([0-9.]+)", line)
        if found and server_round and float(found[1]) >= ENOUGH:
            run.kill()
            return time.monotonic() - start, server_round
        if server_round and time.monotonic() - start > LIMIT_S:
            break
    run.kill()
    return float("inf"), server_round


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--link", default="1mbit")
    parser.add_argument("--codecs", nargs="*", choices=CODECS, default=list(CODECS))
    parser.add_argument("--depth", type=int, default=0, help="of the pipeline")
    options = parser.parse_args()
    print("| link | codec | seconds to 95 % | rounds |\n|---|---|---|---|", flush=True)
    for codec in options.codecs:
        seconds, rounds = measure(options.link, codec, options.depth)
        print(f"| {options.link} | {codec} | {seconds:.0f} | {rounds} |", flush=True)


if __name__ == "__main__":
    main()
