"""Cuts of devices' own under Flower's strategies: as the common cut, or refused."""

from functools import partial
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import strategy as flower
from torch import nn
from torch.nn import CrossEntropyLoss
from torch.optim import SGD
from torch.utils.data import TensorDataset

from flwr_slfac import Device, DeviceCuts, SettingError, SplitFed, client_app, cut
from tests.flower.app.splitapp.strategies import ByNode
from tests.grid_in_process import GridInProcess, process_of_a_run

COUNT, COMMON, OWN = 5, "3", {0: "0", 2: "1", 4: "2"}
sgd = partial(SGD, lr=0.05, momentum=0.9)
STRATEGIES: dict[str, Any] = {
    "FedAvg": flower.FedAvg,
    "FedProx": partial(flower.FedProx, proximal_mu=0.3),
    "FedAdam": flower.FedAdam,
    "FedMedian": flower.FedMedian,
    "Krum": partial(flower.Krum, num_malicious_nodes=1),
    "half of the devices": partial(flower.FedAvg, fraction_train=0.6),
    "clipped on the server": lambda: flower.DifferentialPrivacyServerSideFixedClipping(
        flower.FedAvg(), 1e-9, 0.1, 5
    ),
}


def model() -> nn.Module:
    """Return a small network, the same each time."""
    torch.manual_seed(3)
    front = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()
    return nn.Sequential(*front, nn.Linear(8, 3))


def device(at: dict[int, str], context: Context) -> Device:
    """Return a node's device, cut where it is to be."""
    partition = int(context.node_config["partition-id"])
    generator = torch.Generator().manual_seed(partition)
    x = torch.randn(12, 6, generator=generator)
    data = TensorDataset(x, x.argmax(1) % 3)
    front = cut(model(), at=at.get(partition, COMMON)).front
    return Device(front, sgd, data, data, batch_size=4)


def train(
    inner: Any, at: dict[int, str], cuts: DeviceCuts | None, **settings: Any
) -> dict[str, torch.Tensor]:
    """Train two rounds; return all weights."""
    halves = cut(model(), at=COMMON)
    settings = {"up": "identity", "down": "identity", **settings}
    loss = CrossEntropyLoss()
    split = SplitFed(
        inner, back=halves.back, loss=loss, optimizer=sgd, cuts=cuts, **settings
    )
    front = ArrayRecord(halves.front.state_dict())
    with process_of_a_run():
        grid = GridInProcess(client_app(partial(device, at)), COUNT)
        result = split.start(grid, front, num_rounds=2)
    return {**result.arrays.to_torch_state_dict(), **split.back_state()}


def without_bias() -> nn.Module:
    """Return another network with the same names of modules."""
    layers = list(model().children())
    return nn.Sequential(nn.Linear(6, 8, bias=False), *layers[1:])


def own_cuts() -> DeviceCuts:
    """Return the cuts of the devices."""
    return DeviceCuts(model(), COMMON, OWN, sgd)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_see_whole_fronts(name: str) -> None:
    """Under any strategy own cuts end in the bits of the common cut."""
    torch.manual_seed(0)
    one = train(STRATEGIES[name](), {}, None)
    other = train(STRATEGIES[name](), OWN, own_cuts())
    assert one.keys() == other.keys()
    if name.startswith("clipped"):  # its noise is its own
        assert all(torch.allclose(one[n], other[n], atol=1e-4) for n in one)
    else:
        assert all(torch.equal(one[n], other[n]) for n in one)


def test_clipping_on_devices_is_refused() -> None:
    """Layers that the server trains would not be clipped, and so it is refused."""
    inner = flower.DifferentialPrivacyClientSideFixedClipping(
        flower.FedAvg(), 0.1, 1.0, 5
    )
    with pytest.raises(
        SettingError, match=r"ClientSideFixedClipping.*nobody would clip"
    ):
        train(inner, OWN, own_cuts())


@pytest.mark.parametrize(("what", "said"), [("arrays", "cuts="), ("mu", "proximal")])
def test_what_a_strategy_tells_nodes_one_by_one_is_refused(
    what: str, said: str
) -> None:
    """A front, or a proximal term, of each node's own is not what the middles train."""
    with pytest.raises(SettingError, match=said):
        train(ByNode(what), OWN, own_cuts())


def test_the_front_is_that_of_the_common_cut() -> None:
    """Cuts of another model or another common cut are named before training."""
    with pytest.raises(SettingError, match=r"begins after `3`.*after `2`"):
        train(flower.FedAvg(), {}, DeviceCuts(model(), "2", {}, sgd))
    other = nn.Sequential(*model().children(), nn.Linear(3, 3))
    with pytest.raises(SettingError, match=r"begins after `3`.*after `4`"):
        train(flower.FedAvg(), OWN, DeviceCuts(other, "4", OWN, sgd))
    with pytest.raises(SettingError, match=r"not that of the common cut"):
        train(flower.FedAvg(), OWN, DeviceCuts(without_bias(), COMMON, OWN, sgd))
