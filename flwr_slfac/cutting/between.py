"""What a model does between two of its cuts."""

from torch import Tensor, nn

from flwr_slfac.cutting.build import Half, build_part
from flwr_slfac.cutting.flow import Sides
from flwr_slfac.cutting.halves import cut
from flwr_slfac.cutting.plan import measure, plan_cut, state_sides
from flwr_slfac.cutting.proof import prove
from flwr_slfac.cutting.refusals import require_named, require_plain
from flwr_slfac.cutting.trace import Trace, is_inside, trace_model
from flwr_slfac.errors import CutError


def cut_between(
    model: nn.Module, at: str, to: str, example: Tensor | None = None
) -> nn.Module:
    """Return what `model` does between two of its cuts.

    Parameters
    ----------
    model, example
        As for :func:`cut`.
    at, to : str
        Names of submodules: what follows the first, up to the end of the second.

    Returns
    -------
    nn.Module
        On copies of the parameters: those of the front of `to` that the front of `at`
        does not have. Its ``example_shape`` is that of its input, where an example is.

    Raises
    ------
    CutError
        As :func:`cut`, for either name, or if `at` does not lie before `to`.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> sorted(cut_between(model, at="0", to="1").state_dict())
    []
    """
    require_plain(model)
    for name in (at, to):
        require_named(model, name)
    inside = any(is_inside(model, name) for name in (at, to))
    trace = trace_model(model, example, closed=not inside)
    values = None if example is None else measure(trace, example)
    try:
        first, last = (plan_cut(trace, name, values) for name in (at, to))
        middle = _build_middle(trace, first, last)
    except CutError as error:
        raise CutError(f"between {at!r} and {to!r}: {error}") from error
    if example is not None and values is not None:
        middle.example_shape = values.shapes.get(first[False].point)
        fronts = [cut(model, name, example).front for name in (at, to)]
        prove(fronts[1], (fronts[0], middle), example)
    return middle


def _build_middle(
    trace: Trace, first: dict[bool, Sides], last: dict[bool, Sides]
) -> Half:
    """Return what runs between two cuts; it takes the tensors of the trace's own copy.

    Raises
    ------
    CutError
        If the first cut does not lie before the last.
    """
    if any(first[mode].front - last[mode].front for mode in first):
        raise CutError("the first cut does not lie before the last one.")
    parts = {mode: last[mode].front & first[mode].back for mode in first}
    names = state_sides(trace, last)[0] & state_sides(trace, first)[1]
    ends = {mode: sides.point for mode, sides in last.items()}
    middle = build_part(trace, parts, names, set(), start=first, end=ends)
    middle.begins_after = trace.flows[False].label(first[False].point)
    return middle
