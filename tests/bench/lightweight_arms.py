"""What the benchmarks of lightweight training compare, and for how long it trains."""

from dataclasses import dataclass
from typing import Any, Literal

Setting = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Parameters
    ----------
    setting : dict or None
        Of `Lightweight`; None for none.
    scheme : {"parallel", "sflv1", "whole"}
        Of split training; "whole" is FedAvg on the whole model, without a cut.
    default_codecs : bool
        Those of `SplitFed` instead of identity.
    plain_sgd : bool
        Without momentum, at ten times the rate, which comes to steps of equal size.
    """

    setting: Setting | None
    scheme: Literal["parallel", "sflv1", "whole"] = "parallel"
    default_codecs: bool = False
    plain_sgd: bool = False


@dataclass(frozen=True)
class Plan:
    """What is trained on a dataset."""

    num_images: int
    num_rounds: int
    max_steps: int
    cut: str


REDUCED: Setting = {
    "prune": 0.3,
    "criterion": "increase",
    "gradient_bits": 8,
    "activation_dropout": 0.1,
}
TOGETHER = {**REDUCED, "aggregate_every": 2, "period": "round"}
STEPS_OF_5 = {"aggregate_every": 5, "period": "step"}
CENTRE = {**REDUCED, **STEPS_OF_5}

_SHORT_AND_LONG: dict[str, Setting | None] = {
    "plain": None,
    "together": TOGETHER,
    "together by weight": {**TOGETHER, "criterion": "weight"},
    **{
        f"rho {rho}": {"prune": rho, "criterion": "increase"}
        for rho in (0.1, 0.3, 0.5, 0.7)
    },
    "rho 0.3 by weight": {"prune": 0.3},
    **{f"{bits} bits": {"gradient_bits": bits} for bits in (8, 4)},
    **{f"p {p}": {"activation_dropout": p} for p in (0.1, 0.3)},
    **{f"I {every}": {"aggregate_every": every, "period": "round"} for every in (2, 5)},
    "I 5 steps": STEPS_OF_5,
    **{
        f"together, I {every} steps": {**CENTRE, "aggregate_every": every}
        for every in (1, 5, 10, 30)
    },
    "together, I 1 round": {**REDUCED, "aggregate_every": 1, "period": "round"},
    "together gradually, I 5 steps": {**CENTRE, "prune_rounds": 4},
}
# One factor at a time around a centre, with the codecs that users get.
_AROUND: dict[str, Setting] = {
    "centre": CENTRE,
    **{f"centre, I {every}": {**CENTRE, "aggregate_every": every} for every in (1, 30)},
    "centre, I round": {**CENTRE, "aggregate_every": 1, "period": "round"},
    **{f"centre, rho {rho}": {**CENTRE, "prune": rho} for rho in (0.0, 0.5, 0.7)},
    **{f"centre, {bits} bits": {**CENTRE, "gradient_bits": bits} for bits in (2, 32)},
    **{f"centre, p {p}": {**CENTRE, "activation_dropout": p} for p in (0.0, 0.3)},
    "centre, 4 bits": {**CENTRE, "gradient_bits": 4},
    "centre, I 10": {**CENTRE, "aggregate_every": 10},
    "centre, rho 0.1": {**CENTRE, "prune": 0.1},
}
# To the same target; `Lightweight()` changes nothing, and has devices tell their cost.
_TO_TARGET = {
    "SFLV1": Arm({}, "sflv1"),
    "FedAvg, whole model": Arm(None, "whole"),
    "centre in SFLV1": Arm(CENTRE, "sflv1", default_codecs=True),
}
# What averaging within a round leaves of drift, and what control variates take of that.
_DRIFT = {
    f"SGD, I {every}{', control variates' if own else ''}": Arm(
        {"aggregate_every": every, "control_variates": own}, plain_sgd=True
    )
    for every in (10, 30)
    for own in (False, True)
}
ARMS: dict[str, Arm] = {
    **{name: Arm(setting) for name, setting in _SHORT_AND_LONG.items()},
    "centre": Arm(CENTRE, default_codecs=True),
    **_TO_TARGET,
    **_DRIFT,
    **{name: Arm(own, default_codecs=True) for name, own in _AROUND.items()},
}
# In the order in which they run.
TABLE = ["centre", *_TO_TARGET, *(name for name in _AROUND if name != "centre")]

PLANS = {
    # In long rounds fronts drift apart, those of plain training too.
    "short": {
        "cifar10": Plan(10_000, 1000, 2, "features.13"),
        "mnist": Plan(4000, 6, 50, "layer1"),
    },
    "long": {
        "cifar10": Plan(10_000, 8, 50, "features.13"),
        "mnist": Plan(4000, 3, 50, "layer1"),
    },
    # The table's, long enough for plain SFLV1 to learn too.
    "target": {
        "cifar10": Plan(10_000, 16, 50, "features.13"),
        "mnist": Plan(4000, 8, 50, "layer1"),
    },
    "table": {
        "cifar10": Plan(10_000, 3, 50, "features.13"),
        "mnist": Plan(4000, 3, 50, "layer1"),
    },
}
