"""Cut a model after a named module into a device-side and a server-side half.

::

    input ── front (device) ── smashed data ── back (server) ── output

A cut is legal when the back needs nothing of the front but the smashed data.
The model is traced with ``torch.fx``, or, where that cannot follow its forward,
with ``torch.export``; both once in training and once in evaluation mode, because
a trace bakes ``self.training`` in.
"""

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn

from flwr_slfac.cutting.build import build_halves
from flwr_slfac.cutting.plan import (
    legal_plans,
    measure,
    neighbours,
    num_params,
    plan_cut,
    state_sides,
)
from flwr_slfac.cutting.proof import NO_EXAMPLE, prove
from flwr_slfac.cutting.refusals import require_named, require_plain
from flwr_slfac.cutting.trace import Trace, is_inside, trace_model
from flwr_slfac.errors import CutError
from flwr_slfac.states import State, in_dtypes_of, misfits

logger = logging.getLogger("flwr")


@dataclass(frozen=True)
class Halves:
    """The two halves of a model, on copies of its parameters.

    Attributes
    ----------
    front : nn.Module
        Device-side model: input to smashed data.
    back : nn.Module
        Server-side model: smashed data to output. ``state_dict`` keys of both are
        those of ``model``, and every key of ``model`` is in exactly one of them.
    model : nn.Module
        The model that was cut; changed by :meth:`load` only.
    unproven : tuple of str
        What was not shown to be the model's, and why: one sentence each. Empty if the
        joined halves gave the model's bits on the example, in either mode.
    """

    front: nn.Module
    back: nn.Module
    model: nn.Module
    unproven: tuple[str, ...]

    @property
    def proven(self) -> bool:
        """Whether nothing is left unproven."""
        return not self.unproven

    def load(self, front_state: Any, back_state: Any) -> nn.Module:
        """Load the states of both halves into ``model`` and return it.

        Parameters
        ----------
        front_state, back_state : Mapping of str to Tensor, or ArrayRecord
            States of the halves; an object with ``to_torch_state_dict()`` is asked
            for it. Floats are rounded where ``model`` holds integers, since averaged
            counters such as ``num_batches_tracked`` arrive as float64.

        Returns
        -------
        nn.Module
            ``self.model``, in its own dtypes and on its own devices.

        Raises
        ------
        CutError
            If a key is missing or unexpected, or a shape differs; nothing is loaded.
        """
        merged: dict[str, Tensor] = {}
        sides = (("front", self.front, front_state), ("back", self.back, back_state))
        for side, half, given in sides:
            read = getattr(given, "to_torch_state_dict", None)
            state: State = given if read is None else read()
            expected = half.state_dict()
            if problems := misfits(state, expected):
                raise CutError(
                    f"The {side} state does not fit the {side} half: "
                    f"{'; '.join(problems)}. Load states of the same model and cut."
                )
            merged.update(in_dtypes_of(state, expected))
        self.model.load_state_dict(merged)
        return self.model


