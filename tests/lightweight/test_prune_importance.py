"""Which channels stay: scores by their definition, ratios exact, ties settled."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from flwr_slfac.cutting import cut
from flwr_slfac.errors import DivergedError, SettingError
from flwr_slfac.lightweight.pruning import (
    Channels,
    average_coordinates,
    channel_groups,
    channel_scores,
    choose_channels,
    update_as_gradient,
)
from flwr_slfac.lightweight.pruning.selection import choose
from tests import models

NAN = float("nan")


@pytest.fixture(scope="module")
def resnet() -> tuple[dict[str, Tensor], Channels]:
    """Return the state of a ResNet front with random norms, and its channels."""
    torch.manual_seed(0)
    front = cut(models.resnet18(width=6), at="layer1").front
    for module in front.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
    return front.state_dict(), channel_groups(front, torch.zeros(1, 3, 8, 8))


def by_definition(
    state: dict[str, Tensor],
    channels: Channels,
    criterion: str,
    gradients: dict[str, Tensor],
) -> dict[str, list[float]]:
    """Score channel by channel and tensor by tensor."""
    scores: dict[str, list[float]] = {}
    for group in channels.groups:
        scores[group.name] = []
        for i in range(group.size):
            terms, gammas = [], []
            for member in group.members:
                at = int(member.positions[i, 0])
                value = state[member.tensor].select(member.dim, at).double()
                if criterion == "weight" and state[member.tensor].ndim > 1:
                    terms.append(float((value**2).sum()))
                if criterion == "gradient" and "running" not in member.tensor:
                    slope = gradients[member.tensor].select(member.dim, at)
                    terms.append(float((value * slope).abs().sum()))
                if member.tensor.endswith("weight") and ".bn" in f".{member.tensor}":
                    gammas.append(abs(float(value)))
            found = {"weight": math.sqrt(sum(terms)), "gradient": sum(terms)}
            found["scale"] = sum(gammas) / len(gammas)
            scores[group.name].append(found[criterion])
    return scores


@pytest.mark.parametrize("criterion", ["weight", "gradient", "scale"])
def test_scores_are_those_of_the_definition(
    resnet: tuple[dict[str, Tensor], Channels], criterion: str
) -> None:
    """Each criterion equals a slow loop over channels and tensors."""
    state, channels = resnet
    torch.manual_seed(1)
    gradients = {k: torch.randn(v.shape) for k, v in state.items() if v.ndim}
    scores = channel_scores(channels, state, criterion, gradients)
    wanted = by_definition(state, channels, criterion, gradients)
    for name, values in wanted.items():
        assert scores[name].tolist() == pytest.approx(values, rel=1e-6)


values = st.lists(
    st.floats(0, 4, allow_subnormal=False).map(lambda v: round(v, 1)),
    min_size=1,
    max_size=12,
)
ratios = st.one_of(st.floats(0, 0.999), st.sampled_from([0.1, 0.3, 0.5, 0.7]))


@given(values, ratios)
def test_a_layer_loses_its_share_and_the_worst(scores: list[float], rho: float) -> None:
    """Exactly the share leaves, rounded down; the best stay, the first among equals."""
    mask = choose({"a": torch.tensor(scores).double()}, rho, "layer")["a"]
    num_kept = int(mask.sum())
    assert num_kept == max(1, len(scores) - math.floor(len(scores) * rho + 1e-9))
    best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:num_kept]
    assert sorted(best) == mask.nonzero().flatten().tolist()


@given(st.lists(values, min_size=1, max_size=4), ratios)
def test_a_global_share_empties_no_layer(layers: list[list[float]], rho: float) -> None:
    """The share is that of all channels; every layer keeps its best at least."""
    scores = {str(i): torch.tensor(v).double() for i, v in enumerate(layers)}
    masks = choose(scores, rho, "global")
    total = sum(map(len, layers))
    num_kept = sum(int(mask.sum()) for mask in masks.values())
    assert num_kept == max(len(layers), total - math.floor(total * rho + 1e-9))
    for name, mask in masks.items():
        assert mask[scores[name].argmax()]


@given(values, ratios, ratios, st.sampled_from(["layer", "global"]))
def test_masks_of_different_ratios_are_nested(
    scores: list[float], a: float, b: float, scope: str
) -> None:
    """What a device with a large ratio holds, one with a smaller ratio holds too."""
    given_scores = {"a": torch.tensor(scores).double(), "b": torch.arange(4.0)}
    few = choose(given_scores, max(a, b), scope)
    many = choose(given_scores, min(a, b), scope)
    assert all((many[n] | ~few[n]).all() for n in few)


def test_a_global_share_takes_from_the_less_important_layer() -> None:
    """With one layer flat and one peaked, the peaked one loses more."""
    flat, peaked = torch.ones(8).double(), torch.tensor([9.0] + [0.1] * 7).double()
    masks = choose({"flat": flat, "peaked": peaked}, 0.4, "global")
    assert int(masks["flat"].sum()) == 8
    assert int(masks["peaked"].sum()) == 2


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_channels_of_the_smashed_data_may_be_kept(
    resnet: tuple[dict[str, Tensor], Channels], scope: str
) -> None:
    """With at_cut="keep" smashed data keeps its size, with "prune" it shrinks."""
    state, channels = resnet
    scores = channel_scores(channels, state)
    whole = choose_channels(channels, scores, 0.5, scope, at_cut="keep")
    assert whole.cut.index.numel() == channels.cut_size == 6
    assert sum(map(torch.sum, whole.masks.values())) == 6 + 6
    part = choose_channels(channels, scores, 0.5, scope)
    assert sum(map(torch.sum, part.masks.values())) == 9
    if scope == "layer":
        assert part.cut.index.numel() == 3


def test_nothing_pruned_keeps_everything(
    resnet: tuple[dict[str, Tensor], Channels],
) -> None:
    """With a ratio of 0 the sub state is the state itself."""
    state, channels = resnet
    mask = choose_channels(channels, channel_scores(channels, state), 0)
    sub = mask.take_state(state)
    assert all(torch.equal(sub[key], value) for key, value in state.items())
    smashed = torch.ones(2, 6, 4, 4)
    assert mask.cut.gather(smashed) is smashed
    assert mask.cut.scatter(smashed) is smashed


@pytest.mark.parametrize("rho", [1, 1.0, -0.1, NAN, "0.5", True, None])
def test_a_ratio_out_of_range_is_refused(
    resnet: tuple[dict[str, Tensor], Channels], rho: float
) -> None:
    """The error says what was given and what may be."""
    state, channels = resnet
    scores = channel_scores(channels, state)
    with pytest.raises(SettingError, match=r"ratio is .*; give a number in \[0, 1\)"):
        choose_channels(channels, scores, rho)


def test_unknown_choices_are_refused(
    resnet: tuple[dict[str, Tensor], Channels],
) -> None:
    """A criterion, scope or choice that does not exist is named with those that do."""
    state, channels = resnet
    scores = channel_scores(channels, state)
    with pytest.raises(SettingError, match=r"'magnitude'; give one of 'weight', 'gra"):
        channel_scores(channels, state, "magnitude")
    with pytest.raises(SettingError, match=r"scope is 'all'; give one of 'layer'"):
        choose_channels(channels, scores, 0.5, "all")
    with pytest.raises(SettingError, match=r"at_cut is 'no'; give one of 'prune'"):
        choose_channels(channels, scores, 0.5, at_cut="no")


def test_missing_inputs_of_a_criterion_are_named(
    resnet: tuple[dict[str, Tensor], Channels],
) -> None:
    """Gradients that are missing or small, and layers without a norm, are named."""
    state, channels = resnet
    with pytest.raises(SettingError, match="needs accumulated gradients"):
        channel_scores(channels, state, "gradient")
    with pytest.raises(SettingError, match=r"'conv1.weight' has shape \(2, 2\)"):
        channel_scores(channels, state, "gradient", {"conv1.weight": torch.zeros(2, 2)})
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    found = channel_groups(plain, torch.zeros(1, 3))
    with pytest.raises(SettingError, match="none follows `0`"):
        channel_scores(found, plain.state_dict(), "scale")


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_a_diverged_front_has_no_importance(
    resnet: tuple[dict[str, Tensor], Channels], bad: float
) -> None:
    """NaN or infinite weights raise, naming the layer, instead of ranking somehow."""
    state, channels = resnet
    weight = state["conv1.weight"].clone()
    weight[2, 1, 0, 0] = bad
    with pytest.raises(DivergedError, match="`conv1` is NaN or infinite"):
        channel_scores(channels, state | {"conv1.weight": weight})


@pytest.mark.parametrize("criterion", ["weight", "gradient"])
def test_pruned_channels_come_back(criterion: str) -> None:
    """A channel that left returns when those that stayed matter less than it did."""
    front = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        front[0].bias.zero_()
        for i, scale in enumerate((4.0, 3.0, 2.0, 1.0)):
            front[0].weight[i] = scale
            front[2].weight[:, i] = scale
    channels = channel_groups(front, torch.zeros(1, 3))
    state = {k: v.clone() for k, v in front.state_dict().items()}
    gradients = {k: torch.ones_like(v) for k, v in state.items()}
    held = []
    for _ in range(3):
        scores = channel_scores(channels, state, criterion, gradients)
        mask = choose_channels(channels, scores, 0.5, at_cut="keep")
        held.append(mask.masks["0"].nonzero().flatten().tolist())
        trained = {k: v / 64 for k, v in mask.take_state(state).items()}
        new = average_coordinates([trained], [1], [mask], state)
        gradients = update_as_gradient(state, new, gradients)
        state = new
    assert held == [[0, 1], [2, 3], [0, 1]]


def test_the_update_stands_for_the_gradient() -> None:
    """It is old minus new with decaying memory; what did not move keeps its memory."""
    old = {"w": torch.tensor([1.0, 2.0, 3.0]), "n": torch.tensor(3)}
    new = {"w": torch.tensor([0.5, 2.0, 4.0]), "n": torch.tensor(4)}
    first = update_as_gradient(old, new)
    assert first.keys() == {"w"}
    assert first["w"].tolist() == [0.5, 0.0, -1.0]
    memory = {"w": torch.tensor([4.0, 5.0, 6.0])}
    second = update_as_gradient(old, new, memory, decay=0.5)
    assert second["w"].tolist() == [2.5, 5.0, 2.0]
    with pytest.raises(SettingError, match=r"decay is 1; give a number in \[0, 1\)"):
        update_as_gradient(old, new, decay=1)
