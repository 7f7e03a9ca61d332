"""Dependency analysis: what leaves together, what stays, and what is refused."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from flwr_slfac.cutting import cut
from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight.pruning import Channels, channel_groups
from tests import models

IMAGES = torch.zeros(2, 3, 32, 32)
TOKENS = torch.zeros(2, 10, dtype=torch.int64)


class Lambda(nn.Module):
    """Two convolutions with a function of the first one's output between them."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self, self.first(x)))


def layers(channels: Channels, group: str) -> list[tuple[str, int]]:
    """Return where a group lies among the weights of convolutions and linears."""
    found = [(m.tensor, m.dim) for m in channels[group].members]
    return [(n, d) for n, d in found if len(channels.shapes[n]) > 1]


def test_a_residual_addition_ties_its_branches() -> None:
    """All layers that add into one residual stream of a ResNet are one group."""
    front = cut(models.resnet18(width=4), at="layer2").front
    channels = channel_groups(front, IMAGES)
    assert [g.name for g in channels.groups if g.at_cut] == ["layer2.0.conv2"]
    assert sorted(layers(channels, "layer2.0.conv2")) == [
        ("layer2.0.conv2.weight", 0),
        ("layer2.0.downsample.0.weight", 0),
        ("layer2.1.conv1.weight", 1),
        ("layer2.1.conv2.weight", 0),
    ]
    assert layers(channels, "conv1") == [
        ("conv1.weight", 0),
        ("layer1.0.conv1.weight", 1),
        ("layer1.0.conv2.weight", 0),
        ("layer1.1.conv1.weight", 1),
        ("layer1.1.conv2.weight", 0),
        ("layer2.0.conv1.weight", 1),
        ("layer2.0.downsample.0.weight", 1),
    ]
    assert not channels.fixed


def test_every_layer_of_a_chain_is_a_group() -> None:
    """A VGG front has one group a convolution, with its norm and its reader."""
    front = cut(models.vgg19_bn(width=4), at="features.13").front
    channels = channel_groups(front, IMAGES)
    names = ["features.0", "features.3", "features.7", "features.10"]
    assert [g.name for g in channels.groups] == names
    assert [g.at_cut for g in channels.groups] == [False, False, False, True]
    members = channels["features.0"].members
    assert {m.tensor for m in members if m.role == "scale"} == {"features.1.weight"}
    assert {m.tensor for m in members} == {
        *(f"features.0.{key}" for key in ("weight", "bias")),
        *(
            f"features.1.{key}"
            for key in ("weight", "bias", "running_mean", "running_var")
        ),
        "features.3.weight",
    }
    assert (channels.cut_dim, channels.cut_size) == (1, 8)


def test_a_flattened_map_leaves_as_a_block() -> None:
    """Behind a flatten, a channel of a map is as many inputs as the map has values."""
    front = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    )
    channels = channel_groups(front, torch.zeros(1, 3, 8, 8))
    (block,) = [m for m in channels["0"].members if m.tensor == "3.weight"]
    assert block.dim == 1
    assert torch.equal(block.positions, torch.arange(4 * 36).view(4, 36))


def test_concatenated_channels_are_offset() -> None:
    """Behind a concatenation, each part lies after the parts before it."""

    class Join(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)
            self.b = nn.Conv2d(3, 2, 1)
            self.norm = nn.BatchNorm2d(9)
            self.c = nn.Conv2d(9, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.norm(torch.cat([self.a(x), x, self.b(x)], 1)))

    channels = channel_groups(Join(), torch.zeros(1, 3, 4, 4))
    places = {
        g.name: {m.tensor: m.positions.flatten().tolist() for m in g.members}
        for g in channels.groups
    }
    assert places["a"]["c.weight"] == places["a"]["norm.weight"] == [0, 1, 2, 3]
    assert places["b"]["c.weight"] == places["b"]["norm.bias"] == [7, 8]


@pytest.mark.parametrize(
    ("build", "at", "example"),
    [
        (lambda: models.vit(dim=24, depth=2), "blocks.1", IMAGES),
        (lambda: models.gpt(dim=16, depth=2), "h.1", TOKENS),
        (lambda: models.asserting_gpt(dim=16, depth=2), "h.1", TOKENS),
    ],
    ids=["vit", "gpt", "exported gpt"],
)
def test_a_transformer_loses_hidden_units_only(
    build: Callable[[], nn.Module], at: str, example: Tensor
) -> None:
    """Hidden units of each MLP can leave; embedding, residual and heads stay."""
    front = cut(build(), at=at, example=example).front
    channels = channel_groups(front, example)
    place = at.partition(".")[0]
    assert [g.name for g in channels.groups] == [f"{place}.{i}.mlp.0" for i in (0, 1)]
    for i, group in enumerate(channels.groups):
        assert layers(channels, group.name) == [
            (f"{place}.{i}.mlp.0.weight", 0),
            (f"{place}.{i}.mlp.2.weight", 1),
        ]
    assert f"{place}.0.attn.qkv" in channels.fixed


