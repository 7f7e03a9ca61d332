"""Metrics that the server computes on the back's outputs."""

import torch


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the share of correct classes, in [0, 1].

    Parameters
    ----------
    outputs : Tensor
        Class scores, (N, C), (N, C, ...) or (N, ..., C).
    targets : Tensor
        Class indices, (N), or (N, ...).

    Returns
    -------
    float
        NaN if the targets are no class indices of these outputs.

    Examples
    --------
    >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    0.5
    """
    if targets.is_floating_point() or outputs.ndim != targets.ndim + 1:
        return float("nan")
    for dim in (1, -1):
        predicted = outputs.argmax(dim)
        if predicted.shape == targets.shape:
            return float((predicted == targets).double().mean())
    return float("nan")
