"""Whether virtual time is real time: a deployed run beside what the clock says of it.

Usage: python -m tests.bench.predicted [--mbit 20] [--codec identity] [--rounds 4]

This machine is measured (`python -m simulation.measure`, one thread): alone, as the
server, which computes while devices wait; and twice at once, as the two devices, which
share its cores. Both go into a scenario whose links have a rate and a delay.
The simulation's app then runs that scenario on a real deployment, a SuperLink and two
SuperNodes on the loopback, over streams, each device behind a link of that rate and
delay. Compared are the seconds of training of each round as `SplitFed` measured them
and as the virtual clock tells them of the very bytes that crossed.
"""

import argparse
import csv
import json
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from simulation.measure import Measured, measure, tier_text

from tests.bench.slow_link import SlowLink, constant

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples" / "deployment"))
from run import Deployment, free_ports  # noqa: E402 - where the script is

DEVICES, BATCH, ONE_WAY_S, REPEATS = 2, 32, 0.025, 25
SCENARIO = """name = "predicted"
seed = 1

[training]
num_rounds = {rounds}
num_steps = 10
batch_size = {batch}
cut = "layer1"
codec_up = "{codec}"
codec_down = "{codec}"

[model]
build = "simulation.reference:large_digits_resnet"
input_shape = [1, 8, 8]

[data]
source = "digits"
partition = "iid"

[devices]
count = {devices}
tier_files = ["mine.toml"]
tiers = {{ mine = 1.0 }}

[server]
flop_per_s = {flops!r}
encode_byte_per_s = {encode!r}
decode_byte_per_s = {decode!r}

[channel]
kind = "plain"
up_bit_per_s = {rate!r}
down_bit_per_s = {rate!r}
latency_s = {one_way_s!r}
"""


def measured_at_once(codec: str) -> Measured:
    """Return the mean of what as many processes measure as there are devices."""
    spawned = get_context("spawn")
    with ProcessPoolExecutor(DEVICES, spawned, torch.set_num_threads, (1,)) as pool:
        asked = [pool.submit(measure, codec, BATCH, REPEATS) for _ in range(DEVICES)]
        found = [one.result() for one in asked]
    means = {
        field.name: statistics.fmean(getattr(one, field.name) for one in found)
        for field in fields(Measured)
        if field.name != "conditions"
    }
    return replace(found[0], **means)


def write_scenario(
    folder: Path, own: Measured, tier: Measured, rate: float, codec: str, rounds: int
) -> Path:
    """Write the scenario of a server and two devices such as this machine."""
    (folder / "mine.toml").write_text(tier_text(tier, "mine"))
    # A step's backward takes twice the operations of its forward.
    flops = 3 / (1 / own.forward_flop_per_s + 2 / own.backward_flop_per_s)
    path = folder / "predicted.toml"
    path.write_text(
        SCENARIO.format(
            rounds=rounds,
            batch=BATCH,
            codec=codec,
            devices=DEVICES,
            flops=flops,
            encode=own.encode_byte_per_s,
            decode=own.decode_byte_per_s,
            rate=rate,
            one_way_s=ONE_WAY_S,
        )
    )
    return path


def deployed(folder: Path, scenario: Path, rate: float) -> None:
    """Run the scenario on a deployment of this machine."""
    (port,) = free_ports(1)
    rates = constant(rate), constant(rate)
    links = [SlowLink(port, *rates, ONE_WAY_S) for _ in range(DEVICES)]
    (folder / "deployment").mkdir()
    deployment = Deployment(
        folder / "deployment",
        DEVICES,
        lambda number: f'slfac-server="{links[number].address}"',
    )
    deployment.environment["OMP_NUM_THREADS"] = "1"
    config = f'scenario="{scenario}" listen="127.0.0.1:{port}" '
    config += f'output-folder="{folder / "out"}"'
    try:
        deployment.start()
        words = ("run", str(ROOT / "simulation"), "deployment", "--stream")
        said = deployment.flwr(*words, "--run-config", config).stdout
    finally:
        deployment.stop()
    if not (folder / "out" / "rounds.json").exists():
        raise SystemExit(f"the run did not finish:\n{said[-3000:]}")


def main() -> None:
    """Print a table of rounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mbit", type=float, default=20.0)
    parser.add_argument("--codec", default="identity")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder, rate = Path(tempfile.mkdtemp(prefix="predicted-")), options.mbit * 1e6
    own, tier = measure(options.codec, BATCH, REPEATS), measured_at_once(options.codec)
    args = own, tier, rate, options.codec, options.rounds
    scenario = write_scenario(folder, *args)
    deployed(folder, scenario, rate)
    real = [r["train_s"] for r in json.loads((folder / "out/rounds.json").read_text())]
    with (folder / "out" / "virtual-rounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    told = [float(row["end_s"]) - float(row["start_s"]) for row in rows]
    print(f"{options.codec}, {options.mbit:g} Mbit/s, {2e3 * ONE_WAY_S:g} ms")
    print("| round | real s | virtual s | virtual over real |\n|---|---|---|---|")
    for number, (one, other) in enumerate(zip(real, told, strict=True), start=1):
        print(f"| {number} | {one:.2f} | {other:.2f} | {other / one:.3f} |")
    print(f"| all | {sum(real):.2f} | {sum(told):.2f} | {sum(told) / sum(real):.3f} |")


if __name__ == "__main__":
    main()