@dataclass(frozen=True)
class CutPoint:
    """A point at which a model can be cut, and what lies on either side of it.

    Attributes
    ----------
    name : str
        Outermost module that ends here: the ``at`` of :func:`cut`.
    aliases : tuple of str
        Other modules that end here; ``at`` may name any of them.
    shape : tuple of int
        Shape of the smashed data for the example, batch first.
    front_params, back_params : int
        Number of parameters on either side.
    front_flops, back_flops : int
        FLOPs of the forward pass for the example, as
        ``torch.utils.flop_counter`` counts them.
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    front_params: int
    back_params: int
    front_flops: int
    back_flops: int

    def __str__(self) -> str:
        whole = max(1, self.front_flops + self.back_flops)
        return (
            f"{self.name:<24} {self.shape!s:<20} {self.front_params:>11,} params, "
            f"{self.front_flops / whole:6.1%} of FLOPs in front"
        )


def cut(model: nn.Module, at: str, example: Tensor | None = None) -> Halves:
    """Cut ``model`` after its submodule ``at``.

    Parameters
    ----------
    model : nn.Module
        Model whose forward takes one tensor with the batch in dimension 0; further
        arguments keep their defaults. Not changed.
    at : str
        Name of a submodule, as in ``model.named_modules()``. If forward calls it
        several times, the cut lies after the last call.
    example : Tensor, optional
        An input, batch first, on the model's device. The joined halves are proved on
        it: outputs, gradients and buffers are the model's bit for bit in training and
        in evaluation, with this and with another state. Models that ``torch.fx``
        cannot trace need one: they go through ``torch.export``, which keeps the batch
        size free and fixes all other sizes to those of the example.

    Returns
    -------
    Halves
        Two modules on copies of the parameters. A module that stands in another mode
        than the model, or that the model's own ``train`` leaves there, keeps it: a
        batch norm frozen by ``eval()`` stays frozen. `Halves.unproven` says what the
        example, or its absence, left open.

    Raises
    ------
    CutError
        If there is no such module, the model cannot be traced or run on the example,
        anything but the module's one output crosses the cut, or both sides share a
        parameter: the message names the nearest legal cuts. If forward does what a
        trace would lose (sets attributes, draws from other generators than torch's,
        has hooks), or the joined halves differ from the model on the example.

    Notes
    -----
    What does not depend on the input is computed on the side that needs it. A batch
    size or a device that would cross is read off the smashed data instead. Custom
    autograd functions, ``no_grad``, ``autocast`` and writes in place are kept. The
    proof runs two forward and backward passes per mode on copies, one without
    gradients, with PyTorch's fused attention kernels switched off.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> halves = cut(model, at="1")
    >>> sorted(halves.front.state_dict()), sorted(halves.back.state_dict())
    (['0.bias', '0.weight'], ['2.bias', '2.weight'])
    >>> x = torch.ones(3, 8)
    >>> torch.equal(halves.back(halves.front(x)), model(x))
    True
    >>> halves.proven, cut(model, at="1", example=x).proven
    (False, True)
    """
    require_plain(model)
    require_named(model, at)
    trace = trace_model(model, example, closed=not is_inside(model, at))
    values = None if example is None else measure(trace, example)
    try:
        plan = plan_cut(trace, at, values)
    except CutError as error:
        raise CutError(f"{error} {neighbours(trace, at, values)}") from None
    front, back = build_halves(trace, plan)
    if example is None:
        _say_once(f"Not proved: {NO_EXAMPLE}.")
        return Halves(front, back, model, (NO_EXAMPLE,))
    if values is not None:
        back.example_shape = values.shapes.get(plan[False].point)
    return Halves(front, back, model, _prove(model, trace, (front, back), example))


@cache
def _say_once(text: str) -> None:
    logger.info(text)


def _prove(
    model: nn.Module, trace: Trace, halves: tuple[nn.Module, nn.Module], example: Tensor
) -> tuple[str, ...]:
    try:
        return prove(model, halves, example)
    except CutError as error:
        hint = f" torch.fx said: {trace.refused}." if trace.refused else ""
        raise CutError(f"{error}{hint}") from error


def legal_cuts(model: nn.Module, example: Tensor) -> list[CutPoint]:
    """List every point at which ``model`` can be cut, from input to output.

    Parameters
    ----------
    model : nn.Module
        As for :func:`cut`. Not changed.
    example : Tensor
        An input, batch first, for which shapes and FLOPs are given.

    Returns
    -------
    list of CutPoint
        :func:`cut` accepts exactly their names and aliases, and, where torch.export
        can trace the model, legal places inside PyTorch's own transformer layers.

    Raises
    ------
    CutError
        If the model cannot be traced or run on the example, or its trace is not the
        model on it: see :func:`cut`.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> [(p.name, p.shape) for p in legal_cuts(model, torch.ones(3, 8))]
    [('0', (3, 4)), ('1', (3, 4))]
    """
    trace = trace_model(model, example, closed=True)
    values = measure(trace, example)
    points = []
    for names, plan in legal_plans(trace, values):
        sides = plan[False]
        own = [num_params(trace, keys) for keys in state_sides(trace, plan)]
        flops = [
            sum(values.flops[n] for n in part - sides.read_off)
            for part in (sides.front, sides.back)
        ]
        shape = values.shapes[sides.point]
        points.append(CutPoint(names[0], tuple(names[1:]), shape, *own, *flops))
    if points:
        # Both halves together run the whole trace, wherever it is cut.
        plan = plan_cut(trace, points[0].name, values)
        _prove(model, trace, build_halves(trace, plan), example)
    return points
