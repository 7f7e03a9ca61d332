"""What is taken for granted of Flower is so in the Flower that is installed."""

import inspect

from flwr.clientapp import mod
from flwr.serverapp import exception
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.supercore import differential_privacy
from flwr.supercore.constant import TaskType
from flwr.supercore.run import Run
from flwr.superlink.grid import HttpGrid, InMemoryGrid

from flwr_slfac import flower_parts
from flwr_slfac.flower_parts import chain, is_deployed, said_in


def test_keys_are_those_that_flower_sends() -> None:
    """Flower's strategies and mods use the keys by which devices know them."""
    assert flower_parts.CLIPPING_NORM == differential_privacy.KEY_CLIPPING_NORM
    for key, where in (
        (flower_parts.SERVER_ROUND, flower.FedAvg.configure_train),
        (flower_parts.PROXIMAL_MU, flower.FedProx.configure_train),
        (flower_parts.NUM_EXAMPLES, flower.FedAvg.__init__),
    ):
        assert f'"{key}"' in inspect.getsource(where)


def test_names_are_said_by_the_strategy_within() -> None:
    """A wrapper is asked what replies must hold first, then the strategy within."""
    inner = flower.QFedAvg(0.1, weighted_by_key="n", arrayrecord_key="front")
    outer = flower.DifferentialPrivacyServerSideFixedClipping(inner, 0.1, 1.0, 2)
    assert chain(outer) == [outer, inner]
    assert said_in(outer, "weighted_by_key", "num-examples") == "n"
    assert said_in(outer, "arrayrecord_key", "arrays") == "front"
    assert said_in(outer, "train_loss_key", "train-loss") == "train_loss"
    assert said_in(outer, "of-nobody", "default") == "default"


def test_a_strategy_that_holds_itself_is_one() -> None:
    """A ring of strategies is walked once."""
    strategy = FedAvg()
    strategy.again = strategy  # type: ignore[attr-defined]
    assert chain(strategy) == [strategy]


def test_start_calls_configure_and_aggregate() -> None:
    """`Strategy.start` leaves to a strategy what is sent and what is made of it.

    That ours does the same is compared in ``tests/test_flower_loop.py``.
    """
    source = inspect.getsource(Strategy.start)
    for call in ("configure_train(", "aggregate_train(", "configure_evaluate("):
        assert f"self.{call}" in source
    names = ["grid", "initial_arrays", "num_rounds", "timeout"]
    assert list(inspect.signature(Strategy.start).parameters)[1:5] == names


def test_the_error_of_misfit_replies_is_there() -> None:
    """What FedXgbBagging raises on a front of many tensors is known."""
    assert flower_parts.InconsistentMessageReplies is (
        exception.InconsistentMessageReplies
    )


def test_mods_are_called_with_message_context_and_the_next() -> None:
    """Every mod that Flower exports takes three arguments."""
    for name in mod.__all__:
        each = getattr(mod, name)
        call = each.__call__ if inspect.isclass(each) else each
        names = [n for n in inspect.signature(call).parameters if n != "self"]
        assert len(names) == 3, name


def test_a_deployment_is_told_from_a_simulation() -> None:
    """The run's own task says which of the two it is, and so does the grid's class."""
    grid = HttpGrid(token="none")
    for task, expected in ((TaskType.SERVER_APP, True), (TaskType.SIMULATION, False)):
        run = Run.create_empty(1)
        run.primary_task_type = task
        grid.set_run(run)
        assert is_deployed(grid) is expected
    assert not is_deployed(HttpGrid(token="none"))
    assert InMemoryGrid.__name__ == "InMemoryGrid"
