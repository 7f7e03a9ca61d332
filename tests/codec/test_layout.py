"""Which dimension is what: the table of `layout` for every kind of shape."""

import numpy as np
import pytest
import torch

from flwr_slfac.codec.layout import (
    PlaneShape,
    channel_dim,
    from_rows,
    num_samples,
    spectrum_dims,
    to_rows,
    within_channel_dims,
    within_column_dims,
)


@pytest.mark.parametrize(
    ("shape", "over_features", "dims"),
    [
        ((), False, ()),
        ((5,), False, (0,)),
        ((2, 5), False, (1,)),
        ((2, 7, 5), False, (1,)),
        ((2, 7, 5), True, (1, 2)),
        ((2, 1, 5), False, (2,)),
        ((2, 3, 4, 5), False, (2, 3)),
        ((2, 3, 1, 5), False, (2, 3)),
        ((2, 3, 1, 1), False, (1,)),
        ((2, 3, 4, 5, 6), False, (3, 4)),
    ],
)
def test_rows_of_every_shape(
    shape: tuple[int, ...], over_features: bool, dims: tuple[int, ...]
) -> None:
    """Spectra run along the documented dimensions, and rows turn back to the tensor."""
    assert spectrum_dims(shape, over_features) == dims
    tensor = torch.arange(int(np.prod(shape))).reshape(shape)
    rows = to_rows(tensor, dims)
    assert rows.shape[1:] == torch.Size(shape[d] for d in dims) or shape == ()
    assert torch.equal(from_rows(rows, dims, shape), tensor)
    assert from_rows(rows, dims, shape).is_contiguous()


@pytest.mark.parametrize(
    ("shape", "channel", "column", "samples", "planes"),
    [
        ((), None, (), 1, (1, 1, 1)),
        ((5,), None, (0,), 1, (1, 1, 5)),
        ((2, 5), 1, (0,), 2, (2, 5, 1)),
        ((2, 7, 5), 2, (0,), 2, (2, 5, 7)),
        ((2, 1, 5), 2, (0,), 2, (2, 5, 1)),
        ((2, 3, 4, 5), 1, (0,), 2, (2, 3, 20)),
        ((2, 3, 1, 1), 1, (0,), 2, (2, 3, 1)),
        ((2, 3, 4, 5, 6), 1, (0,), 2, (2, 3, 120)),
    ],
)
def test_channels_samples_and_planes_of_every_shape(
    shape: tuple[int, ...],
    channel: int | None,
    column: tuple[int, ...],
    samples: int,
    planes: tuple[int, int, int],
) -> None:
    """The documented table holds, and rows and planes turn back to the tensor."""
    tensor = torch.arange(int(np.prod(shape))).reshape(shape)
    assert channel_dim(len(shape)) == channel
    assert num_samples(shape) == samples
    assert within_column_dims(len(shape)) == column
    dims = within_channel_dims(len(shape))
    assert {*dims, channel} - {None} == set(range(len(shape)))
    for along in (dims, column):
        rows = to_rows(tensor, along).flatten(1)
        assert torch.equal(from_rows(rows, along, shape), tensor)
    plane_shape = PlaneShape.of(shape)
    assert plane_shape.to_planes(tensor).shape == planes
    back = plane_shape.from_planes(plane_shape.to_planes(tensor), shape)
    assert torch.equal(back, tensor)
    assert back.is_contiguous()


def test_what_shares_a_channel_or_a_column() -> None:
    """Rows of (N, C, H, W) are channels over the batch, or positions over the batch."""
    x = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    channels = to_rows(x, within_channel_dims(4)).flatten(1)
    columns = to_rows(x, within_column_dims(4)).flatten(1)
    assert channels[1].tolist() == x[:, 1].flatten().tolist()
    assert columns[5].tolist() == x.flatten(1)[:, 5].tolist()
