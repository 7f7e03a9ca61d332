"""Who is sampled, and how settings are set side by side: small pure functions."""

import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("simpy", reason="the clock needs flwr-slfac[simulation]")

from simulation.comparison import compared
from simulation.data import central_test, device_data
from simulation.launch import read_settings
from simulation.run_settings import RunSettings
from simulation.sampling import POLICIES, Candidate, find_policy, oort_utility

from flwr_slfac import SettingError

CANDIDATES = [
    Candidate(device, 10.0 + device, 10 * (device + 1), 1.0, last_round=1)
    for device in range(6)
]


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_names_as_many_as_are_wanted(name: str) -> None:
    """Every policy names so many of the candidates, each once, and the same again."""
    for count in (1, 3, 6):
        chosen = POLICIES[name](CANDIDATES, count, np.random.default_rng(1))
        assert len(set(chosen)) == len(chosen) == count
        assert set(chosen) <= {c.device for c in CANDIDATES}
        again = POLICIES[name](CANDIDATES, count, np.random.default_rng(1))
        assert list(again) == list(chosen)


def test_speed_names_the_fastest() -> None:
    """Sampling by speed names those whose rounds are shortest."""
    chosen = POLICIES["speed"](list(reversed(CANDIDATES)), 2, np.random.default_rng(0))
    assert chosen == [0, 1]


def test_data_draws_by_examples() -> None:
    """Sampling by data draws a device in proportion to its examples."""
    draws = np.random.default_rng(3)
    firsts = [POLICIES["data"](CANDIDATES, 1, draws)[0] for _ in range(4000)]
    share = np.bincount(firsts, minlength=6) / 4000
    assert share == pytest.approx(np.arange(1, 7) / 21, abs=0.03)


def test_oort_weighs_loss_data_and_speed() -> None:
    """Utility is n times loss, cut by (T / t)^2 beyond T, raised for stale devices."""
    fast = Candidate(0, 5.0, num_examples=10, loss=2.0, last_round=1)
    assert oort_utility(fast, 10.0) == 20.0
    slow = Candidate(0, 40.0, num_examples=10, loss=2.0, last_round=1)
    assert oort_utility(slow, 10.0) == 20.0 / 16
    later = Candidate(0, 5.0, 10, 2.0, last_round=4, server_round=9)
    grown = 20 * (1 + math.sqrt(0.1 * math.log(9) / 4))
    assert oort_utility(later, 10.0) == pytest.approx(grown)


def test_oort_tries_devices_that_are_not_known() -> None:
    """A fifth of the places goes to unknown devices, and all that known ones leave."""
    fresh = [Candidate(device, 1.0 + device) for device in range(6, 12)]
    draws = np.random.default_rng(0)
    chosen = POLICIES["oort"]([*CANDIDATES, *fresh], 5, draws)
    assert [d for d in chosen if d >= 6] == [6]
    assert POLICIES["oort"](fresh, 3, draws) == [6, 7, 8]
    mixed = POLICIES["oort"]([*CANDIDATES[:2], *fresh], 6, draws)
    assert set(mixed) == {0, 1, 6, 7, 8, 9}


def test_a_policy_of_ones_own_is_found_or_refused() -> None:
    """``module:function`` is imported; what cannot be is named."""
    assert find_policy("simulation.sampling:by_speed") is POLICIES["speed"]
    with pytest.raises(SettingError, match="sampling 'no_such:x' cannot be found"):
        find_policy("no_such:x")
    with pytest.raises(SettingError, match="sampling is 'fair'; use one of random"):
        find_policy("fair")


