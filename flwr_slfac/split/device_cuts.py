"""Cuts of devices' own: which layers each one trains, and how the server trains others.

::

    device ──layers up to its cut──► server: its middle ──layers up to the common cut──►
                                     server: the back, one for all

The scheme is that of HASFL (arXiv 2506.08426) and AdaptSFL (2403.13101): device and
middle together are the front of the common cut, one for each device, and fronts are
averaged as ever. A middle learns by its device's own gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn

from flwr_slfac.cutting import Halves, cut, cut_between
from flwr_slfac.errors import CutError, SettingError
from flwr_slfac.split.device import OptimizerFactory, SchedulerFactory, require_positive
from flwr_slfac.split.place import require_partition
from flwr_slfac.split.tuning import Tuning


@dataclass(frozen=True)
class DeviceCuts:
    """Cuts of devices' own, none behind the cut of the back.

    Parameters
    ----------
    model : nn.Module
        The model that is cut. Not changed.
    common : str
        The cut of the back and of the first front, as for `cut`.
    at : mapping of int to str
        By partition id the cut of that device, as for `cut`, none behind `common`.
        Devices that are not named are cut there.
    optimizer, scheduler, scheduler_per, keep_optimizer, clip_norm
        As in `Device`, for the middles. Set as on the devices, and with optimizers
        that go weight by weight, a run is that of the common cut: with codecs that
        lose nothing, to the bit, unless the front draws random numbers.
    example : Tensor, optional
        An input, batch first, as for `cut`: bounds what is taken from a device.

    Raises
    ------
    SettingError
        If a device is no partition id, or its cut is not legal, or behind `common`.

    Examples
    --------
    >>> layers = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4), nn.Linear(4, 2)
    >>> sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    >>> cuts = DeviceCuts(nn.Sequential(*layers), "2", {0: "0"}, sgd)
    >>> sorted(cuts.middle(0).state_dict()), cuts.middle(1)
    (['2.bias', '2.weight'], None)
    """

    model: nn.Module
    common: str
    at: Mapping[int, str]
    optimizer: OptimizerFactory
    scheduler: SchedulerFactory | None = None
    scheduler_per: Literal["round", "step"] = "round"
    keep_optimizer: bool = False
    clip_norm: float | None = None
    example: torch.Tensor | None = None

    def __post_init__(self) -> None:
        require_positive("clip_norm", self.clip_norm)
        if self.scheduler_per not in ("round", "step"):
            raise SettingError(
                f"scheduler_per is {self.scheduler_per!r}; use 'round' or 'step'"
            )
        for device in self.at:
            require_partition("cuts", device)
        _ = self.names, self._middles

    @cached_property
    def _halves(self) -> Halves:
        """The halves of the common cut."""
        try:
            return cut(self.model, self.common, self.example)
        except CutError as error:
            raise SettingError(f"common={self.common!r}: {error}") from error

    def require_fit(self, back: nn.Module) -> None:
        """Refuse a back that begins at another cut.

        Raises
        ------
        SettingError
            If it does, as far as it tells.
        """
        own = self._halves.back.begins_after
        other = getattr(back, "begins_after", own)
        if other != own:
            raise SettingError(
                f"the back begins after {other}, and the common cut of cuts= lies "
                f"after {own}; give SplitFed and DeviceCuts the same model and cut"
            )

    @cached_property
    def names(self) -> frozenset[str]:
        """The keys of the front of the common cut."""
        return frozenset(self._halves.front.state_dict())

    @cached_property
    def _middles(self) -> dict[str, nn.Module]:
        """The layers between a cut and the common one, by the name of the cut."""
        middles = {}
        for name in sorted(set(self.at.values())):
            try:
                middles[name] = cut_between(self.model, name, self.common, self.example)
            except CutError as error:
                devices = sorted(d for d, at in self.at.items() if at == name)
                raise SettingError(
                    f"device {devices[0]} cannot be cut at {name!r}: {error}"
                ) from error
        return middles

    def middle(self, device: int) -> nn.Module | None:
        """Return the layers behind a device's cut; None for none. Copy it to train."""
        name = self.at.get(device)
        return None if name is None else self._middles[name]

    def shapes(self) -> list[tuple[int, ...] | None]:
        """Return the shapes of smashed data at the cuts; None where not known."""
        return [getattr(m, "example_shape", None) for m in self._middles.values()]

    def settings(self) -> dict[str, Any]:
        """Return what makes a run another one."""
        how = self.optimizer, self.scheduler, self.scheduler_per, self.clip_norm
        tuning = Tuning(self.model.parameters(), *how).settings()
        at = {device: self.at[device] for device in sorted(self.at)}
        return {"at": at, "keep_optimizer": self.keep_optimizer, **tuning}

    def __str__(self) -> str:
        counts = {n: list(self.at.values()).count(n) for n in self._middles}
        each = ", ".join(f"{count} at {name!r}" for name, count in counts.items())
        return f"Devices cut on their own: {each or 'none'}"
