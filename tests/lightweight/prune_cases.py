"""Random networks, and the definition of pruning by zeros, for tests of pruning."""

import copy

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from flwr_slfac.lightweight.pruning import ChannelMask, Channels

OPS = (
    *("conv", "conv", "conv", "norm", "relu", "gelu", "sigmoid", "add", "add", "mul"),
    *("cat", "slice", "pool", "scale", "shift", "transposed", "gate", "prelu"),
)
TAILS = ("none", "flatten", "mean", "view", "conv")


class RandomNet(nn.Module):
    """Operations on a growing list of maps, as a drawn program says."""

    def __init__(self, program: list[tuple[str, int, int]], tail: str) -> None:
        super().__init__()
        self.program, self.tail = [], tail
        self.layers = nn.ModuleList()
        widths = [3]
        for op, i, j in program:
            i, j = i % len(widths), j % len(widths)
            layer, width = self._build(op, widths[i], widths[j])
            if width:
                self.layers.append(layer)
                self.program.append((op, i, j))
                widths.append(width)
        last = widths[-1]
        heads = {"flatten": last * 16, "view": last * 16, "mean": last}
        self.head = nn.Linear(heads[tail], 4) if tail in heads else nn.Identity()
        if tail == "conv":
            self.head = nn.Conv2d(last, 4, 1)

    @staticmethod
    def _build(op: str, c: int, d: int) -> tuple[nn.Module, int]:
        """Return the layer of an operation and its channels, 0 if it cannot be."""
        if op == "conv":
            return nn.Conv2d(c, 2 + (c + d) % 4, 3, padding=1), 2 + (c + d) % 4
        if op == "transposed":
            return nn.ConvTranspose2d(c, d + 1, 3, padding=1), d + 1
        if op == "norm":
            norm = nn.BatchNorm2d(c)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            return norm, c
        if op == "prelu":
            return nn.PReLU(c), c
        widths = {"cat": c + d if c + d < 16 else 0, "slice": c // 2}
        if op in ("add", "mul"):
            return nn.Identity(), c if c == d else 0
        return nn.Identity(), widths.get(op, c)

    def _apply_op(self, op: str, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        plain = {
            "relu": lambda: torch.relu(x),
            "gelu": lambda: nn.functional.gelu(x),
            "sigmoid": lambda: torch.sigmoid(x),
            "add": lambda: x + y,
            "mul": lambda: x * y,
            "cat": lambda: torch.cat([x, y], 1),
            "slice": lambda: x[:, : x.shape[1] // 2],
            "pool": lambda: nn.functional.avg_pool2d(x, 3, 1, 1),
            "scale": lambda: 0.5 * x,
            "shift": lambda: x + 0.5,
            "gate": lambda: x * torch.sigmoid(y.mean((2, 3), keepdim=True).mean()),
        }
        return plain[op]() if op in plain else layer(x)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for layer, (op, i, j) in zip(self.layers, self.program, strict=True):
            values.append(self._apply_op(op, layer, values[i], values[j]))
        out = values[-1]
        if self.tail == "mean":
            out = out.mean((2, 3))
        elif self.tail == "flatten":
            out = out.flatten(1)
        elif self.tail == "view":
            out = out.view(out.size(0), -1)
        return self.head(out)


@st.composite
def random_nets(draw: st.DrawFn) -> nn.Module:
    """Draw a network in float64 for inputs of shape (N, 3, 4, 4)."""
    step = st.tuples(st.sampled_from(OPS), st.integers(0, 9), st.integers(0, 9))
    program = draw(st.lists(step, min_size=2, max_size=9))
    torch.manual_seed(draw(st.integers(0, 99)))
    stem = ("conv", 0, draw(st.integers(0, 3)))
    return RandomNet([stem, *program], draw(st.sampled_from(TAILS))).double()


def random_mask(channels: Channels, seed: int, share: float = 0.5) -> ChannelMask:
    """Return a random mask that keeps at least one channel of each group."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for group in channels.groups:
        mask = torch.rand(group.size, generator=generator) >= share
        mask[torch.randint(group.size, (1,), generator=generator)] = True
        masks[group.name] = mask
    return ChannelMask(channels, masks)


def zeroed(front: nn.Module, mask: ChannelMask) -> nn.Module:
    """Return a full copy in which the parameters that make pruned channels are zero.

    Weights that read pruned channels stay as they are: what they read is zero.
    """
    full = copy.deepcopy(front)
    parameters = dict(full.named_parameters())
    with torch.no_grad():
        for group in mask.channels.groups:
            gone = ~mask.masks[group.name]
            for member in group.members:
                owner = full.get_submodule(member.tensor.rpartition(".")[0])
                makes = 1 if getattr(owner, "transposed", False) else 0
                value = parameters.get(member.tensor)
                if value is None or isinstance(owner, nn.PReLU):
                    continue
                if value.ndim == 1 or member.dim == makes:
                    value.index_fill_(member.dim, member.positions[gone].flatten(), 0.0)
    return full
