"""Samples of a node's state lie in files beside it, or are noticed as lost."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict

from flwr_slfac import Device
from flwr_slfac.codec import Temporal, Uniform
from flwr_slfac.split import (
    DeviceHalf,
    LocalLink,
    LocalResult,
    TrainRequest,
    train_locally,
)
from flwr_slfac.transport.node_state import NodeState
from tests.codec.test_sample_files import mapped
from tests.split import builders

SIZES = [24, 16]


class Amnesiac(LocalLink):
    """Makes a device anew from its node's state for each request.

    Parameters
    ----------
    halves
        Of the devices.
    after : callable
        Called with (partition id, round, step) when a state was written.
    """

    def __init__(self, halves: Any, after: Callable[..., None]) -> None:
        super().__init__(halves)
        self._after, self.now = after, 0
        self.begun_anew = 0
        self.contexts = {
            half.partition: Context(0, half.partition, {}, RecordDict(), {})
            for half in halves
        }

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, Any]:
        """Answer with devices that know what the states say."""
        answers = {}
        for key, request in requests.items():
            if request.begin is not None:
                self.now = request.begin.server_round
            half = DeviceHalf(self._halves[key].device, key)
            node = NodeState(half)
            node.read(self.contexts[key])
            answers[key] = half.train(request)
            node.write(self.contexts[key])
            self._halves[key] = half
            self._after(key, self.now, request.step)
        return answers

    def num_bytes(self, key: int) -> int:
        """Return the bytes of a node's state."""
        state = self.contexts[key].state
        own = state.config_records["slfac"].values()
        arrays = [r.count_bytes() for r in state.array_records.values()]
        return sum(len(v) for v in own if isinstance(v, bytes)) + sum(arrays)


def train(
    folder: Path | None, after: Callable[..., None] = lambda *_: None, **how: Any
) -> tuple[LocalResult, Amnesiac]:
    """Train two devices that are made anew for each request."""
    front, back = builders.halves(norm=False)
    links: list[Amnesiac] = []

    def make_link(halves: Any) -> Amnesiac:
        links.append(Amnesiac(halves, after))
        return links[0]

    result = train_locally(
        builders.devices(front, SIZES, sample_folder=folder),
        front.state_dict(),
        builders.server(back),
        num_rounds=3,
        up=Temporal(Uniform(4)),
        evaluate=False,
        make_link=make_link,
        **how,
    )
    return result, links[0]


def same(one: LocalResult, other: LocalResult) -> bool:
    """Say whether two runs came to the same weights and bytes."""
    bytes_of = [[row.num_bytes for row in r.traffic.rows()] for r in (one, other)]
    fronts = zip(one.front.values(), other.front.values(), strict=True)
    return bytes_of[0] == bytes_of[1] and all(torch.equal(*pair) for pair in fronts)


@pytest.mark.parametrize("depth", [0, 1])
def test_a_run_is_that_of_memory(tmp_path: Path, depth: int) -> None:
    """The same weights and bytes; states are small, and files those of two states."""
    seen: list[int] = []

    def count(key: int, *_: int) -> None:
        seen.append(len(list((tmp_path / f"device-{key}").iterdir())))

    found, link = train(tmp_path, count, pipeline_depth=depth)
    plain, other = train(None, pipeline_depth=depth)
    assert same(found, plain)
    rows = 24 * 4 * 6 * 6 * 2
    assert link.num_bytes(0) < other.num_bytes(0) - rows / 2
    # Frames of an epoch, those before that are in use, and of the round before.
    assert 0 < max(seen) <= 3 * 3
    del found, link, plain, other
    assert mapped(tmp_path) == 0


@pytest.mark.parametrize("step", [0, 1, 3])
def test_samples_that_are_lost_begin_anew(tmp_path: Path, step: int) -> None:
    """A folder that is emptied, within a round or at its end, loses no device."""

    def lose(key: int, server_round: int, now: int) -> None:
        if (key, server_round, now) == (0, 2, step):
            shutil.rmtree(tmp_path / "device-0")

    result, _ = train(tmp_path, lose, on_device_error="raise")
    assert not any(outcome.lost for outcome in result.rounds)
    assert result.rounds[-1].loss < result.rounds[0].loss


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """Nothing is deleted but samples in the device's own folder."""
    (tmp_path / "device-0").mkdir()
    others = [tmp_path / "other.samples", tmp_path / "device-0" / "notes.txt"]
    stale = tmp_path / "device-0" / "stale.samples"
    for path in (*others, stale):
        path.write_text("here")
    train(tmp_path)
    assert all(path.exists() for path in others)
    assert not stale.exists()


def test_a_device_without_the_folder_begins_anew(tmp_path: Path) -> None:
    """What a state names cannot be read by who has no folder: it is lost, no more."""
    link: list[Amnesiac] = []

    def forget(key: int, server_round: int, step: int) -> None:
        if server_round == 1 and step == SIZES[key] // 8:
            device: Device = link[0]._halves[key].device
            device.sample_folder = None

    class Told(Amnesiac):
        def __init__(self, halves: Any, after: Callable[..., None]) -> None:
            super().__init__(halves, after)
            link.append(self)

    front, back = builders.halves(norm=False)
    result = train_locally(
        builders.devices(front, SIZES, sample_folder=tmp_path),
        front.state_dict(),
        builders.server(back),
        num_rounds=2,
        up=Temporal(Uniform(4)),
        evaluate=False,
        make_link=lambda halves: Told(halves, forget),
    )
    assert not any(outcome.lost for outcome in result.rounds)
