"""The smaller network: computes what the full one does with zeros, on fewer bytes."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flwr_slfac.cutting import cut
from flwr_slfac.errors import DecodeError, SettingError, TrainingError
from flwr_slfac.lightweight.pruning import (
    ChannelMask,
    Channels,
    PartialCutMask,
    channel_groups,
    channel_scores,
    choose_channels,
    shrink,
)
from tests import models
from tests.lightweight.prune_cases import random_mask, random_nets, zeroed

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()
TOKENS = torch.arange(20).view(2, 10)
FRONTS: dict[str, tuple[Callable[[], nn.Module], str, Tensor]] = {
    "vgg": (lambda: models.vgg19_bn(width=4), "features.13", IMAGES),
    "vgg, classifier": (
        lambda: models.vgg19_bn(width=2),
        "classifier.1",
        IMAGES.repeat(1, 1, 2, 2),
    ),
    "resnet, layer1": (lambda: models.resnet18(width=4), "layer1", IMAGES),
    "resnet, layer3": (lambda: models.resnet18(width=4), "layer3", IMAGES),
    "vit": (
        lambda: models.vit(image_size=16, dim=12, depth=2),
        "blocks.1",
        IMAGES,
    ),
    "gpt": (lambda: models.gpt(dim=8, depth=2), "h.1", TOKENS),
    "exported gpt": (lambda: models.asserting_gpt(dim=8, depth=1), "h.0", TOKENS),
}


def front_of(name: str) -> tuple[nn.Module, Tensor]:
    """Return a front in float64, its norms unlike their initial values."""
    build, at, example = FRONTS[name]
    torch.manual_seed(0)
    model = build().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    exported = isinstance(model, models.AssertingGPT)
    return cut(model, at=at, example=example if exported else None).front, example


def require_same(front: nn.Module, mask: ChannelMask, x: Tensor, train: bool) -> None:
    """Hold the law: outputs, gradients and statistics are those of the zeroed one."""
    full, small = zeroed(front, mask).train(train), shrink(front, mask).train(train)
    wanted, found = full(x), mask.cut.scatter(small(x))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    upstream = torch.randn(
        wanted.shape, generator=torch.Generator().manual_seed(5)
    ).double()
    assert found.requires_grad == wanted.requires_grad
    if wanted.requires_grad:
        wanted.backward(upstream)
        found.backward(upstream)
    gradients = {n: p.grad for n, p in full.named_parameters() if p.grad is not None}
    own = {n: p.grad for n, p in small.named_parameters() if p.grad is not None}
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            own[name], mask.take(name, gradient), rtol=1e-7, atol=1e-8
        )
    for name, buffer in full.named_buffers():
        torch.testing.assert_close(small.get_buffer(name), mask.take(name, buffer))


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_nets(), st.integers(0, 99), st.booleans())
def test_any_network_shrinks_to_what_its_zeros_compute(
    front: nn.Module, seed: int, train: bool
) -> None:
    """Whatever the graph, output, gradients and statistics are those of zeros."""
    x = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).double()
    try:
        channels = channel_groups(front, x)
    except SettingError as error:
        assert "no channel of the front can be pruned" in str(error)  # noqa: PT017
        return
    require_same(front, random_mask(channels, seed), x, train)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", FRONTS)
def test_fronts_shrink_to_what_their_zeros_compute(name: str, train: bool) -> None:
    """Real fronts too, in either mode; dropout is off, for it draws fewer numbers."""
    front, x = front_of(name)
    mask = random_mask(channel_groups(front, x), seed=3)
    num_kept = sum(int(flags.sum()) for flags in mask.masks.values())
    assert num_kept < sum(g.size for g in mask.channels.groups)
    require_same(front, mask, x, train)


@pytest.fixture(scope="module")
def vgg() -> tuple[nn.Module, Channels, ChannelMask]:
    """Return a VGG front, its channels, and half of them."""
    front, x = front_of("vgg")
    channels = channel_groups(front, x)
    scores = channel_scores(channels, front.state_dict())
    return front, channels, choose_channels(channels, scores, rho=0.5)


def test_half_the_channels_are_a_quarter_of_the_weights(
    vgg: tuple[nn.Module, Channels, ChannelMask],
) -> None:
    """The small network has the keys of the full one and genuinely smaller tensors."""
    front, _, mask = vgg
    small = shrink(front, mask)
    assert list(small.state_dict()) == list(front.state_dict())
    conv, norm = small.get_submodule("features.7"), small.get_submodule("features.8")
    assert conv.weight.shape == (4, 2, 3, 3)
    assert (conv.in_channels, conv.out_channels, norm.num_features) == (2, 4, 4)
    assert conv.weight.untyped_storage().nbytes() == 4 * 2 * 9 * 8
    assert mask.cut.index.numel() == 4


def test_shrinking_leaves_the_full_front_alone(
    vgg: tuple[nn.Module, Channels, ChannelMask],
) -> None:
    """The small network shares no memory with the full one, and pickles."""
    front, _, mask = vgg
    before = copy.deepcopy(front.state_dict())
    small = shrink(front, mask)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert all(torch.equal(v, before[k]) for k, v in front.state_dict().items())
    again = pickle.loads(pickle.dumps(small)).eval()
    assert torch.equal(again(IMAGES), small.eval()(IMAGES))


def test_frozen_parameters_stay_frozen() -> None:
    """What is not trained in the full front is not trained in the small one."""
    front = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    front[0].requires_grad_(False)
    mask = random_mask(channel_groups(front, torch.zeros(1, 4)), 0)
    trained = {n for n, p in shrink(front, mask).named_parameters() if p.requires_grad}
    assert trained == {"2.weight", "2.bias"}


@pytest.mark.parametrize("name", ["vgg, classifier", "resnet, layer3", "gpt"])
def test_the_part_that_is_held_is_the_state_of_the_small_network(name: str) -> None:
    """take_state fits shrink; put_state undoes it and leaves the rest alone."""
    front, x = front_of(name)
    mask = random_mask(channel_groups(front, x), seed=7)
    full = front.state_dict()
    sub = mask.take_state(full)
    assert all(
        torch.equal(v, sub[k]) for k, v in shrink(front, mask).state_dict().items()
    )
    previous = {k: torch.full_like(v, 7) for k, v in full.items()}
    back = mask.put_state(sub, previous)
    for key, value in back.items():
        held = mask.held(key, tuple(value.shape))
        assert torch.equal(value[held], full[key][held])
        assert (value[~held] == 7).all()
        assert int(held.sum()) == sub[key].numel()


@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=4),
    st.data(),
)
def test_scatter_is_the_adjoint_of_gather(
    shape: list[int], data: st.DataObject
) -> None:
    """Gather undoes scatter; pruned channels are zero; each is the other's gradient."""
    dim = data.draw(st.integers(1, len(shape) - 1))
    flags = data.draw(st.lists(st.booleans(), min_size=shape[dim], max_size=shape[dim]))
    index = torch.tensor([i for i, flag in enumerate(flags) if flag or i == 0])
    cut_mask = PartialCutMask(dim, shape[dim], index)
    full = torch.randn(shape, requires_grad=True)
    small = cut_mask.gather(full)
    again = cut_mask.scatter(small)
    assert again.shape == full.shape
    assert torch.equal(cut_mask.gather(again), small)
    away = [i for i in range(shape[dim]) if i not in index.tolist()]
    assert not again.index_select(dim, torch.tensor(away, dtype=torch.int64)).any()
    upstream = torch.randn(shape)
    (gradient,) = torch.autograd.grad(again, full, upstream)
    assert torch.equal(gradient, cut_mask.scatter(cut_mask.gather(upstream)))