STAYS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "a function of zero that is not zero": lambda m, x: torch.sigmoid(x),
    "a shift": lambda m, x: x + 1,
    "a slice": lambda m, x: torch.cat([x[:, :2], x[:, 2:]], 1),
    "a softmax over channels": lambda m, x: x.softmax(1),
    "a mean over channels": lambda m, x: x - x.mean(1, keepdim=True),
    "a constant size": lambda m, x: x.view(x.size(0), 4, x.size(2), x.size(3)),
    "the number of channels": lambda m, x: x * x.size(1),
    "the shape": lambda m, x: x * x.shape[1],
    "a permutation": lambda m, x: x[:, [1, 0, 3, 2]],
    "a weight that is read": lambda m, x: x * m.first.weight.sum(),
    "a tensor of fixed channels": lambda m, x: x * torch.ones(1, 4, 1, 1),
    "a norm without a scale": lambda m, x: F.batch_norm(
        x, m.norm.running_mean, m.norm.running_var, training=m.training
    ),
    "training alone": lambda m, x: torch.sigmoid(x) if m.training else x,
    "evaluation alone": lambda m, x: x if m.training else torch.sigmoid(x),
    "a quotient": lambda m, x: x / x,
    "padding with ones": lambda m, x: F.pad(x, (1, 1, 1, 1), value=1.0),
    "a pool over channels": lambda m, x: (
        F.avg_pool1d(x.flatten(2).transpose(1, 2), 3, 1, 1)
        .transpose(1, 2)
        .unflatten(2, (8, 8))
    ),
}


@pytest.mark.parametrize("between", STAYS.values(), ids=STAYS.keys())
def test_what_is_not_known_to_be_safe_stays(
    between: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    """Channels that reach an operation which might see that they left, stay."""
    channels = channel_groups(Lambda(between), torch.zeros(2, 3, 8, 8))
    assert [g.name for g in channels.groups] == ["second"]
    assert channels.fixed["first"]


PASSES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "nothing": lambda m, x: x,
    "batch norm": lambda m, x: m.norm(x),
    "functional batch norm": lambda m, x: F.batch_norm(
        x,
        m.norm.running_mean,
        m.norm.running_var,
        m.norm.weight,
        m.norm.bias,
        m.training,
    ),
    "relu in place": lambda m, x: F.relu(x, inplace=True),
    "a gate per place": lambda m, x: x * torch.ones(1, 1, 8, 8),
    "a number": lambda m, x: 0.5 * x / 2,
    "its own sum": lambda m, x: x + m.norm(x),
    "pooling": lambda m, x: F.max_pool2d(F.avg_pool2d(x, 2), 2),
    "sizes of places": lambda m, x: x.flatten(2).view(
        x.shape[0], -1, x.size(2), x.shape[3]
    ),
    "a permutation of dimensions": lambda m, x: x.permute(0, 2, 3, 1).permute(
        0, 3, 1, 2
    ),
    "padding": lambda m, x: F.pad(x, (1, 1, 1, 1)),
    "an unused number of channels": lambda m, x: (x.shape[1], x)[1],
}


@pytest.mark.parametrize("between", PASSES.values(), ids=PASSES.keys())
def test_what_is_known_to_be_safe_passes(
    between: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    """Channels pass operations that treat each alike and map zeros to zeros."""
    channels = channel_groups(Lambda(between), torch.zeros(2, 3, 8, 8))
    assert [(g.name, g.size) for g in channels.groups] == [("first", 4), ("second", 2)]


def test_a_computed_weight_stays() -> None:
    """A layer whose weight is computed from other tensors keeps its channels."""
    front = Lambda(lambda m, x: x)
    parametrizations.weight_norm(front.first)
    channels = channel_groups(front, torch.zeros(2, 3, 8, 8))
    assert [g.name for g in channels.groups] == ["second"]


class Twice(nn.Module):
    """One convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.again = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(F.relu(self.again(self.stem(x))))


def test_a_layer_called_twice_ties_what_it_reads() -> None:
    """Inputs and outputs of a layer that reads its own output are one group."""
    channels = channel_groups(Twice(), torch.zeros(1, 3, 4, 4))
    assert [g.name for g in channels.groups] == ["stem"]
    assert layers(channels, "stem") == [
        ("stem.weight", 0),
        ("again.weight", 1),
        ("again.weight", 0),
    ]


def tied() -> nn.Module:
    """Return two layers that share a weight."""
    front = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    front[2].weight = front[0].weight
    return front


class Branching(nn.Module):
    """A forward that asks for its number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return x * 2 if x.shape[1] > 3 else x


REFUSED = {
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4)),
        r"`1` \(Conv2d\).* 4 groups",
    ),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)),
        r"`1` \(GroupNorm\)",
    ),
    "tied": (tied, "0.weight = 2.weight"),
    "branching": (Branching, "cannot trace Branching"),
    "nothing to prune": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1)),
        r"`0` is read by `1` \(Softmax\)",
    ),
    "wrong example": (lambda: nn.Conv2d(1, 4, 1), "fails on the example"),
}


@pytest.mark.parametrize(
    ("build", "message"), REFUSED.values(), ids=list(REFUSED.keys())
)
def test_what_cannot_be_pruned_is_named(
    build: Callable[[], nn.Module], message: str
) -> None:
    """Grouped and tied layers, and forwards that cannot be followed, are named."""
    front = build()
    width = 4 if message == "0.weight = 2.weight" else 8
    with pytest.raises(SettingError, match=message):
        channel_groups(front, torch.zeros(2, 3, 8, width))


def test_analysis_leaves_the_front_as_it_was() -> None:
    """Weights, running statistics, mode and random state are not touched."""
    front = Lambda(lambda m, x: F.dropout(m.norm(x), 0.5, m.training)).train()
    before = {k: v.clone() for k, v in front.state_dict().items()}
    state = torch.get_rng_state()
    channel_groups(front, torch.randn(2, 3, 8, 8, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), state)
    assert front.training
    assert front.norm.training
    assert all(torch.equal(v, before[k]) for k, v in front.state_dict().items())
