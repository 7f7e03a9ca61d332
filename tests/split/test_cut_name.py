"""A device that is cut elsewhere than the server thinks is refused before it trains."""

from functools import partial
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp.strategy import FedAvg
from torch import nn
from torch.nn import CrossEntropyLoss
from torch.optim import SGD
from torch.utils.data import TensorDataset

from flwr_slfac import Device, DeviceCuts, SplitFed, client_app, cut
from flwr_slfac.errors import SlfacError
from flwr_slfac.split import ServerHalf, train_locally
from tests.grid_in_process import GridInProcess, process_of_a_run

sgd = partial(SGD, lr=0.05)


def net() -> nn.Module:
    """Return a network whose cuts at 0 and 1, and at 2 and 3, have the same keys."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(6, 8))
    return nn.Sequential(first, nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def device(front: nn.Module, partition: int = 0) -> Device:
    """Return a device with a front."""
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(partition))
    data = TensorDataset(x, x.argmax(1) % 3)
    return Device(front, sgd, data, data, batch_size=4)


def train(front: nn.Module, back: nn.Module, **settings: Any) -> Any:
    """Train one round on one device."""
    server = ServerHalf(back, CrossEntropyLoss(), sgd)
    state = settings.pop("state", front.state_dict())
    return train_locally([device(front)], state, server, num_rounds=1, **settings)


@pytest.mark.parametrize(("ours", "theirs"), [("1", "0"), ("0", "1")])
def test_a_cut_before_a_relu_is_not_the_one_behind_it(ours: str, theirs: str) -> None:
    """Where keys and shapes are the same, the name of the cut tells them apart."""
    front, back = cut(net(), at=theirs).front, cut(net(), at=ours).back
    said = f"front of device 0 ends after `{theirs}`.* begins after `{ours}`"
    with pytest.raises(SlfacError, match=said):
        train(front, back)


def test_other_names_of_one_cut_are_the_same_cut() -> None:
    """A module and the last one inside it end at the same cut."""
    train(cut(net(), at="0.0").front, cut(net(), at="0").back)


def test_a_front_or_back_of_ones_own_is_taken_as_it_is() -> None:
    """Halves that `cut` did not make have no names, and nothing is refused."""
    layers = list(net().children())
    state = cut(net(), at="1").front.state_dict()
    own = nn.Sequential(nn.Sequential(*layers[0].children()), layers[1])
    train(own, cut(net(), at="1").back, state=state)
    train(cut(net(), at="1").front, nn.Sequential(*layers[2:]))


def test_with_own_cuts_each_device_has_a_name_of_its_own() -> None:
    """A device's front has to end where its own cut is, not where the common one is."""
    cuts = DeviceCuts(net(), "3", {0: "1"}, sgd)
    halves = cut(net(), at="3")
    state = halves.front.state_dict()
    train(cut(net(), at="1").front, halves.back, cuts=cuts, state=state)
    with pytest.raises(SlfacError, match=r"ends after `0`.* begins after `1`"):
        train(cut(net(), at="0").front, halves.back, cuts=cuts, state=state)


def test_over_flower_only_that_device_is_lost() -> None:
    """The others train on; the log and the report say why one did not."""
    halves = cut(net(), at="1")

    def own(context: Context) -> Device:
        partition = int(context.node_config["partition-id"])
        return device(cut(net(), at="0" if partition == 1 else "1").front, partition)

    split = SplitFed(FedAvg(), back=halves.back, loss=CrossEntropyLoss(), optimizer=sgd)
    with process_of_a_run():
        grid = GridInProcess(client_app(own), 3)
        split.start(grid, ArrayRecord(halves.front.state_dict()), num_rounds=1)
    assert split.reports[0].num_devices == 2
    assert "begins after `1`" in split.reports[0].lost[1]
