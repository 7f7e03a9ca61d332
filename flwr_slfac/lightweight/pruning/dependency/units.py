"""Which channels must leave together: sets of tied units, some fixed for a reason.

A unit is one output channel of one layer. Tying two units says that neither can leave
without the other; fixing one says why it, and all that is tied to it, must stay.
"""

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

NO_LAYER = "is not computed by a layer whose channels can leave"


class Units:
    """Disjoint sets of units; unit 0 stands for everything that is not a channel.

    Examples
    --------
    >>> units = Units()
    >>> a, b, c = units.new(2), units.new(2), units.new(2)
    >>> units.tie(a, b)
    >>> units.fix(c[:1], "is read")
    >>> (units.roots(a) == units.roots(b)).all(), units.reason(c[0]), units.reason(c[1])
    (np.True_, 'is read', None)
    """

    def __init__(self) -> None:
        self._parents = [0]
        self._reasons = {0: NO_LAYER}

    def new(self, num: int) -> Ids:
        """Return the ids of new units, each alone in its set."""
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

    def fix(self, units: Ids, reason: str) -> None:
        """Say why units, and all that are tied to them, must stay."""
        for unit in np.unique(units):
            self._reasons.setdefault(self._root(int(unit)), reason)

    def reason(self, unit: int) -> str | None:
        """Return why a unit must stay, or None if it may leave."""
        return self._reasons.get(self._root(int(unit)))

    def roots(self, units: Ids) -> Ids:
        """Return the name of each unit's set."""
        return np.array([self._root(int(u)) for u in units.ravel()], np.int64)

    def _root(self, unit: int) -> int:
        parents = self._parents
        while parents[unit] != unit:
            parents[unit] = parents[parents[unit]]
            unit = parents[unit]
        return unit
