"""Where in a run something happens, and the randomness that is a function of it."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from flwr_slfac.errors import SettingError


def require_partition(what: str, device: object) -> None:
    """Raise SettingError unless `what` is given to a partition id."""
    if isinstance(device, bool) or not isinstance(device, int) or device < 0:
        raise SettingError(
            f"{what} are given to device {device!r}; name devices by partition id"
        )


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
    """Seed the global generators of torch, NumPy and Python inside the block.

    They are restored after it. Generators that something keeps for itself are not
    reached.

    Parameters
    ----------
    seed : int
        As `seed_for` returns it.
    device : torch.device
        Whose generator is seeded too.
    """
    cuda = [device] if device.type == "cuda" else []
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=cuda):
            _seed_torch(seed, device)
            # NumPy takes no more bits in one number.
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)


def _seed_torch(seed: int, device: torch.device) -> None:
    """Do what `torch.manual_seed` does, for the generators that are restored.

    It looks up every kind of accelerator, which takes ten times as long as all else.
    """
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
