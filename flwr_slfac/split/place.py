"""Where in a run something happens, and the randomness that is a function of it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Place:
    """A device in a round of a run: what all of its randomness is a function of.

    Parameters
    ----------
    seed : int
        Seed of the whole run.
    server_round, device : int
        The round, from 1, and the partition id.

    Examples
    --------
    >>> str(Place(seed=0, server_round=1, device=2).at(3))
    'device 2, round 1, step 3'
    """

    seed: int
    server_round: int
    device: int

    def at(self, step: int) -> "Moment":
        """Return the moment of a step of the round, from 0."""
        return Moment(self, step)


@dataclass(frozen=True)
class Moment:
    """A step of a device in a round.

    Parameters
    ----------
    place : Place
        The device and the round.
    step : int
        The step of the round, from 0.
    """

    place: Place
    step: int

    def __str__(self) -> str:
        place = self.place
        return f"device {place.device}, round {place.server_round}, step {self.step}"

    def seed_of(self, role: str) -> int:
        """Derive the seed of one use of randomness, see `seed_for`."""
        place = self.place
        return seed_for(place.seed, place.server_round, place.device, self.step, role)

    def generator(self, role: str) -> torch.Generator:
        """Return a generator of torch on the CPU for one use of randomness."""
        return torch.Generator().manual_seed(self.seed_of(role))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield
