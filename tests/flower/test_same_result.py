"""Law 2: the same seed ends in the same weights, wherever a run is carried out."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flower.app.splitapp.task import Job
from tests.flower.harness import Outcome, flower_in
from tests.flower.oracle import train_in_process

pytestmark = pytest.mark.flower

SCHEMES = ("parallel", "sequential", "sflv1", "sflv2")
JOBS = (
    *(Job(scheme, scheme) for scheme in SCHEMES),
    Job("no live cache", live_cache=0),
    Job("one live device", scheme="sflv1", live_cache=1),
    Job("optimizer reset", scheme="sflv2", keep_optimizer=False),
    Job("pipeline", pipeline_depth=1),
    Job("pipeline, no live cache", pipeline_depth=1, live_cache=0),
    Job("float16", up="float16", down="bfloat16"),
    Job("slfac", up="slfac(theta=0.8)", down="slfac"),
    Job("waterfill", up="waterfill(nrmse=0.2)", down="waterfill(nrmse=0.5)"),
    Job("samples", up="temporal(inner=waterfill(nrmse=0.2))", num_rounds=3),
    Job(
        "samples without a cache",
        up="temporal(inner=waterfill(nrmse=0.2), bits=8)",
        num_rounds=3,
        live_cache=0,
    ),
    Job(
        "streams without a cache",
        up="waterfill(nrmse=0.2)",
        down="feedback(inner=topk(fraction=0.1))",
        live_cache=0,
    ),
    Job(
        "lightweight",
        up="waterfill(nrmse=0.2)",
        num_rounds=3,
        lightweight={
            "prune": 0.4,
            "gradient_bits": 8,
            "activation_dropout": 0.3,
            "aggregate_every": 2,
            "period": "round",
        },
    ),
    Job(
        "lightweight, unlike devices",
        scheme="sflv1",
        num_rounds=3,
        live_cache=0,
        lightweight={
            "prune": "odd",
            "saved_bits": 8,
            "aggregate_every": 2,
            "period": "round",
        },
    ),
    Job(
        "period of steps",
        up="waterfill(nrmse=0.2)",
        live_cache=0,
        lightweight={
            "prune": "odd",
            "update_bits": 8,
            "error_feedback": True,
            "aggregate_every": 1,
            "period": "step",
        },
    ),
    Job(
        "renewed masks",
        up="waterfill(nrmse=0.2)",
        live_cache=0,
        num_rounds=3,
        lightweight={
            "prune": 0.4,
            "criterion": "scale",
            "update_bits": 8,
            "aggregate_every": 1,
            "renew_every": 1,
        },
    ),
    Job(
        "period of steps, whole fronts",
        scheme="sflv2",
        lightweight={"aggregate_every": 2, "period": "step"},
    ),
    Job("cuts", live_cache=0, cuts={"0": "front.0", "2": "front.1"}),
    Job("cuts, copies", scheme="sflv1", up="float16", cuts={"1": "front.0"}),
    Job(
        "lightweight relay",
        scheme="sequential",
        lightweight={"prune": 0.4, "structured": False, "gradient_bits": 4},
    ),
)


@pytest.fixture(scope="module", params=[1, 2, 4])
def simulated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Outcome]:
    """Run all jobs in one simulation with this many Ray actors."""
    with flower_in(tmp_path_factory.mktemp("simulation")) as flower:
        yield flower.simulate(JOBS, num_actors=request.param)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_simulation_ends_in_the_weights_of_one_process(
    simulated: Outcome, job: Job
) -> None:
    """Any number of Ray actors, cache or none: the weights of one process."""
    assert simulated.status == "finished:completed", simulated.log[-3000:]
    assert simulated.results[job.name]["hash"] == train_in_process(job)[0]


def test_live_devices_are_not_built_again(simulated: Outcome) -> None:
    """A process builds a device once a job where the cache holds it."""
    built = [line.split() for line in simulated.lines("built.txt")]
    per_process = [tuple(words) for words in built if words[0] == "parallel"]
    assert per_process
    assert len(per_process) == len(set(per_process))


def test_every_byte_is_counted(simulated: Outcome) -> None:
    """Frames and fronts that crossed add up to the traffic of each direction."""
    result = simulated.results["float16"]
    mine: dict[str, int] = {}
    for row in result["traffic"]:
        mine[row["direction"]] = mine.get(row["direction"], 0) + row["num_bytes"]
    counted = result["counted"]
    assert set(mine) == {*counted, "control"}
    for direction in ("up", "down", "targets"):
        assert mine[direction] == counted[direction]
    for direction in ("model-up", "model-down"):
        # Flower counts the names, shapes and headers of a model's arrays as well.
        assert counted[direction] <= mine[direction] <= 1.5 * counted[direction]


def test_every_device_is_told_of_its_costs(simulated: Outcome) -> None:
    """A row a round and device; fronts cross in rounds 1 to 3 as they should."""
    costs = simulated.results["lightweight"]["costs"]
    assert [(c["server_round"], c["device"]) for c in costs] == [
        (r, d) for r in (1, 2, 3) for d in range(4)
    ]
    for cost in costs:
        step = cost["step"]
        assert 0 < step["forward_flops"] < step["plain_forward_flops"]
        assert 0 < cost["smashed_up_bytes"] < cost["plain_smashed_bytes"] / 4
        crossed = cost["model_down_bytes"] > 100, cost["model_up_bytes"] > 0
        expected = {1: (True, False), 2: (False, True), 3: (True, True)}
        assert crossed == expected[cost["server_round"]]


def test_both_evaluations_agree(simulated: Outcome) -> None:
    """Evaluation through the split gives what the joined model gives on a server."""
    result = simulated.results["parallel"]
    for server_round, federated in result["evaluate-metrics"].items():
        central = result["central-metrics"][server_round]
        assert federated["accuracy"] == pytest.approx(central["accuracy"], abs=1e-9)
        assert federated["loss"] == pytest.approx(central["loss"], rel=1e-5)


def test_deployment_ends_in_the_weights_of_one_process(tmp_path: Path) -> None:
    """By messages, a SuperLink and two SuperNodes end in one process's weights."""
    job = Job("deployed", transport="messages")
    with flower_in(tmp_path) as flower:
        outcome = flower.deploy([job])
    assert outcome.status == "finished:completed", outcome.log[-3000:]
    assert outcome.results[job.name]["hash"] == train_in_process(job, 2)[0]
