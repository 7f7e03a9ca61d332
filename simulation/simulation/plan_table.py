"""A plan as tables that a person reads."""

from collections.abc import Sequence

import numpy as np

from flwr_slfac import CutPoint
from flwr_slfac.report import readable_bytes
from simulation.clock import Server
from simulation.plan import Plan
from simulation.plan_costs import Fleet, Question, round_costs
from simulation.profiles import Profile

_BY_CHOICE = (
    "tier",
    "devices",
    "cut",
    "ratio",
    "pruned",
    "round s",
    "90 %",
    "bytes",
    "J",
)
_BY_CUT = ("cut", "ratio", "pruned", "median s", "slowest s", "server s", "fits")


def choice_table(
    plan: Plan, cuts: Sequence[CutPoint], profiles: Sequence[Profile]
) -> str:
    """Return one line per tier and setting: how many devices chose it, what it takes.

    Parameters
    ----------
    plan : Plan
        Of N devices.
    cuts, profiles
        As they were planned for.
    """
    groups: dict[tuple[str, int, float, float], list[int]] = {}
    for device, profile in enumerate(profiles):
        setting = int(plan.cuts[device]), plan.ratios[device], plan.shares[device]
        groups.setdefault((profile.tier, *setting), []).append(device)
    rows = []
    for (tier, cut, ratio, share), devices in sorted(groups.items()):
        seconds = plan.round_s[devices]
        failing = int((~plan.in_budget[devices] | ~plan.fits[devices]).sum())
        rows.append(
            (
                tier,
                str(len(devices)),
                cuts[cut].name,
                f"{ratio:g}",
                f"{share:g}",
                f"{np.median(seconds):.4g}",
                f"{np.quantile(seconds, 0.9):.4g}",
                readable_bytes(int(np.median(plan.round_bytes[devices]))),
                f"{np.median(plan.round_j[devices]):.4g}",
                f"{failing} not in budget or memory" if failing else "",
            )
        )
    return text_table((*_BY_CHOICE, ""), rows)


def cut_table(
    fleet: Fleet, cuts: Sequence[CutPoint], server: Server, question: Question
) -> str:
    """Return one line per cut: a round in lock-step if all devices were cut there.

    The slowest device and the server's work on all batches make the round; ratio and
    share are the mildest candidates.

    Parameters
    ----------
    fleet : Fleet
        N devices.
    cuts : sequence of CutPoint
        As they were planned for.
    server : Server
        How fast the server is.
    question : Question
        Candidates.
    """
    ratio, share = min(question.compression_ratios), min(question.pruned_shares)
    costs = round_costs(fleet, cuts, server, question, ratio, share)
    fits = (costs.memory_bytes <= fleet.memory).mean(axis=0)
    rows = []
    for place, cut in enumerate(cuts):
        flops = 3 * cut.back_flops / cut.shape[0] * question.batch_size
        alone_s = question.num_steps * flops / server.flop_per_s
        seconds = costs.round_s[:, place]
        slowest = float(seconds.max()) + alone_s * (len(seconds) - 1)
        rows.append(
            (
                cut.name,
                f"{ratio:g}",
                f"{share:g}",
                f"{np.median(seconds):.4g}",
                f"{slowest:.4g}",
                f"{alone_s * len(seconds):.4g}",
                f"{fits[place]:.0%}",
            )
        )
    return text_table(_BY_CUT, rows)


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under a head, in columns aligned to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in (head, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)
