"""``python -m simulation plan SCENARIO``: which cut, ratio and pruning for whom."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flwr_slfac import SlfacError
from simulation.plan import plan
from simulation.plan_costs import Fleet
from simulation.plan_table import choice_table, cut_table
from simulation.scenario import SCENARIOS, Scenario, read_scenario
from simulation.world import make_channel, make_cuts, make_profiles


def find(name: str) -> Path:
    """Return a scenario's path: a file, or the name of one that ships."""
    shipped = SCENARIOS / f"{name}.toml"
    return shipped if shipped.exists() and not Path(name).exists() else Path(name)


def planned(scenario: Scenario) -> str:
    """Return a scenario's plan as text.

    Raises
    ------
    SlfacError
        If the scenario is refused, or its model cannot be cut.
    """
    profiles = make_profiles(scenario)
    channel, cuts = make_channel(scenario, profiles), make_cuts(scenario)
    question, server = scenario.plan, scenario.server
    chosen = plan(cuts, profiles, channel, server, question)
    return "\n".join(
        (
            f"{scenario.name}: {len(profiles)} devices, {len(cuts)} cuts, a round of "
            f"{question.num_steps} steps of {question.batch_size}, budget "
            f"{question.budget_s:g} s",
            "",
            "The mildest choice in budget, by tier (medians; nobody waits for others):",
            choice_table(chosen, cuts, profiles),
            "",
            "One cut for all, in lock-step:",
            cut_table(Fleet.of(profiles, channel), cuts, server, question),
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("plan", help="plan cuts, ratios and pruning")
    command.add_argument("scenario", help="a TOML file, or the name of one that ships")
    try:
        print(planned(read_scenario(find(parser.parse_args(arguments).scenario))))
    except SlfacError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
