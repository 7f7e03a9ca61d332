"""Every strategy of the installed Flower, under every scheme: it works, or says why."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.serverapp import strategy

import flwr_slfac
from tests.flower.app.splitapp.task import Job
from tests.flower.harness import Outcome, flower_in

pytestmark = pytest.mark.flower

PAGE = Path(flwr_slfac.__file__).parent / "STRATEGIES.md"
SCHEMES = ("sequential", "sflv1", "sflv2", "parallel")
LIGHTWEIGHT = {"prune": 0.4, "gradient_bits": 8, "activation_dropout": 0.2}
INSIDE: dict[str, Any] = {
    "strategy": ["FedAvg", {"weighted_by_key": "examples"}],
    "noise_multiplier": 0.1,
    "num_sampled_clients": 3,
}
FIXED = {**INSIDE, "clipping_norm": 0.5}
# What each is made with; a device's mods where it wants some.
SETTINGS: dict[str, dict[str, Any]] = {
    "Bulyan": {},
    "DifferentialPrivacyClientSideAdaptiveClipping": INSIDE,
    "DifferentialPrivacyClientSideFixedClipping": FIXED,
    "DifferentialPrivacyServerSideAdaptiveClipping": INSIDE,
    "DifferentialPrivacyServerSideFixedClipping": FIXED,
    "FedAdagrad": {},
    "FedAdam": {"beta_1": 0.9, "beta_2": 0.99},
    "FedAvg": {"arrayrecord_key": "front", "weighted_by_key": "examples"},
    "FedAvgM": {"server_momentum": 0.5},
    "FedMedian": {},
    "FedProx": {"proximal_mu": 0.5},
    "FedTrimmedAvg": {"beta": 0.34},
    "FedXgbBagging": {},
    "FedXgbCyclic": {},
    "FedYogi": {"beta_1": 0.9, "beta_2": 0.99},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 2},
    "QFedAvg": {"client_learning_rate": 0.1},
}
MODS = {
    "DifferentialPrivacyClientSideAdaptiveClipping": ["adaptiveclipping_mod"],
    "DifferentialPrivacyClientSideFixedClipping": ["fixedclipping_mod"],
}
NUM_DEVICES = 3
REFUSAL = re.compile(r"(DeviceError: device \d refused: )?SettingError: ")
CASES = [
    (name, scheme, weight)
    for name in SETTINGS
    for scheme in SCHEMES
    for weight in ("plain", "lightweight")
]


def exported() -> set[str]:
    """Return the names of the strategies that Flower exports."""
    return {
        name
        for name, each in inspect.getmembers(strategy, inspect.isclass)
        if issubclass(each, strategy.Strategy) and not inspect.isabstract(each)
    }


def job_of(name: str, scheme: str, weight: str) -> Job:
    """Return the smallest job with two rounds, the second from what the first left."""
    return Job(
        f"{name} {scheme} {weight}",
        scheme,
        name,
        SETTINGS[name],
        batch_size=32,
        mods=MODS.get(name, []),
        lightweight=LIGHTWEIGHT if weight == "lightweight" else {},
        on_device_error="raise",
    )


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """Run all cases in one simulation."""
    with flower_in(tmp_path_factory.mktemp("every")) as flower:
        yield flower.simulate(
            [job_of(*case) for case in CASES], num_devices=NUM_DEVICES
        )


def reason_of(result: dict[str, Any], name: str) -> str:
    """Return why a case was refused, without the name of the strategy."""
    reason = REFUSAL.sub("", result["error"], count=1)
    return reason.replace(name, "the strategy").replace(": the strategy", ": it")


@pytest.mark.parametrize("name", sorted(exported()))
def test_a_strategy_of_flower_is_known(name: str) -> None:
    """A strategy that Flower adds is tried here before anybody relies on it."""
    assert name in SETTINGS, f"Flower has {name}: add it to SETTINGS"


@pytest.mark.parametrize(("name", "scheme", "weight"), CASES)
def test_a_strategy_works_or_is_refused_before_training(
    outcome: Outcome, name: str, scheme: str, weight: str
) -> None:
    """It trains to finite weights, or an error before training tells the remedy."""
    result = outcome.results[f"{name} {scheme} {weight}"]
    if "error" in result:
        assert REFUSAL.match(result["error"]), result["traceback"]
        assert "use " in result["error"] or "set " in result["error"]
        assert not result.get("reports")
        return
    assert result["finite"]
    assert len(set(result["hash-by-round"])) == 3, "a round changed nothing"
    assert len(result["train-metrics"]) == len(result["evaluate-metrics"]) == 2


def test_the_page_holds_what_was_found(outcome: Outcome) -> None:
    """`STRATEGIES.md` says of each case what this run found; refusals with reason."""
    found = table(outcome)
    (outcome.folder / "found.md").write_text(found)
    assert found in PAGE.read_text(), f"see {outcome.folder / 'found.md'}"


def table(outcome: Outcome) -> str:
    """Return what was found as Markdown: a row a strategy and scheme, then reasons."""
    reasons: list[str] = []
    lines = ["| strategy | scheme | plain | lightweight |", "|---|---|---|---|"]
    for name in SETTINGS:
        for scheme in SCHEMES:
            cells = []
            for weight in ("plain", "lightweight"):
                result = outcome.results[f"{name} {scheme} {weight}"]
                cells.append(cell(result, name, reasons))
            lines.append(f"| {name} | `{scheme}` | {' | '.join(cells)} |")
    notes = [f"{i}. {reason}" for i, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", *notes, ""])


def cell(result: dict[str, Any], name: str, reasons: list[str]) -> str:
    """Return ``works`` or ``refused`` with the number of its reason."""
    if "error" not in result:
        return "works"
    reason = reason_of(result, name)
    if reason not in reasons:
        reasons.append(reason)
    return f"refused ({reasons.index(reason) + 1})"
