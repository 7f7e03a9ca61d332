"""Bytes under way: each sender alone, or all on one band that is divided anew."""

from collections.abc import Generator, Sequence

import numpy as np
import simpy
from numpy.typing import NDArray

from simulation.channel import OwnLinks, SharedBand

Ints = NDArray[np.int64]
Work = Generator[simpy.Event, None, None]
# Of the time left: what ends this near to the next end, ends with it. Rounding only.
_TOGETHER = 1e-12


class OwnAir:
    """Senders that do not disturb each other.

    Parameters
    ----------
    env : simpy.Environment
        Virtual time.
    links : OwnLinks
        When each is done.
    """

    def __init__(self, env: simpy.Environment, links: OwnLinks) -> None:
        self._env, self._links = env, links

    def send(self, device: int, num_bytes: float) -> Work:
        """Take as long as the bytes are on air."""
        now = self._env.now
        yield self._env.timeout(self._links.finish_s(device, now, num_bytes) - now)


class SharedAir:
    """Senders on one band: whenever one comes or goes, all rates are computed anew.

    Parameters
    ----------
    env : simpy.Environment
        Virtual time.
    band : SharedBand
        Tells the rates.
    server_round : int
        The round, for fading.
    members : sequence of int
        All devices of the round.
    """

    def __init__(
        self,
        env: simpy.Environment,
        band: SharedBand,
        server_round: int,
        members: Sequence[int],
    ) -> None:
        self._env, self._band, self._round = env, band, server_round
        self._members = np.array(sorted(members))
        # Of each sender: its end, device, bytes in all, bits left, bits a second.
        self._ends: list[simpy.Event] = []
        self._devices = np.empty(0, dtype=np.int64)
        self._loads, self._left, self._rates = (np.empty(0) for _ in range(3))
        self._since_s = env.now
        self._plan = 0
        self._planning = False

    def send(self, device: int, num_bytes: float) -> Work:
        """Take as long as the bytes are on air, beside those of others."""
        if not num_bytes:
            return
        self._carry()
        end = self._env.event()
        self._ends.append(end)
        self._devices = np.append(self._devices, device)
        self._loads = np.append(self._loads, float(num_bytes))
        self._left = np.append(self._left, 8.0 * num_bytes)
        self._rates = np.append(self._rates, 0.0)
        self._change()
        try:
            yield end
        except simpy.Interrupt:
            if end in self._ends:
                self._carry()
                self._drop(np.array([self._ends.index(end)]))
            raise

    def _drop(self, places: Ints) -> list[simpy.Event]:
        """Take senders off the air; return what tells their end."""
        gone = [self._ends[place] for place in places]
        keep = np.ones(len(self._ends), dtype=bool)
        keep[places] = False
        self._ends = [e for e, k in zip(self._ends, keep.tolist(), strict=True) if k]
        self._devices, self._loads = self._devices[keep], self._loads[keep]
        self._left, self._rates = self._left[keep], self._rates[keep]
        self._change()
        return gone

    def _change(self) -> None:
        """Compute the rates anew once all that happens at this moment has happened."""
        self._plan += 1
        if not self._planning:
            self._planning = True
            self._env.process(self._replan())

    def _replan(self) -> Work:
        yield self._env.timeout(0)
        self._planning = False
        self._carry()
        if not self._ends:
            return
        self._rates = self._band.rates_bit_per_s(
            self._round, self._devices, self._loads, self._members
        )
        # A rate of 0 never ends: infinity, unless another sender leaves.
        left_s = np.full(len(self._left), np.inf)
        np.divide(self._left, self._rates, out=left_s, where=self._rates > 0)
        next_s = float(left_s.min())
        if next_s < float("inf"):
            places = np.flatnonzero(left_s <= next_s * (1 + _TOGETHER))
            self._env.process(self._end(places, next_s, self._plan))

    def _end(self, places: Ints, after_s: float, plan: int) -> Work:
        """End senders, unless one came or went before."""
        yield self._env.timeout(after_s)
        if plan == self._plan:
            self._carry()
            for end in self._drop(places):
                end.succeed()

    def _carry(self) -> None:
        """Take what was carried since the last change off what is left."""
        seconds = self._env.now - self._since_s
        self._since_s = self._env.now
        if seconds:
            self._left = np.maximum(0.0, self._left - self._rates * seconds)


Air = OwnAir | SharedAir


def air_for(
    env: simpy.Environment,
    medium: OwnLinks | SharedBand,
    server_round: int,
    members: Sequence[int],
) -> Air:
    """Return what carries bytes over a medium in a round."""
    if isinstance(medium, SharedBand):
        return SharedAir(env, medium, server_round, members)
    return OwnAir(env, medium)
