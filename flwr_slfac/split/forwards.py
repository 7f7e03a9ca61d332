"""Which network a forward runs in, where it does not wait for the gradient before it.

::

    depth 0    forward 0, update 0, forward 1, update 1, forward 2, ...
    depth 1    forward 0, forward 1, update 0, forward 2, update 1, forward 3, ...
               on copy 0  on copy 1            on copy 0            on copy 1

A backward must begin at the weights of its forward (weight stashing: Narayanan et al.,
PipeDream, 2019). Each forward therefore has a copy of the network to itself until its
backward is done, in which nothing changes meanwhile: exact whatever a graph refers to.
"""

import copy
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from flwr_slfac.errors import SettingError
from flwr_slfac.split.buffers import put_buffers

# Of a module: its tensors, which are copied both ways, and its mode, which is set.
_CARRIED = ("_parameters", "_buffers", "_modules", "training")
_REMEDY = "or set pipeline_depth=0"


def require_pipeline_depth(depth: object, period_steps: int = 0) -> None:
    """Raise SettingError unless a pipeline's depth is 0, or 1 in a round without means.

    Parameters
    ----------
    depth : object
        What a user gave.
    period_steps : int (default: 0)
        Steps between two averages of fronts within a round; 0 for none there.

    Examples
    --------
    >>> require_pipeline_depth(1)
    >>> require_pipeline_depth(2)
    Traceback (most recent call last):
    flwr_slfac.errors.SettingError: pipeline_depth is 2; use 0, or 1 to run the next \
forward while a gradient travels
    """
    if isinstance(depth, bool) or depth not in (0, 1):
        raise SettingError(
            f"pipeline_depth is {depth!r}; use 0, or 1 to run the next forward while a "
            "gradient travels"
        )
    if depth and period_steps:
        raise SettingError(
            "pipeline_depth=1 runs a forward before the update of the step before, and "
            "Lightweight(period='step') has fronts averaged between the two; set "
            "pipeline_depth=0, or period='round'"
        )


class Forwards:
    """Where forwards run; the null form: in the network, which then does not change.

    Parameters
    ----------
    network : nn.Module
        What is trained: its weights and buffers are those after the last update and
        the last forward.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def network(self, step: int, *, again: bool) -> nn.Module:
        """Return what the forward of a step runs in.

        Parameters
        ----------
        step : int
            The step of the round, from 0.
        again : bool
            Whether it ran before, and is to run with the weights that it had then.
        """
        return self._network

    def ran(self, step: int) -> None:
        """Take over what the forward of a step did to buffers.

        Raises
        ------
        SettingError
            If it did more than that.
        """

    def collect(self, step: int) -> None:
        """Give the network the gradients that the backward of a step left."""

    def state(self, step: int) -> dict[str, Any]:
        """Return what `load` needs to run the last forward again, for a stored state.

        Parameters
        ----------
        step : int
            The last forward, -1 before the first.
        """
        return {}


class TwoCopies(Forwards):
    """Forwards in two copies of the network in turn.

    Takes the memory of two more networks, and of one more graph.

    Parameters
    ----------
    network : nn.Module
        As for `Forwards`.

    Raises
    ------
    SettingError
        If a copy would not do what the network does.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        for name, parameter in network.named_parameters():
            if _has_hooks(parameter):
                raise SettingError(
                    f"a hook on the front's {name!r} would be lost with "
                    "pipeline_depth=1, whose forwards run in copies of the front; "
                    f"remove it, {_REMEDY}"
                )
        self._copies = [_copied(network) for _ in range(2)]
        # Until a first forward has shown that modules keep nothing but tensors.
        self._before: list[dict[str, Any]] = [{}, {}]
        self._trusted = [False, False]

    def network(self, step: int, *, again: bool) -> nn.Module:
        """Return the copy of a step, with the weights and buffers of the network."""
        own = self._copies[step % 2]
        if not again:
            with torch.no_grad():
                for mine, theirs in zip(
                    own.parameters(), self._network.parameters(), strict=True
                ):
                    mine.copy_(theirs)
        put_buffers(own, dict(self._network.named_buffers()))
        if not self._trusted[step % 2]:
            self._before[step % 2] = _attributes(own)
        return own

    def ran(self, step: int) -> None:
        """Bring the buffers of a copy to the network.

        Raises
        ------
        SettingError
            If a module keeps something else than buffers from forward to forward.
        """
        own = self._copies[step % 2]
        put_buffers(self._network, dict(own.named_buffers()))
        if self._trusted[step % 2]:
            return
        before, self._before[step % 2] = self._before[step % 2], {}
        now = _attributes(own)
        changed = [name for name in now if now[name] != before.get(name)]
        if changed or before.keys() - now.keys():
            named = (changed or sorted(before.keys() - now.keys()))[0]
            raise SettingError(
                f"the front's forward changes {named!r}, which is no buffer; with "
                "pipeline_depth=1 forwards run in two copies of the front, which do "
                f"not share it: register it as a buffer, {_REMEDY}"
            )
        self._trusted[step % 2] = True

    def collect(self, step: int) -> None:
        """Hand the gradients of a copy to the network."""
        own = self._copies[step % 2]
        pairs = zip(self._network.parameters(), own.parameters(), strict=True)
        for mine, theirs in pairs:
            mine.grad, theirs.grad = theirs.grad, None

    def state(self, step: int) -> dict[str, Any]:
        """Return the weights of the last forward."""
        if step < 0:
            return {"weights": {}}
        return {"weights": dict(self._copies[step % 2].named_parameters())}

    def load(self, step: int, state: Mapping[str, Any]) -> None:
        """Take up the weights that the last forward had."""
        weights = state["weights"]
        with torch.no_grad():
            for name, mine in self._copies[step % 2].named_parameters():
                if name in weights:
                    mine.copy_(weights[name])


def _has_hooks(parameter: nn.Parameter) -> bool:
    after = getattr(parameter, "_post_accumulate_grad_hooks", None)
    return bool(parameter._backward_hooks or after)


def _copied(network: nn.Module) -> nn.Module:
    """Return a copy.

    Raises
    ------
    SettingError
        If there is none.
    """
    try:
        own = copy.deepcopy(network)
    except Exception as error:  # whatever a module of the user's raises
        raise SettingError(
            f"the front cannot be copied ({type(error).__name__}: {error}), and with "
            "pipeline_depth=1 forwards run in copies of it; let copy.deepcopy copy it, "
            f"{_REMEDY}"
        ) from error
    for parameter in own.parameters():
        parameter.grad = None
    return own


def _attributes(network: nn.Module) -> dict[str, Any]:
    """Return what modules hold besides their tensors, in a form that is compared."""
    return {
        f"{name}.{key}" if name else key: _shown(value)
        for name, module in network.named_modules()
        for key, value in vars(module).items()
        if key not in _CARRIED
    }


def _shown(value: Any) -> Any:
    """Return the bytes of a value, where it has some; else which object it is."""
    try:
        return pickle.dumps(value)
    except Exception:  # whatever an attribute of the user's raises
        return id(value)
