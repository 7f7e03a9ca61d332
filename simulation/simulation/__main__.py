"""Plan, run and compare scenarios.

``plan SCENARIO``: which cut, ratio and pruning for whom, without training.
``run SCENARIO [--set KEY=VALUE ...]``: `flwr run`, with a node for every device.
``compare SCENARIO --settings NAME: KEY=VALUE ...``: several runs, side by side.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flwr_slfac import SettingError, SlfacError
from simulation.comparison import read_rounds, write_comparison
from simulation.launch import config_of, default_cpus, launch, read_settings
from simulation.plan import plan
from simulation.plan_costs import Fleet
from simulation.plan_table import choice_table, cut_table, text_table
from simulation.run_settings import find
from simulation.scenario import Scenario, read_scenario
from simulation.world import make_channel, make_cuts, make_profiles


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


def run(given: argparse.Namespace) -> str:
    """Run a scenario; return where its report is."""
    config = config_of(given.scenario, read_settings(" ".join(given.set)))
    folder = launch(config, given.output, given.cpus)
    return f"Report: {folder / 'report.html'}"


def compare(given: argparse.Namespace) -> str:
    """Run several settings on a scenario; return them side by side.

    Raises
    ------
    SettingError
        If settings are not named ``NAME: KEY=VALUE ...``, each once.
    """
    settings: dict[str, str] = {}
    for text in given.settings:
        name, colon, own = text.partition(":")
        if not colon or not name.strip() or name.strip() in settings:
            raise SettingError(
                f"settings {text!r} have no name of their own; write 'NAME: KEY=VALUE "
                "...', for instance 'plain: codec-up=identity codec-down=identity'"
            )
        settings[name.strip()] = own.strip()
    # All are refused or taken before the first is run.
    configs = {
        n: config_of(given.scenario, read_settings(s)) for n, s in settings.items()
    }
    runs = {}
    for name, config in configs.items():
        print(f"--- {name}: {settings[name]}", flush=True)
        runs[name] = read_rounds(launch(config, given.output / name, given.cpus))
    rows = write_comparison(
        given.output, find(given.scenario).stem, runs, settings, given.target
    )
    head = ("setting", "accuracy", "round", "virtual s", "bytes", "J", "x first")
    cells = [
        (row.name, *(f"{v:.4g}" for v in list(vars(row).values())[2:])) for row in rows
    ]
    return f"{text_table(head, cells)}\n\nPage: {given.output / 'compare.html'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {
        "plan": "plan cuts, ratios and pruning",
        "run": "train for real, told in virtual time",
        "compare": "run several settings",
    }
    own = {name: commands.add_parser(name, help=text) for name, text in texts.items()}
    for command in own.values():
        command.add_argument(
            "scenario", help="a TOML file, or the name of one that ships"
        )
    for name in ("run", "compare"):
        output, cpus = Path("runs") / name, default_cpus()
        own[name].add_argument("--output", type=Path, default=output, help="folder")
        own[name].add_argument("--cpus", type=int, default=cpus, help="Ray actors")
    own["run"].add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    own["compare"].add_argument(
        "--settings", nargs="+", required=True, metavar="'NAME: KEY=VALUE ...'"
    )
    own["compare"].add_argument("--target", type=float, default=0.9, help="accuracy")
    given = parser.parse_args(arguments)
    try:
        if given.command == "plan":
            print(planned(read_scenario(find(given.scenario))))
        else:
            print(run(given) if given.command == "run" else compare(given))
    except SlfacError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
