"""Privacy and mods: what is promised of a device's update is done to it."""

import inspect
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from flwr.clientapp import mod
from flwr.supercore.differential_privacy import compute_clip_model_update

from flwr_slfac import cut
from flwr_slfac.states import weighted_average
from tests.flower.app.splitapp.task import Job, build_model, fingerprint
from tests.flower.harness import Outcome, flower_in
from tests.flower.oracle import train_in_process

pytestmark = pytest.mark.flower

CLIP = 0.25
RECORDING = ["Recording", {}]
FIXED = "DifferentialPrivacyClientSideFixedClipping"
ADAPTIVE = "DifferentialPrivacyClientSideAdaptiveClipping"


def dp(name: str, **settings: Any) -> dict[str, Any]:
    """Return the strategy of a job: DP around FedAvg that keeps what it sees."""
    norm = "clipping_norm" if "Fixed" in name else "initial_clipping_norm"
    fields = {"strategy": RECORDING, norm: CLIP, "num_sampled_clients": 4}
    return {
        "strategy": name,
        "strategy_settings": {**fields, "noise_multiplier": 0.0, **settings},
    }


JOBS = (
    Job("fixed", num_rounds=1, mods=["fixedclipping_mod"], **dp(FIXED)),
    Job("no cache", mods=["fixedclipping_mod"], live_cache=0, **dp(FIXED)),
    Job("adaptive", mods=["adaptiveclipping_mod"], **dp(ADAPTIVE)),
    Job(
        "noise",
        num_rounds=1,
        mods=["fixedclipping_mod"],
        **dp(FIXED, noise_multiplier=1.0),
    ),
    Job(
        "kept fronts",
        scheme="sflv1",
        mods=["fixedclipping_mod"],
        lightweight={"aggregate_every": 2, "period": "round"},
        **dp(FIXED),
    ),
    Job(
        "masked",
        mods=["fixedclipping_mod"],
        lightweight={"prune": 0.4},
        **dp(FIXED),
    ),
    Job("LocalDpMod", strategy="Recording", mods=["LocalDpMod"]),
    Job("local in a relay", "sequential", "Recording", mods=["LocalDpMod"]),
    Job(
        "measured",
        strategy="Recording",
        mods=["message_size_mod", "arrays_size_mod"],
    ),
    Job("halved", strategy="Recording", mods=["halving_mod"]),
    Job("halved into the norm", mods=["halving_mod"], **dp(FIXED, clipping_norm=1e3)),
    Job("plain", strategy="Recording"),
)
REFUSED = {
    "no mod": (Job("no mod", **dp(FIXED)), ("clipping_norm", "fixedclipping_mod")),
    "no mod, adaptive": (
        Job("no mod, adaptive", **dp(ADAPTIVE)),
        ("clipping_norm", "adaptiveclipping_mod"),
    ),
    "another mod": (
        Job("another mod", mods=["LocalDpMod"], **dp(FIXED)),
        ("clipping_norm", "fixedclipping_mod"),
    ),
    "no norm": (
        Job("no norm", mods=["fixedclipping_mod"]),
        ("fixedclipping_mod", "clipping_norm"),
    ),
    "quantized": (
        Job(
            "quantized",
            mods=["fixedclipping_mod"],
            lightweight={"gradient_bits": 8},
            **dp(FIXED),
        ),
        ("update_bits=8", "update_bits=32"),
    ),
    "within a round": (
        Job(
            "within a round",
            mods=["LocalDpMod"],
            lightweight={"aggregate_every": 1, "period": "step"},
        ),
        ("period='step'", "leave the mods out"),
    ),
    "around": (
        Job("around", around="DifferentialPrivacyServerSideFixedClipping"),
        ("SplitFed(Outer(FedAvg(), ...), ...)",),
    ),
    "relay": (
        Job("relay", "sequential", mods=["fixedclipping_mod"], **dp(FIXED)),
        (FIXED, "sequential", "clip"),
    ),
    "relay on the server": (
        Job(
            "relay on the server",
            "sequential",
            **dp("DifferentialPrivacyServerSideFixedClipping"),
        ),
        ("DifferentialPrivacyServerSideFixedClipping", "sequential"),
    ),
}
# What shows only when a mod runs, at the end of the first round.
REFUSED_LATER = {
    "shouting_mod": "changes what the device receives",
    "shrinking_mod": "names or shapes",
    "failing_mod": "it is too cold",
}
TOO_FAR = Job("too far", mods=["halving_mod"], **dp(FIXED, clipping_norm=1e-3))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """Run all jobs in one simulation."""
    later = [Job(name, mods=[name], num_rounds=1) for name in REFUSED_LATER]
    refused = [job for job, _ in REFUSED.values()]
    with flower_in(tmp_path_factory.mktemp("privacy")) as flower:
        yield flower.simulate([*refused, TOO_FAR, *later, *JOBS])


def seen(outcome: Outcome, name: str) -> list[dict[str, Any]]:
    """Return what the strategy of a job was given, a reply each."""
    result = outcome.results[name]
    assert "error" not in result, result["traceback"]
    return list(result["seen"])


