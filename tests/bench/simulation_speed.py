"""How long the simulation takes to plan many devices, and to time large rounds.

Prints median and spread of the CPU seconds of repeated runs, which other work on the
machine disturbs least, and the wall clock of the median run.
"""

import statistics
import time
from collections.abc import Callable

from simulation.channel import CellSettings, Channel, PlainLinks, cell_channel
from simulation.clock import Clock, DeviceRound, DeviceStep, RoundRecord, Server
from simulation.plan import plan
from simulation.plan_costs import Question
from simulation.tiers import draw_profiles, shipped_tiers

from flwr_slfac import CutPoint

REPEATS = 5
MIX = [(tier, 1.0) for tier in shipped_tiers().values()]
SERVER = Server(29e12)


def report(name: str, work: Callable[[], object]) -> None:
    """Print what repeated work takes."""
    taken = []
    for _ in range(REPEATS):
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        taken.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu_s = sorted(cpu for cpu, _ in taken)
    wall_s = statistics.median(wall for _, wall in taken)
    middle, low, high = statistics.median(cpu_s), cpu_s[0], cpu_s[-1]
    print(f"{name:<58} {middle:7.2f} s CPU ({low:.2f} to {high:.2f}), {wall_s:.2f} s")


def plan_many(num_devices: int, num_cuts: int) -> None:
    """Draw devices and plan them: everything that the command does but the model."""
    people = draw_profiles(MIX, num_devices, 1)
    links = PlainLinks((8e6,) * num_devices)
    cuts = [
        CutPoint(f"c{n}", (), (1, 999 * (20 - n)), 9 * n, 0, n * 10**6, 10**6)
        for n in range(num_cuts)
    ]
    plan(cuts, people, Channel(links, links), SERVER, Question(budget_s=10))


def time_round(num_devices: int, scheme: str, sharing: str, num_steps: int = 2) -> None:
    """Time one round of many devices in one cell."""
    people = draw_profiles(MIX, num_devices, 1)
    powers = [person.transmit_dbm for person in people]
    channel = cell_channel(CellSettings(sharing=sharing), powers, 1)
    step = DeviceStep(1e5, 1e5, 1e9, 2e9, 1e9, 1e6, 1e6)
    devices = [DeviceRound(d, [step] * num_steps, 1e5, 1e5) for d in range(num_devices)]
    Clock(people, channel, SERVER).advance(RoundRecord(1, scheme, devices))


if __name__ == "__main__":
    report("plan 10,000 devices x 20 cuts, drawn", lambda: plan_many(10_000, 20))
    for scheme in ("parallel", "sflv1", "sequential"):
        name = f"a round of 1,000 devices in one cell, 2 steps, {scheme}"
        report(name, lambda scheme=scheme: time_round(1000, scheme, "equal"))
    name = "a round of 100 devices in one cell, 2 steps, max-min"
    report(name, lambda: time_round(100, "parallel", "max-min"))
