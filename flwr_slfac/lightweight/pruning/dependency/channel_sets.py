"""Which channels must leave together: sets of tied channels, some fixed for a reason.

Each output channel of each layer has an id. Tying two says that neither can leave
without the other; fixing one says why it, and all that is tied to it, must stay.
"""

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

NO_LAYER = "is not computed by a layer whose channels can leave"


class ChannelSets:
    """Disjoint sets of channels; id 0 stands for everything that is not a channel.

    Examples
    --------
    >>> sets = ChannelSets()
    >>> a, b, c = sets.new(2), sets.new(2), sets.new(2)
    >>> sets.tie(a, b)
    >>> sets.fix(c[:1], "is read")
    >>> (sets.roots(a) == sets.roots(b)).all(), sets.reason(c[0]), sets.reason(c[1])
    (np.True_, 'is read', None)
    """

    def __init__(self) -> None:
        self._parents = [0]
        self._reasons = {0: NO_LAYER}

    def new(self, num: int) -> Ids:
        """Return the ids of new channels, each alone in its set."""
        first = len(self._parents)
        self._parents.extend(range(first, first + num))
        return np.arange(first, first + num, dtype=np.int64)

    def tie(self, a: Ids, b: Ids) -> None:
        """Join the sets of a[i] and b[i], for each i."""
        for pair in np.unique(np.stack([a.ravel(), b.ravel()], 1), axis=0):
            low, high = sorted((self._root(int(pair[0])), self._root(int(pair[1]))))
            if low != high:
                self._parents[high] = low
                reason = self._reasons.pop(high, None)
                if reason is not None:
                    self._reasons.setdefault(low, reason)

    def fix(self, ids: Ids, reason: str) -> None:
        """Say why channels, and all that are tied to them, must stay."""
        for channel in np.unique(ids):
            self._reasons.setdefault(self._root(int(channel)), reason)

    def reason(self, channel: int) -> str | None:
        """Return why a channel must stay, or None if it may leave."""
        return self._reasons.get(self._root(int(channel)))

    def roots(self, ids: Ids) -> Ids:
        """Return the name of each channel's set."""
        return np.array([self._root(int(i)) for i in ids.ravel()], np.int64)

    def _root(self, channel: int) -> int:
        parents = self._parents
        while parents[channel] != channel:
            parents[channel] = parents[parents[channel]]
            channel = parents[channel]
        return channel
