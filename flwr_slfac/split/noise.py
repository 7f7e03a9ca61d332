"""Where randomness comes from: a seed for each (seed, round, device, step, role)."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_for(seed: int, server_round: int, device: int, step: int, role: str) -> int:
    """Derive the seed of one use of randomness.

    Parameters
    ----------
    seed : int
        Seed of the whole run.
    server_round, device, step : int
        Where in the run; `device` is the partition id, or -1 for the server itself.
    role : str
        What the randomness is for, for example ``"forward"`` or ``"up"``.

    Returns
    -------
    int
        In [0, 2**63). Distinct arguments give unrelated seeds, the same on every
        machine.

    Examples
    --------
    >>> seed_for(0, 1, 2, 3, "forward") == seed_for(0, 1, 2, 3, "forward")
    True
    >>> seed_for(0, 1, 2, 3, "forward") == seed_for(0, 1, 2, 4, "forward")
    False
    """
    text = f"{seed}/{server_round}/{device}/{step}/{role}".encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield
