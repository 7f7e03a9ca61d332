"""Random numbers that are a function of what they are for, not of who asks first."""

import zlib

import numpy as np


def generator(seed: int, role: str, *place: int) -> np.random.Generator:
    """Return a generator for one purpose: equal arguments, equal draws, in any order.

    Counter-based: a Philox stream (Salmon et al., "Parallel random numbers: as easy as
    1, 2, 3", SC 2011) keyed by NumPy's SeedSequence of the whole tuple.

    Parameters
    ----------
    seed : int
        Seed of the scenario, at least 0.
    role : str
        What is drawn, for example ``"shadowing"``; its CRC-32 enters the key.
    *place : int
        Device, round, step: whatever the draw depends on, each at least 0.

    Examples
    --------
    >>> a, b = generator(1, "fading", 7, 2), generator(1, "fading", 7, 2)
    >>> bool(a.random() == b.random())
    True
    """
    entropy = (seed, zlib.crc32(role.encode()), *place)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
