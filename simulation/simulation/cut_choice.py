"""At which cut each device trains: small pure functions of what each would cost it.

One of your own, ``device_cuts = "my_module:my_choice"``, takes the same arguments::

    def smallest(costs, memory_bytes):
        return min(costs, key=lambda cost: cost.memory_bytes).name
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from flwr_slfac import CutPoint, cut, legal_cuts
from flwr_slfac.codec import encode
from flwr_slfac.default_codecs import codecs_of
from simulation.data import device_data
from simulation.functions import find_function
from simulation.plan_costs import Costs, Fleet, Question, round_costs
from simulation.profiles import Profile
from simulation.scenario import Scenario
from simulation.world import build_model, make_channel


@dataclass(frozen=True)
class CutCost:
    """What a round would cost a device at a cut.

    Parameters
    ----------
    name : str
        Of the cut.
    round_s, round_j, round_bytes : float
        Seconds without waiting, joules and bytes both ways of a round, as in `Plan`.
    memory_bytes : float
        The least that its front needs.
    """

    name: str
    round_s: float
    round_j: float
    round_bytes: float
    memory_bytes: float


Choice = Callable[[Sequence[CutCost], float], str]


def fastest(costs: Sequence[CutCost], memory_bytes: float) -> str:
    """Return the cut of the shortest round among those that fit into memory.

    All devices of a step wait for the last one, so that each is best off where it is
    done first. If none fits, the smallest.

    Examples
    --------
    >>> small = CutCost("stem", 9.0, 1.0, 1e6, 1e6)
    >>> large = CutCost("layer1", 2.0, 1.0, 1e6, 5e6)
    >>> fastest([small, large], 8e6), fastest([small, large], 2e6)
    ('layer1', 'stem')
    """
    fit = [cost for cost in costs if cost.memory_bytes <= memory_bytes]
    if not fit:
        return min(costs, key=lambda cost: cost.memory_bytes).name
    return min(fit, key=lambda cost: cost.round_s).name


CHOICES: dict[str, Choice] = {"fastest": fastest}


def choose_cuts(scenario: Scenario, profiles: Sequence[Profile]) -> dict[int, str]:
    """Return the cut of each device that does not train at the scenario's.

    Candidates are those of ``[plan] cuts``, or all legal ones, none behind ``[training]
    cut``. Times are those of a plan, at the ratio that the codec reaches on one batch
    of the untrained model.

    Raises
    ------
    ScenarioError
        If the choice names another cut.
    SettingError
        If it cannot be found.
    """
    own = scenario.training
    if own.device_cuts == "none":
        return {}
    choose = find_function("device_cuts", own.device_cuts, CHOICES)
    cuts = _candidates(scenario)
    fleet = Fleet.of(profiles, make_channel(scenario, profiles))
    question = Question(own.batch_size, own.num_steps)
    ratio = max(1.0, coded_ratio(scenario, len(profiles)))
    costs = round_costs(fleet, cuts, scenario.server, question, ratio, share=0.0)
    chosen = {}
    for device, profile in enumerate(profiles):
        name = choose(_of_device(cuts, costs, device), profile.memory_bytes)
        if name not in {point.name for point in cuts}:
            names = ", ".join(point.name for point in cuts)
            reason = f"chooses {name!r} for device {device}; candidates: {names}"
            raise scenario.error("training.device_cuts", reason)
        if name != cuts[-1].name:
            chosen[device] = name
    return chosen


def coded_ratio(scenario: Scenario, num_devices: int) -> float:
    """Return float32 bytes over those of a frame, for one batch at the common cut."""
    own = scenario.training
    codec, _ = codecs_of(own.codec_up or None, own.codec_down or None)
    examples = device_data(scenario, 0, num_devices)
    count = min(len(examples), own.batch_size)
    inputs = torch.stack([examples[place][0] for place in range(count)])
    with torch.no_grad():
        smashed = cut(build_model(scenario), at=own.cut).front(inputs)
    frame = encode(smashed, codec, role="activation", seed=scenario.seed)
    return 4 * int(smashed.numel()) / len(frame)


def _candidates(scenario: Scenario) -> list[CutPoint]:
    """Return the cuts that may be chosen, the scenario's the last of them."""
    own, wanted = scenario.training, scenario.plan.cuts
    example = torch.zeros(2, *scenario.model.input_shape)
    found: list[CutPoint] = []
    for point in legal_cuts(build_model(scenario), example):
        names = {point.name, *point.aliases}
        if own.cut in names:
            return [*found, point]
        if not wanted or names & set(wanted):
            found.append(point)
    raise scenario.error("training.cut", f"is {own.cut!r}, which is no legal cut")


def _of_device(cuts: Sequence[CutPoint], costs: Costs, device: int) -> list[CutCost]:
    """Return what each cut costs a device."""
    return [
        CutCost(
            point.name,
            float(costs.round_s[device, place]),
            float(costs.round_j[device, place]),
            float(costs.round_bytes[device, place]),
            float(costs.memory_bytes[0, place]),
        )
        for place, point in enumerate(cuts)
    ]