def test_settings_are_set_against_the_first() -> None:
    """A row tells what the target took; one that never reaches it has no numbers."""
    names = ("server_round", "end_s", "accuracy", "total_bytes", "total_j")

    def run(*rows: tuple[float, ...]) -> list[dict[str, float]]:
        return [dict(zip(names, row, strict=True)) for row in rows]

    runs = {
        "slow": run((1, 10.0, 0.5, 100, 1.0), (2, 20.0, 0.9, 200, 2.0)),
        "fast": run((1, 2.0, math.nan, 10, 0.1), (2, 5.0, 0.95, 20, 0.2)),
        "never": run((1, 1.0, 0.1, 1, 0.1)),
    }
    slow, fast, never = compared(runs, dict.fromkeys(runs, ""), 0.9)
    assert (slow.target_s, slow.target_bytes, slow.times_first) == (20.0, 200, 1.0)
    assert (fast.target_round, fast.times_first) == (2, 0.25)
    assert never.accuracy == 0.1
    assert math.isnan(never.target_s)
    assert math.isnan(never.times_first)


def test_settings_are_read_as_keys() -> None:
    """Texts become keys of the run configuration; unknown ones are refused."""
    found = read_settings("codec-up='slfac(theta=0.9)' num-rounds=3 seed=7")
    assert found == {"codec-up": "slfac(theta=0.9)", "num-rounds": 3, "seed": 7}
    with pytest.raises(SettingError, match="'rounds=3' is no KEY=VALUE"):
        read_settings("rounds=3")


# Of pyarrow 25, about how datasets 4 sorts.
@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")
@pytest.mark.parametrize("partition", ["iid", "dirichlet", "shard"])
def test_devices_share_the_data_without_the_test(
    partition: str, tmp_path: Path
) -> None:
    """Every example is one device's, what fills no shard aside, none the test's."""
    pytest.importorskip("flwr_datasets", reason="partitions need flwr-slfac[examples]")
    path = tmp_path / "t.toml"
    path.write_text(
        '[data]\ntest_share = 0.25\npartition = "PARTITION"\n'.replace(
            "PARTITION", partition
        )
        + '[devices]\ncount = 5\ntiers = { phone = 1.0 }\n[channel]\nkind = "preset"\n'
        'preset = "lte"\n'
    )
    path.write_text('name = "t"\n' + path.read_text())
    scenario = RunSettings.of({"scenario": str(path)}).scenario
    parts = [device_data(scenario, device, 5) for device in range(5)]
    test = central_test(scenario)
    assert len(test) == round(0.25 * 1797)
    left_out = 1797 - len(test) - sum(map(len, parts))
    assert 0 <= left_out < (5 * 2 if partition == "shard" else 1)
    seen = [x.numpy().tobytes() for part in parts for x in part.tensors[0]]
    held = {x.numpy().tobytes() for x in test.tensors[0]}
    # Digits repeat no image.
    assert len(set(seen)) == len(seen)
    assert not held & set(seen)


def test_natural_partitions_are_one_a_value(tmp_path: Path) -> None:
    """A column's values are the devices; another number of devices is refused."""
    pytest.importorskip("flwr_datasets", reason="partitions need flwr-slfac[examples]")
    images = np.arange(12 * 4 * 4, dtype=np.uint8).reshape(12, 4, 4)
    site = np.array(["a", "b", "c"] * 4)
    np.savez(tmp_path / "d.npz", x=images, y=np.arange(12) % 2, site=site)
    path = tmp_path / "t.toml"
    path.write_text(
        'name = "t"\n[data]\nsource = "d.npz"\npartition = "natural"\nby = "site"\n'
        '[devices]\ncount = 3\ntiers = { phone = 1.0 }\n[channel]\nkind = "preset"\n'
        'preset = "lte"\n'
    )
    scenario = RunSettings.of({"scenario": str(path)}).scenario
    parts = [device_data(scenario, device, 3) for device in range(3)]
    assert sum(map(len, parts)) + len(central_test(scenario)) == 12
    assert parts[0].tensors[0].shape[1:] == (1, 4, 4)
    with pytest.raises(SettingError, match="site has 3 values and there are 2 devices"):
        device_data(scenario, 0, 2)
