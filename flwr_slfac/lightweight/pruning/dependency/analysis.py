"""Find which channels of a front must leave together, by dependency analysis.

::

    conv1 ──► bn1 ──► relu ──►(+)──► smashed data        a group: channel i of conv1,
                               ▲                         bn1, conv3 and the smashed data
    conv2 ──► bn2 ──► conv3 ───┘                         another: of conv2, bn2, and
                                                         conv3's inputs
"""

import torch
from torch import Tensor, nn
from torch.fx.node import Node

from flwr_slfac.cutting import Half, Trace, trace_model
from flwr_slfac.errors import CutError, SettingError
from flwr_slfac.lightweight.pruning.channels import Channels, Group, Member, Role
from flwr_slfac.lightweight.pruning.dependency.channel_sets import NO_LAYER, Ids
from flwr_slfac.lightweight.pruning.dependency.flow import Axis, Bindings, Walk
from flwr_slfac.lightweight.pruning.dependency.rules import MODULES, RULES


def channel_groups(front: nn.Module, example: Tensor) -> Channels:
    """Find the channels that can be pruned from a front, by dependency analysis.

    Parameters
    ----------
    front : nn.Module
        The device-side model: ``cut(model, at=...).front``, or a module that
        ``torch.fx`` can trace. Not changed.
    example : Tensor
        An input, batch first. Its other sizes decide how a flattened map lies in the
        linear layer behind it.

    Returns
    -------
    Channels
        Output channels of convolutions and linear layers. Batch norm, elementwise
        operations that map 0 to 0, pooling, flattening and dropout hand them on;
        additions tie them; concatenations lay them side by side. Channels that reach
        any other operation (layer norm, attention, a slice, a constant size) stay.

    Raises
    ------
    SettingError
        If the front cannot be traced, has grouped convolutions, group norm on
        channels that would leave, tied weights, or no channel that can leave; each is
        named.

    Notes
    -----
    A trace is taken in training and in evaluation mode, and what either mode ties or
    fixes is tied or fixed. Structured pruning by dependency groups follows Fang et
    al., "DepGraph", 2023; that unknown operations fix their channels is our choice.

    Examples
    --------
    >>> front = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> channels = channel_groups(front, torch.zeros(2, 3, 8, 8))
    >>> [(g.name, g.size, g.at_cut) for g in channels.groups]
    [('0', 8, False), ('2', 4, True)]
    >>> [(m.tensor, m.dim) for m in channels["0"].members]
    [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)]
    """
    _require_untied(front)
    trace = _trace(front, example)
    bindings, cut, shape = _walk(trace, example)
    bindings.settle()
    groups = _groups(bindings, cut)
    fixed = _fixed(bindings)
    if not groups:
        found = "; ".join(f"`{name}` {why}" for name, why in fixed.items())
        raise SettingError(
            f"no channel of the front can be pruned ({found or 'it has no layers'}); "
            "cut elsewhere, or prune unstructured"
        )
    state = front.state_dict()
    names = {m.tensor for g in groups for m in g.members}
    shapes = {name: tuple(state[name].shape) for name in sorted(names)}
    dim = min(1, len(shape) - 1) if cut is None else cut.dim
    return Channels(tuple(groups), shapes, dim, shape[dim], fixed)


def _require_untied(front: nn.Module) -> None:
    names: dict[int, list[str]] = {}
    for name, parameter in front.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = [" = ".join(same) for same in names.values() if len(same) > 1]
    if tied:
        raise SettingError(
            f"the front's channels cannot be pruned: weights are tied "
            f"({'; '.join(tied)}); untie them, or prune unstructured"
        )


def _trace(front: nn.Module, example: Tensor) -> Trace:
    try:
        trace = trace_model(front, example)
    except CutError as error:
        raise SettingError(
            f"the front's channels cannot be found: {error} Prune unstructured, which "
            "needs no trace."
        ) from error
    if trace.exported and not isinstance(front, Half):
        # Its forward may branch on the number of channels, which export cannot show.
        raise SettingError(
            f"torch.fx cannot trace {type(front).__name__}; give the front that cut() "
            "returns, whose forward is fixed, or prune unstructured"
        )
    return trace


