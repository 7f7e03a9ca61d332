"""Dropped values come back as the mean of their channel: unbiased, with less noise."""

import pytest
import torch

from flwr_slfac.errors import TrainingError
from flwr_slfac.lightweight import DropMask, RunningMeans
from flwr_slfac.lightweight.dropout import Per, Unit
from flwr_slfac.lightweight.pruning import PartialCutMask

SHAPES = ((3, 8), (2, 5, 6), (4, 6, 3, 4))
KINDS: tuple[tuple[Unit, Per], ...] = (
    ("channel", "batch"),
    ("channel", "example"),
    ("element", "example"),
)


def away_from_zero(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Return values around 3, 4, ... by channel."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    dim = 2 if len(shape) == 3 else 1
    means = torch.arange(3.0, 3 + shape[dim])
    return x + means.reshape([-1 if d == dim else 1 for d in range(len(shape))])


def learned(shape: tuple[int, ...]) -> RunningMeans:
    """Return means that have seen many batches of this kind."""
    means = RunningMeans()
    for seed in range(40):
        x = away_from_zero(shape, seed)
        mask = DropMask(shape, 0.2, seed=seed)
        means.restore(mask.gather(x), mask)
        means.end_step()
    return means


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("unit", "per"), KINDS)
def test_the_mean_over_masks_is_the_activation(
    shape: tuple[int, ...], unit: Unit, per: Per
) -> None:
    """Within 5 standard errors; and the variance is far below that around zero."""
    x = away_from_zero(shape, 99)
    means, draws = learned(shape), 3000
    masks = [DropMask(shape, 0.5, seed=s, unit=unit, per=per) for s in range(draws)]
    restored = torch.stack([means.restore(m.gather(x), m) for m in masks]).double()
    error = restored.var(dim=0).div(draws).sqrt()
    assert bool(((restored.mean(dim=0) - x).abs() <= 5 * error + 1e-6).all())
    around_zero = torch.stack([m.scatter(m.gather(x)) for m in masks])
    assert restored.var(dim=0).mean() < 0.3 * around_zero.var(dim=0).mean()


def test_kept_and_dropped_values_are_those_of_the_definition() -> None:
    """Where a value was kept c + s (x - c), else c."""
    shape = (4, 6, 3, 4)
    means, x = RunningMeans(), away_from_zero(shape)
    first = DropMask(shape, 0.0, seed=0, unit="element")
    assert torch.equal(means.restore(first.gather(x), first), x)
    means.end_step()
    second = DropMask(shape, 0.5, seed=0, unit="element", per="example")
    restored = means.restore(second.gather(x), second)
    # Nothing was learned: the first step dropped nothing, so it needed no centre.
    assert torch.equal(restored, second.scatter(second.gather(x)))
    mean = restored.mean(dim=(0, 2, 3))
    means.end_step()
    third = DropMask(shape, 0.5, seed=5, unit="element", per="example")
    held = third.scatter(torch.ones_like(third.gather(x))) > 0
    c = mean.reshape(1, -1, 1, 1).expand_as(x)
    wanted = torch.where(held, c + third.scale * (x - c), c)
    torch.testing.assert_close(means.restore(third.gather(x), third), wanted)


def test_centres_do_not_move_within_a_step() -> None:
    """Else a value would depend on the masks of its own step."""
    mask = DropMask((3, 8), 0.5, seed=1)
    x, means = away_from_zero((3, 8)), RunningMeans()
    once = means.restore(mask.gather(x), mask)
    assert torch.equal(means.restore(mask.gather(x), mask), once)
    means.end_step()
    assert not torch.equal(means.restore(mask.gather(x), mask), once)


def test_devices_that_hold_unlike_channels_share_centres() -> None:
    """A channel's centre follows the devices that have it."""
    means = RunningMeans()
    some = PartialCutMask(1, 4, torch.tensor([1, 3]))
    mask = DropMask((2, 2), 0.5, seed=1)
    assert mask.units[0].tolist() == [1]
    means.restore(torch.full((2, 1), 6.0), mask, some)
    means.end_step()
    full = DropMask((2, 4), 0.5, seed=1)
    held = full.scatter(torch.ones(2, 2))
    centre = torch.tensor([0.0, 0.0, 0.0, 6.0])
    restored = means.restore(torch.zeros(2, 2), full)
    assert torch.equal(restored, centre * (1 - 2 * held))


def test_centres_are_of_the_channels_that_were_pruned() -> None:
    """Of maps of one dimension too, where dropout takes the last one for channels."""
    means = RunningMeans()
    some = PartialCutMask(1, 4, torch.tensor([1, 3]))
    x = torch.tensor([5.0, 7.0]).reshape(1, 2, 1).expand(3, 2, 2)
    mask = DropMask(x.shape, 0.5, seed=1)
    for _ in range(200):
        means.restore(mask.gather(x), mask, some)
        means.end_step()
    restored = means.restore(mask.gather(x), mask, some)
    torch.testing.assert_close(restored, x, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 1, 4, 4)])
def test_shapes_that_pruning_does_not_leave_are_refused(shape: tuple[int, ...]) -> None:
    """A device that computes other channels is at fault, not the server."""
    some = PartialCutMask(1, 4, torch.tensor([1, 3]))
    mask = DropMask(shape, 0.5, seed=1, unit="element")
    with pytest.raises(TrainingError, match="the mask wants 2 channels"):
        RunningMeans().restore(torch.ones(mask.kept_shape), mask, some)


def test_values_that_are_not_finite_do_not_stay() -> None:
    """One device's overflow does not reach the steps after it."""
    mask, means = DropMask((2, 4), 0.5, seed=1), RunningMeans()
    means.restore(torch.full((2, 2), torch.inf), mask)
    means.end_step()
    restored = means.restore(torch.ones(2, 2), mask)
    assert bool(torch.isfinite(restored).all())
