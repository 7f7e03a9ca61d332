"""How a pruning ratio grows over the first rounds of a run."""


def gradual_share(final: float, num_rounds: int, length: int) -> float:
    """Return the share that is pruned after some rounds, on its way to the final one.

    After Zhu and Gupta, "To prune, or not to prune" (2017), from nothing at the start:
    ``final (1 - (1 - t / n)^3)``, fast at first, when much can be spared, and slow at
    the end.

    Parameters
    ----------
    final : float
        What is reached, in [0, 1).
    num_rounds : int
        Rounds t that were trained before, from 0.
    length : int
        Rounds n until it is reached; 0 for at once.

    Examples
    --------
    >>> [round(gradual_share(0.3, t, 4), 3) for t in range(6)]
    [0.0, 0.173, 0.263, 0.295, 0.3, 0.3]
    """
    if num_rounds >= length:
        return float(final)
    return float(final * (1 - (1 - num_rounds / length) ** 3))