def _walk(
    trace: Trace, example: Tensor
) -> tuple[Bindings, Axis | None, tuple[int, ...]]:
    """Follow channels in both modes; return those of the smashed data and its shape."""
    bindings = Bindings({name for name, _ in trace.root.named_buffers()})
    # Batch norm in training refuses a batch of one value a channel.
    batch = example.repeat_interleave(2, 0) if len(example) == 1 else example
    trace.root.eval()
    cuts: list[Axis | None] = []
    shape: tuple[int, ...] = ()
    for flow in trace.flows.values():
        walk = Walk(flow, bindings, RULES, MODULES)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            out = walk.run(batch.clone())
        if not isinstance(out, Tensor):
            raise SettingError(
                f"a front returns one tensor, this one {type(out).__name__}; cut the "
                "model elsewhere"
            )
        node = flow.output.args[0]
        cuts.append(walk.axes.get(node) if isinstance(node, Node) else None)
        shape = tuple(out.shape)
    return bindings, _same(bindings, cuts), shape


def _same(bindings: Bindings, cuts: list[Axis | None]) -> Axis | None:
    """Tie the channels of the smashed data in both modes, or fix them."""
    first, second = cuts
    if (
        first is not None
        and second is not None
        and (first.dim, first.ids.size) == (second.dim, second.ids.size)
    ):
        bindings.sets.tie(first.ids, second.ids)
        return first
    for axis in cuts:
        if axis is not None:
            bindings.sets.fix(axis.ids, "leaves the front in one mode only")
    return None


def _groups(bindings: Bindings, cut: Axis | None) -> list[Group]:
    """Gather sets of channels that lie in the same places into groups."""
    places: list[tuple[str, int, Ids]] = [
        (name, dim, ids) for (name, dim), ids in bindings.axes.items()
    ]
    if cut is not None:
        places.append(("", cut.dim, cut.ids))
    where: dict[int, dict[int, list[int]]] = {}
    for place, (_, _, ids) in enumerate(places):
        for position, root in enumerate(bindings.sets.roots(ids).tolist()):
            where.setdefault(root, {}).setdefault(place, []).append(position)
    alike: dict[tuple[tuple[int, int], ...], list[dict[int, list[int]]]] = {}
    for root, found in where.items():
        if bindings.sets.reason(root) is None:
            signature = tuple((place, len(at)) for place, at in found.items())
            alike.setdefault(signature, []).append(found)
    groups: list[Group] = []
    for signature, sets in alike.items():
        groups.append(_group(bindings, places, [p for p, _ in signature], sets, groups))
    return groups


def _group(
    bindings: Bindings,
    places: list[tuple[str, int, Ids]],
    own: list[int],
    sets: list[dict[int, list[int]]],
    before: list[Group],
) -> Group:
    members, cut = [], None
    for place in own:
        name, dim, _ = places[place]
        positions = torch.tensor([found[place] for found in sets])
        if name:
            members.append(Member(name, dim, positions, _role(bindings, name)))
        else:
            cut = positions
    layers = [m.tensor for m in members if m.tensor in bindings.layers]
    name = _layer_of(layers[0])
    same = sum(g.name.partition("#")[0] == name for g in before)
    return Group(f"{name}#{same}" if same else name, len(sets), tuple(members), cut)


def _role(bindings: Bindings, name: str) -> Role:
    if name in bindings.scales:
        return "scale"
    return "statistic" if name in bindings.buffers else "parameter"


def _fixed(bindings: Bindings) -> dict[str, str]:
    """Return why layers keep all of their channels."""
    fixed = {}
    for weight, ids in bindings.layers.items():
        reasons = [bindings.sets.reason(int(i)) for i in ids]
        if reasons and None not in reasons:
            why = next((r for r in reasons if r and r != NO_LAYER), NO_LAYER)
            fixed[_layer_of(weight)] = why
    return fixed


def _layer_of(weight: str) -> str:
    return weight.rpartition(".")[0] or weight
