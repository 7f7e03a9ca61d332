"""What is asked goes out as it comes, and what is answered is given as it arrives."""

import threading
import time
from collections.abc import Iterator
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp

from flwr_slfac import client_app
from flwr_slfac._release import RELEASE
from flwr_slfac.codec import Identity
from flwr_slfac.split import Begin, Lost, TrainReply, TrainRequest
from flwr_slfac.transport import MessageLink, Reply, Request
from flwr_slfac.transport.stream import Answer
from tests.grid_in_process import GridInProcess, process_of_a_run
from tests.split import builders
from tests.transport.loopback import linked

NODES = [1000, 1001, 1002]


def replying(device: int) -> Answer:
    """Return what answers every request of a device at once."""
    return lambda request: TrainReply(device, 1)


def requests() -> Iterator[tuple[int, TrainRequest]]:
    """Give a request for each device."""
    yield from ((node, TrainRequest(0)) for node in NODES)


def test_a_device_has_its_request_before_the_next_one_is_made() -> None:
    """Over streams no request waits for another one to be coded."""
    arrived = threading.Event()

    def answer(request: Request) -> Reply:
        arrived.set()
        return TrainReply(0, 1)

    def slowly() -> Iterator[tuple[int, TrainRequest]]:
        yield NODES[0], TrainRequest(0)
        assert arrived.wait(30)
        yield NODES[1], TrainRequest(0)

    with linked({0: answer, 1: replying(1)}) as (link, _):
        assert len(dict(link.train_each(slowly()))) == 2


def test_an_answer_is_given_while_another_device_is_silent() -> None:
    """Over streams no answer waits for that of a slower device."""
    given = threading.Event()

    def wait(request: Request) -> Reply:
        assert given.wait(30)
        return TrainReply(0, 1)

    answers = {0: wait, 1: replying(1), 2: replying(2)}
    with linked(answers) as (link, _):
        order = []
        for key, _answer in link.train_each(requests()):
            order.append(key)
            if len(order) == 2:
                given.set()
    assert order[2] == NODES[0]


def test_who_takes_answers_slowly_loses_none_that_came_in_time() -> None:
    """An answer that waits to be taken when the time is over is not late."""
    answers: dict[int, Any] = {device: replying(device) for device in range(3)}
    with linked(answers, timeout_s=3.0) as (link, _):
        link.devices(NODES)
        taken = {}
        for key, answer in link.train_each(requests()):
            taken[key] = answer
            time.sleep(2.0)
    assert not [answer for answer in taken.values() if isinstance(answer, Lost)]


def test_a_step_that_is_given_up_ends_the_sessions_that_were_asked() -> None:
    """They are opened anew, and nobody is asked what another request was for."""
    held = threading.Event()

    def wait(request: Request) -> Reply:
        held.wait(30)
        return TrainReply(0, 1)

    with linked({0: wait, 1: replying(1), 2: replying(2)}) as (link, opener):
        link.devices(NODES)
        step = link.train_each(requests())
        next(step)
        step.close()  # type: ignore[attr-defined]
        held.set()
        again = dict(link.train_each(requests()))
    assert all(isinstance(again[node], TrainReply) for node in NODES)
    assert len(opener.openings) > len(NODES)


def app() -> ClientApp:
    """Return an app of devices in this process."""
    front, _ = builders.halves()

    def device(context: Context) -> Any:
        partition = int(context.node_config["partition-id"])
        return builders.devices(front, [8, 8, 8])[partition]

    return client_app(device)


def test_a_message_goes_out_before_the_next_one_is_made() -> None:
    """Messages are handed to Flower one by one, and all are answered."""
    grid = GridInProcess(app(), 3)
    front, _ = builders.halves()
    begin = Begin(1, 0, dict(front.state_dict()), Identity(), RELEASE)
    with process_of_a_run():
        link = MessageLink(grid, 10.0)
        keys = list(link.devices(list(grid.get_node_ids())))
        pushed: list[int] = []

        def counted() -> Iterator[tuple[int, TrainRequest]]:
            for key in keys:
                yield key, TrainRequest(0, begin)
                pushed.append(len(grid._replies))

        answers = dict(link.train_each(counted()))
    assert pushed == [1, 2, 3]
    assert sorted(answers) == sorted(keys)
    assert all(isinstance(answer, TrainReply) for answer in answers.values())
