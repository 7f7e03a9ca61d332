"""What structured pruning saves a device: time, bytes of the front, smashed bytes.

Usage: OMP_WAIT_POLICY=passive python -m tests.bench.pruned_device [--pairs 15]
       [--batch 64] [--rho 0.5]

A VGG-19-BN front (cut after the second pooling) and a ResNet-18 front (cut after
layer1), full width, on 32x32 images. Forward and backward of the full and of the pruned
front are timed in turn, in one process; ratios are medians over these pairs. Threads
that wait passively leave the cores to whoever else needs them, so that a shared machine
does not count a thread's turn as work. Bytes are those of the packed states, mask
included, and of frames of `Identity`. Prints a table and writes
tests/bench/results/pruned_device.md; fails if a bar is missed.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flwr_slfac.codec import Identity, encode
from flwr_slfac.cutting import cut
from flwr_slfac.lightweight.pruning import (
    ChannelMask,
    Channels,
    channel_groups,
    channel_scores,
    choose_channels,
    shrink,
)
from flwr_slfac.lightweight.pruning.selection import CutChoice
from flwr_slfac.transport.packing import pack_state
from tests import models
from tests.bench.revision import head

RESULT = Path(__file__).parent / "results" / "pruned_device.md"


@dataclass(frozen=True)
class Case:
    """A front, what may leave, and the bars that its ratios must keep."""

    name: str
    at: str
    at_cut: CutChoice
    time_bar: float | None = None
    front_bar: float | None = None
    smashed_bar: float | None = None


CASES = (
    Case("vgg19_bn", "features.13", "prune", 0.45, 0.35, 0.55),
    Case("vgg19_bn", "features.13", "keep"),
    Case("resnet18", "layer1", "prune", 0.55, None, 0.55),
    Case("resnet18", "layer1", "keep"),
)


@dataclass(frozen=True)
class Taken:
    """What a step took: seconds on the clock and seconds of the processor."""

    wall_s: float
    cpu_s: float


def step(front: nn.Module, x: Tensor, gradient: Tensor) -> Taken:
    """Run forward and backward."""
    for parameter in front.parameters():
        parameter.grad = None
    wall, cpu = time.perf_counter(), time.process_time()
    front(x).backward(gradient)
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)


def time_pairs(
    full: nn.Module, small: nn.Module, x: Tensor, kept: ChannelMask, pairs: int
) -> list[tuple[Taken, Taken]]:
    """Time both fronts in turn, after one untimed step of each."""
    upstream = torch.randn_like(full(x).detach())
    small_upstream = kept.cut.gather(upstream).contiguous()
    found = [
        (step(full, x, upstream), step(small, x, small_upstream))
        for _ in range(pairs + 1)
    ]
    return found[1:]


def check_residuals(channels: Channels, small: nn.Module) -> None:
    """Raise unless every residual stream of a ResNet kept one width throughout."""
    stream = [m.tensor for m in channels.groups[0].members if m.dim == 0]
    widths = {small.state_dict()[name].shape[0] for name in stream}
    if len(widths) != 1:
        raise SystemExit(f"the residual stream has widths {sorted(widths)}")


def measure(case: Case, options: argparse.Namespace) -> tuple[str, list[str]]:
    """Return a table row and the bars that were missed."""
    torch.manual_seed(0)
    front = cut(getattr(models, case.name)(), at=case.at).front.train()
    x = torch.randn(options.batch, 3, 32, 32)
    start = time.perf_counter()
    channels = channel_groups(front, x[:2])
    found_s = time.perf_counter() - start
    state = front.state_dict()
    scores = channel_scores(channels, state)
    kept = choose_channels(channels, scores, options.rho, at_cut=case.at_cut)
    small = shrink(front, kept)
    if case.name == "resnet18":
        check_residuals(channels, small)
    taken = time_pairs(front, small, x, kept, options.pairs)
    low, middle, high = statistics.quantiles(
        [b.wall_s / a.wall_s for a, b in taken], n=4
    )
    cpu = statistics.median(b.cpu_s / a.cpu_s for a, b in taken)
    full_s, small_s = (
        statistics.median(side.wall_s for side in sides)
        for sides in zip(*taken, strict=True)
    )
    mask = len(kept.to_bytes())
    front_ratio = (len(pack_state(kept.take_state(state))) + mask) / len(
        pack_state(state)
    )
    with torch.no_grad():
        frames = [len(encode(net(x), Identity())) for net in (front, small)]
    smashed_ratio = frames[1] / frames[0]
    missed = [
        f"{case.name}: {what} {value:.3f} > {bar}"
        for what, value, bar in (
            ("time", middle, case.time_bar),
            ("front", front_ratio, case.front_bar),
            ("smashed", smashed_ratio, case.smashed_bar),
        )
        if bar is not None and value > bar
    ]
    row = (
        f"| {case.name}, `{case.at}` | {case.at_cut} | {full_s:.3f} | {small_s:.3f} "
        f"| {middle:.3f} ({low:.3f} - {high:.3f}) {against(case.time_bar)} | {cpu:.3f} "
        f"| {front_ratio:.3f} {against(case.front_bar)} "
        f"| {smashed_ratio:.3f} {against(case.smashed_bar)} | {mask} | {found_s:.2f} |"
    )
    return row, missed


def against(bar: float | None) -> str:
    """Return a bar as the table shows it."""
    return "" if bar is None else f"<= {bar}"


def main() -> None:
    """Measure all cases, write the table, and exit with what was missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rho", type=float, default=0.5)
    options = parser.parse_args()
    torch.set_num_threads(2)
    commit = head()
    lines = [
        "# A pruned device",
        "",
        f"Machine: 2 cores, x86-64, CPU only. Commit {commit}, "
        f"torch {torch.__version__.partition('+')[0]}.",
        "",
        f"`OMP_WAIT_POLICY=passive python -m tests.bench.pruned_device "
        f"--pairs {options.pairs} --batch {options.batch} --rho {options.rho}`",
        "",
        f"Structured pruning by |w| per layer, rho = {options.rho}, batch "
        f"{options.batch}, 32x32, 2 threads, {options.pairs} pairs. Ratios of pruned",
        "to unpruned; time is forward and backward of the front, median and quartiles",
        "of the pairs; front bytes are those of a download, mask included. A bar",
        "stands behind the ratio it is for.",
        "",
        "| front | at the cut | full s | pruned s | time | CPU time | front bytes "
        "| smashed bytes | mask bytes | analysis s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    missed: list[str] = []
    for case in CASES:
        row, failed = measure(case, options)
        print(row, flush=True)
        lines.append(row)
        missed += failed
    RESULT.write_text("\n".join(lines) + "\n")
    if missed:
        sys.exit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
