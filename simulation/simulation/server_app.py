"""The server: the back, a strategy that samples by policy, and the virtual clock."""

import logging
import time
from collections.abc import Callable
from functools import partial

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from torch.nn import CrossEntropyLoss
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from flwr_slfac import Halves, SettingError, SplitFed, accuracy, cut, legal_cuts
from simulation.chosen import Chosen
from simulation.data import central_test
from simulation.run_folder import write_run
from simulation.run_settings import RunSettings
from simulation.scenario import Scenario
from simulation.virtual import VirtualTime
from simulation.work import StepWork, require_memory
from simulation.world import build_model, make_profiles

logger = logging.getLogger("flwr")

app = ServerApp()

# How long nodes may take to register; Flower's simulation takes less than a second.
_REGISTER_S = 60.0


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train a scenario for real, tell it in virtual time, and write a report."""
    torch.set_num_threads(1)  # equal threads, equal bits
    run = RunSettings.of(context.run_config)
    scenario = run.scenario
    own, profiles = scenario.training, make_profiles(scenario)
    model, shape = build_model(scenario), scenario.model.input_shape
    require_memory(scenario, profiles, legal_cuts(model, torch.zeros(2, *shape)))
    halves = cut(model, at=own.cut)
    virtual = VirtualTime.of(scenario, profiles, StepWork(halves, shape))
    strategy = _strategy(scenario, virtual, halves)
    require_nodes(grid, len(profiles), scenario)
    try:
        strategy.start(
            grid,
            ArrayRecord(halves.front.state_dict()),
            num_rounds=own.num_rounds,
            evaluate_fn=_central(scenario, halves, strategy),
        )
    finally:
        if virtual.rounds:
            folder = write_run(run.output_folder, virtual, strategy)
            logger.info("Report: %s", folder / "report.html")


def _strategy(scenario: Scenario, virtual: VirtualTime, halves: Halves) -> SplitFed:
    own = scenario.training
    return SplitFed(
        # Functions of their own: strategies are copied to be tried, a clock is not.
        Chosen(
            lambda server_round, nodes: virtual.choose(server_round, nodes),
            lambda device, loss, count: virtual.learn(device, loss, count),
        ),
        back=halves.back,
        loss=CrossEntropyLoss(),
        optimizer=partial(SGD, lr=own.learning_rate, momentum=own.momentum),
        scheduler=partial(CosineAnnealingLR, T_max=own.num_rounds),
        scheme=own.scheme,  # type: ignore[arg-type]
        up=own.codec_up or None,
        down=own.codec_down or None,
        lightweight=own.make_lightweight(),
        transport="messages",
        seed=scenario.seed,
        callbacks=[virtual],
    )


def _central(
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


def require_nodes(grid: Grid, count: int, scenario: Scenario) -> None:
    """Wait until there is a node for each device.

    Raises
    ------
    SettingError
        If there are more, or fewer after a while.
    """
    end_s = time.monotonic() + _REGISTER_S
    while True:
        found = len(list(grid.get_node_ids()))
        late = time.monotonic() > end_s
        if found == count:
            return
        if found > count or late:
            raise SettingError(
                f"{scenario.name!r} has {count} devices, Flower {found} nodes: "
                f'run it with --federation-config "num-supernodes={count}", or '
                "by `python -m simulation run`"
            )
        time.sleep(0.2)
