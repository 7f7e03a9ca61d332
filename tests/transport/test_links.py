"""Which link a run takes, and how long a session lasts."""

import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.run import Run
from flwr.superlink.grid import HttpGrid

from flwr_slfac.errors import AllDevicesLostError, SettingError
from flwr_slfac.links import link_for, require_transport
from flwr_slfac.split import DeviceHalf, Limits, TrainRequest
from flwr_slfac.transport import MessageLink
from flwr_slfac.transport.stream import (
    FallbackLink,
    StreamLink,
    StreamTransport,
    UnreachableError,
    device_end,
)
from flwr_slfac.transport.stream.addresses import addresses_of
from tests.split import builders
from tests.transport.loopback import answer_with, linked, through


def grid_of(task: TaskType) -> HttpGrid:
    """Return a grid of a run of this kind, which talks to nobody."""
    run = Run.create_empty(1)
    run.primary_task_type = task
    grid = HttpGrid(token="none")
    grid.set_run(run)
    return grid


def halves(sizes: list[int]) -> dict[int, DeviceHalf]:
    """Return devices by partition id."""
    front, _ = builders.halves()
    return {i: DeviceHalf(d, i) for i, d in enumerate(builders.devices(front, sizes))}


@pytest.mark.parametrize(
    ("task", "transport", "expected"),
    [
        (TaskType.SERVER_APP, "auto", StreamLink),
        (TaskType.SERVER_APP, "stream", StreamLink),
        (TaskType.SERVER_APP, "messages", MessageLink),
        (TaskType.SERVER_APP, StreamTransport(fallback=True), FallbackLink),
        (TaskType.SIMULATION, "auto", MessageLink),
        (TaskType.SIMULATION, "messages", MessageLink),
    ],
)
def test_auto_streams_in_a_deployment_only(
    task: TaskType, transport: object, expected: type
) -> None:
    """What a user names is taken; "auto" goes by where the run takes place."""
    link = link_for(grid_of(task), transport, 10.0, Limits())  # type: ignore[arg-type]
    link.close()
    assert type(link) is expected


def test_a_stream_in_a_simulation_is_refused() -> None:
    """A simulation has too few processes to hold one for every device."""
    with pytest.raises(SettingError, match="use transport='auto' or 'messages'"):
        link_for(grid_of(TaskType.SIMULATION), "stream", 10.0, Limits())
    with pytest.raises(SettingError, match="'pigeon' is not known"):
        require_transport("pigeon")  # type: ignore[arg-type]


def test_a_device_is_held_until_a_round_goes_without_it() -> None:
    """Its session then ends, and the next round that wants it opens another one."""
    answers = {i: answer_with(half) for i, half in halves([8, 8]).items()}
    with linked(answers) as (link, opener):
        assert link.devices([1000, 1001]) == {1000: 0, 1001: 1}
        link.hold([1000])
        opener.threads[1].join(20)
        assert not opener.threads[1].is_alive()
        assert opener.threads[0].is_alive()
        # Who told its partition id is not asked again.
        assert link.devices([1000, 1001]) == {1000: 0, 1001: 1}
        assert len(opener.openings) == 2
        described = link.describe([1000, 1001], channels=False)
        assert {key: each.device for key, each in described.items()} == {
            1000: 0,
            1001: 1,
        }
        assert len(opener.openings) == 3
    assert not opener.errors


def test_a_port_that_cannot_be_reached_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The device says where it looked, and what to change."""
    monkeypatch.setattr(device_end, "_REACH_S", 0.2)
    answers = {0: answer_with(halves([8])[0])}
    with linked(answers, change=through(9)) as (link, opener):
        with pytest.raises(AllDevicesLostError, match=r"127\.0\.0\.1:9"):
            link.devices([1000])
        ((_, answer),) = link.train_each([(1000, TrainRequest(0))])
    assert "slfac-server" in answer.reason  # type: ignore[union-attr]
    assert isinstance(opener.errors[0], UnreachableError)


def test_devices_are_told_addresses_that_they_may_reach() -> None:
    """The user's, or else this host's, its loopback last."""
    assert addresses_of(StreamTransport(advertise="a:1, b:2"), 5) == ("a:1", "b:2")
    assert addresses_of(StreamTransport(listen="10.0.0.7:0"), 5) == ("10.0.0.7:5",)
    found = addresses_of(StreamTransport(), 5)
    assert found[-1] == "127.0.0.1:5"
    assert all(each.endswith(":5") for each in found)
