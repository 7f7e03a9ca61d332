"""Build the genuinely smaller front that a device trains."""

import copy

from torch import Tensor, nn

from flwr_slfac.lightweight.pruning.channel_mask import ChannelMask


def shrink(front: nn.Module, mask: ChannelMask) -> nn.Module:
    """Return a smaller front without the channels that are pruned.

    Parameters
    ----------
    front : nn.Module
        The full front, of which `mask.channels` were found. Not changed.
    mask : ChannelMask
        Which channels stay.

    Returns
    -------
    nn.Module
        Of the same class, state keys and forward, its tensors cut down and copied. With
        dropout off, outputs and gradients are those of the full front in which
        the pruned channels' weights, biases and norm parameters, and the weights that
        read them, are zero; `mask.cut.scatter` brings its output to full shape.

    Raises
    ------
    TrainingError
        If the front is not the one that was analysed.

    Examples
    --------
    >>> import torch
    >>> from flwr_slfac.lightweight.pruning.dependency.analysis import channel_groups
    >>> from flwr_slfac.lightweight.pruning.importance import channel_scores
    >>> from flwr_slfac.lightweight.pruning.selection import choose_channels
    >>> front = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    >>> channels = channel_groups(front, torch.zeros(2, 8))
    >>> scores = channel_scores(channels, front.state_dict())
    >>> mask = choose_channels(channels, scores, rho=0.5)
    >>> small = shrink(front, mask)
    >>> small
    Sequential(
      (0): Linear(in_features=8, out_features=3, bias=True)
      (1): ReLU()
      (2): Linear(in_features=3, out_features=2, bias=True)
    )
    >>> mask.cut.scatter(small(torch.zeros(5, 8))).shape
    torch.Size([5, 4])
    """
    small = copy.deepcopy(front)
    changed = set()
    for name in mask.index:
        path, _, key = name.rpartition(".")
        owner = small.get_submodule(path)
        changed.add(path)
        if key in owner._buffers:
            owner._buffers[key] = mask.take(name, small.get_buffer(name))
            continue
        full = small.get_parameter(name)
        taken = nn.Parameter(mask.take(name, full.detach()), full.requires_grad)
        owner._parameters[key] = taken
    for path in changed:
        _restate_sizes(small.get_submodule(path))
    return small


def _restate_sizes(module: nn.Module) -> None:
    """Bring a layer's own account of its sizes up to date."""
    weight = module._parameters.get("weight")
    if not isinstance(weight, Tensor):
        return
    sizes = tuple(weight.shape)
    if isinstance(module, nn.modules.conv._ConvNd):
        swapped = sizes[:2] if module.transposed else sizes[1::-1]
        module.in_channels, module.out_channels = swapped
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = sizes
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        (module.num_features,) = sizes
    elif isinstance(module, nn.PReLU):
        (module.num_parameters,) = sizes