@pytest.mark.parametrize("name", REFUSED)
def test_void_privacy_is_refused_before_training(outcome: Outcome, name: str) -> None:
    """Where no update would be clipped, or in vain, the run ends with the remedy."""
    result = outcome.results[name]
    for words in REFUSED[name][1]:
        assert words in result["error"]
    assert not result.get("reports")
    assert "hash" not in result


@pytest.mark.parametrize("name", REFUSED_LATER)
def test_a_mod_that_cannot_be_carried_is_refused(outcome: Outcome, name: str) -> None:
    """A mod that does more than change the values sent back ends the run."""
    result = outcome.results[name]
    assert REFUSED_LATER[name] in result["error"]
    assert "hash" not in result


def test_an_update_past_the_norm_is_refused(outcome: Outcome) -> None:
    """A mod of somebody's own in place of clipping is checked by what it leaves."""
    assert "norm 0.001 at most" in outcome.results["too far"]["error"]


@pytest.mark.parametrize("name", ["fixed", "no cache", "adaptive", "kept fronts"])
def test_devices_clip_what_they_send(outcome: Outcome, name: str) -> None:
    """No update that reaches the server is longer than the norm of its round."""
    replies = seen(outcome, name)
    assert len(replies) == (8 if name in ("no cache", "adaptive") else 4)
    if name != "adaptive":
        assert max(reply["norm"] for reply in replies) <= CLIP * (1 + 1e-5)
    assert min(r["norm"] for r in seen(outcome, "plain")[:4]) > 0.9 * CLIP


def test_clipping_is_that_of_flower(outcome: Outcome) -> None:
    """The round ends in what Flower's own function makes of the unclipped fronts."""
    job = Job("fixed", num_rounds=1)
    _, result = train_in_process(job)
    first = cut(build_model(job.seed), at="front").front.state_dict()
    before = ArrayRecord(first).to_numpy_ndarrays()
    fronts, weights = [], []
    for each in result.rounds[0].finished.values():
        after = ArrayRecord(dict(each.front or {})).to_numpy_ndarrays()
        compute_clip_model_update(after, before, CLIP)
        tensors = [torch.from_numpy(np.asarray(value)) for value in after]
        fronts.append(dict(zip(first, tensors, strict=True)))
        weights.append(each.num_examples)
    expected = fingerprint(weighted_average(fronts, weights))
    assert outcome.results["fixed"]["front-hash"] == expected


def test_adaptive_clipping_hears_of_every_device(outcome: Outcome) -> None:
    """Each reply says whether it was clipped, and the norm follows."""
    replies = seen(outcome, "adaptive")
    assert all(reply["metrics"]["norm_bit"] == 1 for reply in replies)
    first, second = (
        max(r["norm"] for r in part) for part in (replies[:4], replies[4:])
    )
    assert first <= CLIP * (1 + 1e-5)
    # Flower lowers the norm by exp(-0.2 (clipped - 0.5)) when all were clipped.
    assert second <= CLIP * math.exp(-0.1) * (1 + 1e-5)
    assert second != first


def test_noise_is_added_on_the_server(outcome: Outcome) -> None:
    """With noise the same round ends elsewhere."""
    assert outcome.results["noise"]["hash"] != outcome.results["fixed"]["hash"]


def test_masked_fronts_are_clipped(outcome: Outcome) -> None:
    """A part of a front is clipped as a front is."""
    plain = seen(outcome, "plain")
    assert max(r["norm"] for r in seen(outcome, "masked")) < max(
        r["norm"] for r in plain
    )


@pytest.mark.parametrize("name", sorted(mod.__all__))
def test_every_mod_of_flower_has_a_test(name: str) -> None:
    """A mod that Flower adds is tried here before anybody relies on it."""
    assert name in inspect.getsource(inspect.getmodule(seen) or seen)


def test_local_noise_is_drawn_on_each_device(outcome: Outcome) -> None:
    """LocalDpMod changes every front that a device sends, in a relay too."""
    for name in ("LocalDpMod", "local in a relay"):
        assert outcome.results[name]["hash"] != outcome.results["plain"]["hash"]
        assert outcome.results[name]["finite"]


def test_measuring_mods_measure_what_crosses(outcome: Outcome) -> None:
    """They see every message, smashed data included, and change nothing."""
    assert outcome.results["measured"]["hash"] == outcome.results["plain"]["hash"]
    plain = train_in_process(Job("plain"))[0]
    assert outcome.results["plain"]["hash"] == plain
    assert "Outgoing message size" in outcome.log
    assert "Total array elements sent" in outcome.log


def test_a_mod_of_ones_own_changes_the_update(outcome: Outcome) -> None:
    """It is given the front that arrived and the trained one; its metrics arrive."""
    halved, plain = seen(outcome, "halved"), seen(outcome, "plain")
    assert all(reply["metrics"]["halved"] == 1 for reply in halved)
    for mine, other in zip(halved[:4], plain[:4], strict=True):
        assert mine["norm"] < 0.9 * other["norm"]
    assert "hash" in outcome.results["halved into the norm"]


def test_what_privacy_does_not_cover_is_said(outcome: Outcome) -> None:
    """The log of every run with a private strategy tells that the back is not."""
    assert "the back is trained on them without clipping or noise" in outcome.log
