"""When devices are on: by file, and drawn by seed."""

import math
from pathlib import Path

import numpy as np
import pytest

from flwr_slfac import SettingError

pytest.importorskip("simpy", reason="the clock needs flwr-slfac[simulation]")

from simulation.clock import AlwaysOn, DrawnOnOff, OnOff, read_on_off
from simulation.errors import ScenarioError


def test_intervals_repeat() -> None:
    """A device is on in its intervals of every period, off at their ends."""
    on = OnOff({0: [(1.0, 3.0), (5.0, 6.0)]}, period_s=10.0)
    found = [time for time in np.arange(0, 20, 0.5) if on.is_on(0, float(time))]
    once = [1, 1.5, 2, 2.5, 5, 5.5]
    assert found == once + [time + 10 for time in once]
    assert on.next_off_s(0, 12.0) == 13
    assert on.next_off_s(0, 4.0) == 4
    assert on.is_on(1, 4.0)
    assert on.next_off_s(1, 4.0) == math.inf


def test_on_across_the_end_of_a_period() -> None:
    """On to the end and on from 0 is one stretch, for ever if it is all."""
    assert OnOff({0: [(0.0, 2.0), (8.0, 10.0)]}, 10.0).next_off_s(0, 9.0) == 12
    assert OnOff({0: [(0.0, 10.0)]}, 10.0).next_off_s(0, 9.0) == math.inf


def test_without_a_period_it_ends() -> None:
    """A trace that does not repeat leaves its devices off."""
    on = OnOff({0: [(1.0, 3.0)]})
    assert on.next_off_s(0, 2.0) == 3
    assert not on.is_on(0, 100.0)


def test_intervals_that_are_none_are_refused(tmp_path: Path) -> None:
    """Overlaps, empty intervals, what goes beyond the period, rows that are none."""
    for own in ([(2.0, 1.0)], [(0.0, 2.0), (1.0, 3.0)], [(0.0, 20.0)], []):
        with pytest.raises(SettingError, match="device 0"):
            OnOff({0: own}, 10.0)
    path = tmp_path / "churn.csv"
    for text, match in (
        ("device,on\n", ":1: header"),
        ("device,on_s,off_s\n0,1\n", ":2: row"),
        ("device,on_s,off_s\n0,1,2\n0,1.5,3\n", "lie apart"),
    ):
        path.write_text(text)
        with pytest.raises(ScenarioError, match=match):
            read_on_off(path)
    path.write_text("device,on_s,off_s\n0,1,2\n3,0,5\n0,4,5\n")
    on = read_on_off(path, 10.0)
    assert on.intervals == {0: [(1.0, 2.0), (4.0, 5.0)], 3: [(0.0, 5.0)]}


def test_drawn_devices_are_on_as_often_as_they_should() -> None:
    """Over a long time each is on for its share, and for `on_s` at a stretch."""
    drawn = DrawnOnOff(10.0, [0.3, 0.8, 1.0], seed=4)
    times = np.arange(0, 40_000, 3.0)
    shares = [np.mean([drawn.is_on(d, t) for t in times]) for d in range(3)]
    assert shares == pytest.approx([0.3, 0.8, 1.0], abs=0.03)
    assert drawn.next_off_s(2, 5.0) == math.inf


def test_drawn_times_do_not_depend_on_who_asks() -> None:
    """State and next change are a function of seed, device and time alone."""
    first, second = DrawnOnOff(5.0, [0.5] * 3, 1), DrawnOnOff(5.0, [0.5] * 3, 1)
    forth = [
        (first.is_on(d, t), first.next_off_s(d, t))
        for d in range(3)
        for t in (0, 9, 90)
    ]
    back = [
        (second.is_on(d, t), second.next_off_s(d, t))
        for d in (2, 1, 0)
        for t in (90, 9, 0)
    ]
    assert forth == back[::-1]
    assert all(off >= t for (_, off), t in zip(forth, [0, 9, 90] * 3, strict=True))
    on = [
        off > t for (is_on, off), t in zip(forth, [0, 9, 90] * 3, strict=True) if is_on
    ]
    assert all(on)


def test_always_on_is_always_on() -> None:
    """Without churn nobody goes."""
    assert AlwaysOn().is_on(0, 1e9)
    assert AlwaysOn().next_off_s(0, 0.0) == math.inf
