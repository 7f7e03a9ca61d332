"""The server: the back, a strategy that samples by policy, and the virtual clock."""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from torch.nn import CrossEntropyLoss
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from flwr_slfac import (
    DeviceCuts,
    Halves,
    SettingError,
    SplitFed,
    StreamTransport,
    accuracy,
    cut,
)
from simulation.chosen import Chosen
from simulation.cut_choice import choose_cuts
from simulation.data import central_test, require_shape
from simulation.device_choices import DeviceChoices, device_codecs
from simulation.run_folder import write_run
from simulation.run_settings import RunSettings
from simulation.scenario import Scenario
from simulation.virtual import VirtualTime
from simulation.work import DeviceWork, require_memory
from simulation.world import build_model, make_cuts_of_model, make_profiles

logger = logging.getLogger("flwr")

app = ServerApp()

# How long no further node must register until none is waited for: Flower's simulation
# registers all of them in less than a second.
_REGISTER_S = 5.0


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train a scenario for real, tell it in virtual time, and write a report."""
    torch.set_num_threads(1)  # equal threads, equal bits
    run = RunSettings.of(context.run_config)
    scenario = run.scenario
    own, profiles = scenario.training, make_profiles(scenario)
    require_shape(scenario)
    at = choose_cuts(scenario, profiles)
    require_memory(scenario, profiles, make_cuts_of_model(scenario), at)
    shape = scenario.model.input_shape
    example = torch.zeros(own.batch_size, *shape)
    halves = cut(build_model(scenario), at=own.cut, example=example)
    profiles = profiles[: num_nodes(grid, len(profiles), scenario)]
    work = DeviceWork(halves.model, own.cut, at, shape)
    virtual = VirtualTime.of(scenario, profiles, work)
    choices = DeviceChoices(scenario, profiles, work, at)
    strategy = make_strategy(scenario, virtual, halves, at, choices, run.listen)
    try:
        strategy.start(
            grid,
            ArrayRecord(halves.front.state_dict()),
            num_rounds=own.num_rounds,
            evaluate_fn=central_evaluation(scenario, halves, strategy),
        )
    finally:
        if virtual.rounds:
            folder = write_run(run.output_folder, virtual, strategy)
            logger.info("Report: %s", folder / "report.html")


def make_strategy(
    scenario: Scenario,
    virtual: VirtualTime,
    halves: Halves,
    at: Mapping[int, str],
    choices: DeviceChoices,
    listen: str = "",
) -> SplitFed:
    """Return what trains: SplitFed around FedAvg among those that a policy chooses."""
    own = scenario.training
    sgd = partial(SGD, lr=own.learning_rate, momentum=own.momentum)
    prune = None
    if own.device_pruning != "none":

        def prune(server_round: int, profile: Mapping[str, Any]) -> float:
            return choices.share(server_round, int(profile["device"]))

    schedule = partial(CosineAnnealingLR, T_max=own.num_rounds)
    return SplitFed(
        # Functions of their own: strategies are copied to be tried, a clock is not.
        Chosen(
            lambda server_round, nodes: virtual.choose(server_round, nodes),
            lambda device, loss, count: virtual.learn(device, loss, count),
        ),
        back=halves.back,
        loss=CrossEntropyLoss(),
        optimizer=sgd,
        scheduler=schedule,
        scheme=own.scheme,  # type: ignore[arg-type]
        up=own.codec_up or None,
        down=own.codec_down or None,
        lightweight=own.make_lightweight(prune, choices.period()),
        codecs=device_codecs(scenario, choices),
        cuts=DeviceCuts(halves.model, own.cut, at, sgd, schedule) if at else None,
        transport=StreamTransport(listen) if listen else "messages",
        seed=scenario.seed,
        callbacks=[virtual],
    )


def central_evaluation(
    scenario: Scenario, halves: Halves, strategy: SplitFed
) -> Callable[[int, ArrayRecord], MetricRecord | None]:
    """Return the test of the joined model on examples that no device has seen."""
    inputs, targets = central_test(scenario).tensors
    own = scenario.training

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round % own.evaluate_every and server_round < own.num_rounds:
            return None
        model = halves.load(arrays, strategy.back_state()).eval()
        with torch.no_grad():
            outputs = torch.cat([model(part) for part in torch.split(inputs, 256)])
        return MetricRecord({"accuracy": accuracy(outputs, targets)})

    return evaluate


def num_nodes(grid: Grid, count: int, scenario: Scenario) -> int:
    """Return how many nodes there are, at most one for each device.

    Raises
    ------
    SettingError
        If there are more nodes than devices, or none.
    """
    found, since = 0, time.monotonic()
    while found < count and time.monotonic() - since < _REGISTER_S:
        before, found = found, len(list(grid.get_node_ids()))
        since = since if found == before else time.monotonic()
        time.sleep(0.1)
    advice = (
        f"{scenario.name} has {count} devices and Flower {found} nodes; for a node "
        f'each run it with --federation-config "num-supernodes={count}", or by '
        "`python -m simulation run`"
    )
    if not 0 < found <= count:
        raise SettingError(advice)
    if found < count:
        logger.warning("Only devices 0 to %d take part: %s", found - 1, advice)
    return found
