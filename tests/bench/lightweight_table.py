"""The table of lightweight training: accuracy, bytes, device FLOPs and seconds."""

import statistics
from typing import Any

from simulation.tiers import shipped_tiers

from tests.bench.lightweight_arms import TABLE

NUM_DEVICES = 10
KINDS = ("front_up", "front_down", "smashed_up", "smashed_down", "masks")
# Points below what plain SFLV1 reached, and a lower mark that all should pass.
MARGIN = {"mnist": 0.5, "cifar10": 1.0}
LOWER = {"mnist": 90.0, "cifar10": 25.0}
Row = dict[str, Any]


def accuracy_table(rows: list[Row]) -> str:
    """Return means over seeds: a row an arm and dataset."""
    lines = [
        "| dataset | arm | seeds | accuracy % | final loss | MB: fronts up, down "
        "| smashed up, down | masks, kB | all | device GFLOPs | device s: compute, "
        "codec |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for dataset in ("mnist", "cifar10"):
        for arm in TABLE:
            own = [r for r in rows if (r["dataset"], r["arm"]) == (dataset, arm)]
            if own:
                lines.append(_line(dataset, arm, own))
    return "\n".join(lines)


def _line(dataset: str, arm: str, own: list[Row]) -> str:
    scores = ", ".join(f"{r['accuracy']:.2f}" for r in own)
    mean = statistics.mean(r["accuracy"] for r in own)
    mb = {k: _mean(own, k) / 1e6 for k in KINDS}
    flops = _mean(own, "device_flops") / NUM_DEVICES
    compute_s, codec_s = device_seconds(own)
    return (
        f"| {dataset} | {arm} | {len(own)} | {mean:.2f} ({scores}) "
        f"| {statistics.mean(r['loss'] for r in own):.3f} "
        f"| {mb['front_up']:.2f}, {mb['front_down']:.2f} "
        f"| {mb['smashed_up']:.2f}, {mb['smashed_down']:.2f} "
        f"| {1e3 * mb['masks']:.1f} | {sum(mb.values()):.2f} | {flops / 1e9:.1f} "
        f"| {compute_s:.1f}, {codec_s:.1f} |"
    )


def device_seconds(own: list[Row]) -> tuple[float, float]:
    """Return the seconds that a run takes a device to compute, and to code.

    Counted FLOPs and raw bytes over the figures of the shipped profile of a Raspberry
    Pi 4; the mean of the devices. What crosses raw is not coded.
    """
    tier = shipped_tiers()["raspberry-pi-4"].median()
    flops = _mean(own, "device_flops") / NUM_DEVICES
    raw = _mean(own, "smashed_raw") / NUM_DEVICES
    coded = _mean(own, "smashed_up") / NUM_DEVICES < raw / 2
    each_way = raw / tier.encode_byte_per_s + raw / tier.decode_byte_per_s
    return flops / tier.forward_flop_per_s, each_way if coded else 0.0


def _mean(own: list[Row], kind: str) -> float:
    """Return the mean over seeds of a sum over rounds."""
    return statistics.mean(sum(r[kind] for r in row["rounds"]) for row in own)


def target_table(rows: list[Row]) -> str:
    """Return what crossed until a target was reached: a row an arm and seed."""
    lines = [
        "| dataset | seed | arm | target % | round | MB | of SFLV1's "
        "| lower target % | round | MB | of SFLV1's |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    plain = {(r["dataset"], r["seed"]): r for r in rows if r["arm"] == "SFLV1"}
    for (dataset, seed), base in plain.items():
        target = base["rounds"][-1]["accuracy"] - MARGIN[dataset]
        targets = target, LOWER[dataset]
        for arm in TABLE:
            for row in rows:
                if (row["dataset"], row["seed"], row["arm"]) == (dataset, seed, arm):
                    cells = " | ".join(_reached(row, base, t) for t in targets)
                    lines.append(f"| {dataset} | {seed} | {arm} | {cells} |")
    return "\n".join(lines)


def _reached(row: Row, base: Row, target: float) -> str:
    own, others = bytes_to(row, target), bytes_to(base, target)
    if own is None:
        return f"{target:.2f} | not | - | -"
    share = f"1/{others[1] / own[1]:.1f}" if others else "-"
    return f"{target:.2f} | {own[0]} | {own[1] / 1e6:.2f} | {share}"


def bytes_to(row: Row, target: float) -> tuple[int, int] | None:
    """Return the first round after which a target is met, and all bytes until then."""
    num_bytes = 0
    for number, each in enumerate(row["rounds"], start=1):
        num_bytes += sum(each[kind] for kind in KINDS)
        if each["accuracy"] >= target:
            return number, num_bytes
    return None
