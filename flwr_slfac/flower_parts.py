"""What is taken for granted of Flower beyond its documented interface, in one place.

=================================  ===================================================
part                               when it changes
=================================  ===================================================
`SERVER_ROUND`, `PROXIMAL_MU`,     keys that Flower's strategies put into a message's
`CLIPPING_NORM`                    config: under another name a device refuses the key
                                   that it does not know, before training
``weighted_by_key``,               attributes of Flower's strategies that name what
``arrayrecord_key``,               they look for in replies: under another name the
``train_loss_key``                 strategy itself raises in the first round
`InconsistentMessageReplies`       what FedXgbBagging raises on a front: another error
                                   is passed on as it is
a strategy inside a strategy       found among a strategy's attributes, wherever it is
                                   stored
``Strategy.start``                 calls configure and aggregate in turn, as
                                   `flower_loop` does; its signature is that of ours
mods                               called as ``mod(message, context, call_next)``
``Grid.run.primary_task_type``,    tells a deployment from a simulation: "auto" then
`InMemoryGrid`                     takes messages, which work in both
text and code of the errors of     a dead process is then taken for a device that
dead Ray actors                    raised (`transport.delivery`)
=================================  ===================================================

``tests/flower/test_flower_parts.py`` compares each with the Flower that is installed.
"""

from flwr.serverapp import Grid
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import Strategy

__all__ = [
    "CLIPPING_NORM",
    "NUM_EXAMPLES",
    "PROXIMAL_MU",
    "SERVER_ROUND",
    "InconsistentMessageReplies",
    "chain",
    "is_deployed",
    "said_in",
]

SERVER_ROUND = "server-round"
PROXIMAL_MU = "proximal-mu"
CLIPPING_NORM = "clipping_norm"
NUM_EXAMPLES = "num-examples"
_SERVER_APP_TASK = "flwr-serverapp"


def chain(strategy: Strategy) -> list[Strategy]:
    """Return a strategy and those that it wraps, outermost first."""
    found = [strategy]
    for each in found:
        inside = vars(each).values()
        found += [s for s in inside if isinstance(s, Strategy) and s not in found]
    return found


def said_in(strategy: Strategy, attribute: str, default: str) -> str:
    """Return what a strategy, or the first one within that says it, has for a name."""
    for each in chain(strategy):
        value = getattr(each, attribute, None)
        if isinstance(value, str):
            return value
    return default


def is_deployed(grid: Grid) -> bool:
    """Say whether a grid's nodes are SuperNodes, and not those of a simulation.

    In a deployment the run's own task is its ServerApp; in a simulation it is the
    simulation, or the grid is in memory. A grid around another is taken for that one.
    """
    try:
        kind = getattr(grid.run, "primary_task_type", None)
    except Exception:  # of a grid that was given no run yet
        return False
    in_memory = any(each.__name__ == "InMemoryGrid" for each in type(grid).__mro__)
    return kind == _SERVER_APP_TASK and not in_memory