def test_a_mask_is_a_bit_a_channel(
    vgg: tuple[nn.Module, Channels, ChannelMask],
) -> None:
    """A mask crosses as four bytes and a bit a channel, and comes back the same."""
    front, channels, mask = vgg
    data = mask.to_bytes()
    assert len(data) == 4 + (4 + 4 + 8 + 8) // 8
    again = ChannelMask.from_bytes(data, channel_groups(front, IMAGES))
    assert all(torch.equal(again.masks[n], m) for n, m in mask.masks.items())
    assert list(again.masks) == [g.name for g in channels.groups]


@given(st.binary(max_size=12), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_hostile_masks_are_refused_or_valid(
    vgg: tuple[nn.Module, Channels, ChannelMask], data: bytes, right_front: bool
) -> None:
    """Any bytes raise DecodeError or give a mask that empties no layer."""
    _, channels, mask = vgg
    if right_front:
        data = mask.to_bytes()[:4] + data
    try:
        found = ChannelMask.from_bytes(data, channels)
    except DecodeError:
        return
    assert found.to_bytes() == data
    assert all(mask.any() for mask in found.masks.values())


def test_a_mask_of_another_front_is_refused(
    vgg: tuple[nn.Module, Channels, ChannelMask],
) -> None:
    """A mask does not fit a front whose channels lie elsewhere."""
    _, _, mask = vgg
    other, x = front_of("resnet, layer1")
    with pytest.raises(DecodeError):
        ChannelMask.from_bytes(mask.to_bytes(), channel_groups(other, x))
    wide = cut(models.vgg19_bn(width=5), at="features.13").front
    with pytest.raises(TrainingError, match="the mask is for"):
        shrink(wide, mask)
    with pytest.raises(TrainingError, match="smashed data of shape"):
        mask.cut.scatter(torch.zeros(2, 7, 3, 3))
    with pytest.raises(TrainingError, match="smashed data of shape"):
        mask.cut.gather(torch.zeros(2, 7, 3, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"features.3": torch.zeros(4) > 0}, "`features.3` keeps none"),
        (lambda m: m | {"features.3": torch.ones(5) > 0}, r"bool of shape \(4,\)"),
        (lambda m: m | {"features.3": torch.ones(4)}, "is torch.float32"),
        (lambda m: m | {"other": torch.ones(4) > 0}, "unknown: other"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(
    vgg: tuple[nn.Module, Channels, ChannelMask],
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
) -> None:
    """A mask that is empty, of the wrong size, type or name is refused by name."""
    _, channels, mask = vgg
    with pytest.raises(SettingError, match=message):
        ChannelMask(channels, change(dict(mask.masks)))


def test_states_that_do_not_fit_are_named(
    vgg: tuple[nn.Module, Channels, ChannelMask],
) -> None:
    """A state of other keys or of another mask's shapes is refused by name."""
    front, _, mask = vgg
    full, sub = front.state_dict(), mask.take_state(front.state_dict())
    with pytest.raises(TrainingError, match=r"'features.0.bias'"):
        mask.put_state({k: v for k, v in sub.items() if k != "features.0.bias"}, full)
    with pytest.raises(TrainingError, match=r"'features.0.bias' has shape \(4,\)"):
        mask.put_state(sub | {"features.0.bias": torch.zeros(4)}, full)
