"""Models drawn from a small grammar: what a user might build, not what we thought of.

::

    model   := trunk ... head          each piece a named child, run in order
    images   := conv | depthwise | norm | act | pool | dropout | residual | concat
              | gate | twice | to-sequence | to-vector
    words    := embedding sequence
    sequence := linear | norm | act | attention | encoder | lstm | gru | conv1d
              | dropout | residual | to-vector
    vector   := linear | norm | act | dropout | residual | concat | twice

Any piece may be frozen. Everything is a function of one `random.Random`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NUM_CLASSES, NUM_WORDS = 4, 11
# Named as often as they are to be drawn.
_OF_IMAGES = (
    *("conv", "conv", "depthwise", "norm", "norm", "act", "act", "pool", "dropout"),
    *("residual", "concat", "gate", "twice", "sequence", "vector"),
)
_OF_SEQUENCES = (
    *("linear", "norm", "act", "attention", "encoder", "lstm", "gru", "along"),
    *("dropout", "residual", "vector"),
)
_OF_VECTORS = (
    *("linear", "linear", "norm", "act", "dropout", "residual", "concat", "twice"),
)


@dataclass(frozen=True)
class Images:
    """A batch of images."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Sequence:
    """A batch of sequences of vectors."""

    length: int
    size: int


@dataclass(frozen=True)
class Vector:
    """A batch of vectors."""

    size: int


Kind = Images | Sequence | Vector
Piece = tuple[nn.Module, Kind]


class Residual(nn.Module):
    """x + f(x), in one of the ways that people write it."""

    def __init__(self, inner: nn.Module, way: str) -> None:
        super().__init__()
        self.inner, self.way = inner, way

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        out = self.inner(x)
        if self.way == "in place":
            out += x
            return out
        if self.way == "scaled":
            return x + 0.5 * out
        return torch.add(x, out)


class Concat(nn.Module):
    """Two branches side by side along dimension 1 (or the last)."""

    def __init__(self, a: nn.Module, b: nn.Module, dim: int) -> None:
        super().__init__()
        self.a, self.b, self.dim = a, b, dim

    def forward(self, x: Tensor) -> Tensor:
        """Return both."""
        return torch.cat([self.a(x), self.b(x)], self.dim)


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, 2)
        self.excite = nn.Linear(2, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return images with weighed channels."""
        weights = self.excite(torch.relu(self.squeeze(x.mean((2, 3)))))
        return x * torch.sigmoid(weights)[:, :, None, None]


class Twice(nn.Module):
    """One module applied twice: its weights are shared by both."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return f(f(x))."""
        return self.inner(torch.tanh(self.inner(x)))


class Attention(nn.Module):
    """Self-attention with a residual, causal or not."""

    def __init__(self, size: int, heads: int, length: int, *, causal: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.attention = nn.MultiheadAttention(size, heads, batch_first=True)
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        self.register_buffer("mask", mask if causal else torch.zeros_like(mask))

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus what it attends to."""
        y = self.norm(x)
        return x + self.attention(y, y, y, attn_mask=self.mask, need_weights=False)[0]


class Recurrent(nn.Module):
    """What a recurrent network says at every position."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, without the last state."""
        return self.cell(x)[0]  # type: ignore[no-any-return]


class Along(nn.Module):
    """A convolution along a sequence."""

    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(size, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a sequence of the same length."""
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class Embedding(nn.Module):
    """Words and their places."""

    def __init__(self, length: int, size: int) -> None:
        super().__init__()
        self.words = nn.Embedding(NUM_WORDS, size)
        self.places = nn.Parameter(0.1 * torch.randn(length, size))

    def forward(self, x: Tensor) -> Tensor:
        """Return a sequence of vectors."""
        return self.words(x) + self.places


class ToSequence(nn.Module):
    """Pixels as a sequence."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, H W, C) of (N, C, H, W)."""
        return x.flatten(2).transpose(1, 2)


class ToVector(nn.Module):
    """The mean over places."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.dims = (2, 3) if isinstance(kind, Images) else (1,)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C)."""
        return x.mean(self.dims)


class TiedHead(nn.Module):
    """Logits by the embedding's own weights."""

    def __init__(self, embedding: Embedding) -> None:
        super().__init__()
        self.weight = embedding.words.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, T, words)."""
        return x @ self.weight.T


def activation(draw: random.Random) -> nn.Module:
    """Return an activation function."""
    return draw.choice(
        [
            nn.ReLU(),
            nn.ReLU(inplace=True),
            nn.GELU(),
            nn.SiLU(),
            nn.LeakyReLU(0.1),
            nn.Tanh(),
            nn.PReLU(),
            nn.Hardswish(),
        ]
    )


def of_images(draw: random.Random, kind: Images, depth: int) -> Piece:
    """Return a piece that takes images."""
    c = kind.channels
    choice = draw.choice(_OF_IMAGES)
    if choice == "conv":
        out, stride = draw.choice([4, 6]), draw.choice([1, 1, 2])
        groups = draw.choice([1, 2]) if c % 2 == 0 else 1
        conv = nn.Conv2d(
            c, out, 3, stride, 1, groups=groups, bias=draw.random() < 0.5,
            padding_mode=draw.choice(["zeros", "zeros", "reflect", "circular"])
            if min(kind.height, kind.width) > 1 else "zeros",
        )  # fmt: skip
        h, w = (-(-n // stride) for n in (kind.height, kind.width))
        return conv, Images(out, h, w)
    if choice == "depthwise":
        out = draw.choice([4, 6])
        pair = nn.Conv2d(c, c, 3, padding=1, groups=c), nn.Conv2d(c, out, 1)
        return nn.Sequential(*pair), Images(out, kind.height, kind.width)
    if choice == "norm":
        norms: list[Callable[[], nn.Module]] = [
            lambda: nn.BatchNorm2d(c, momentum=draw.choice([0.1, None])),
            lambda: nn.BatchNorm2d(c, affine=False),
            lambda: nn.GroupNorm(2 if c % 2 == 0 else 1, c),
            lambda: nn.LayerNorm([c, kind.height, kind.width]),
        ]
        if kind.height * kind.width > 1:
            tracks = draw.random() < 0.5
            norms.append(
                lambda: nn.InstanceNorm2d(c, affine=True, track_running_stats=tracks)
            )
        return draw.choice(norms)(), kind
    if choice == "pool":
        if min(kind.height, kind.width) < 4:
            return nn.AdaptiveAvgPool2d(2), Images(c, 2, 2)
        pool = draw.choice([nn.MaxPool2d(2), nn.AvgPool2d(2)])
        return pool, Images(c, kind.height // 2, kind.width // 2)
    if choice == "gate":
        return Gate(c), kind
    if choice == "twice":
        return Twice(nn.Conv2d(c, c, 3, padding=1)), kind
    if choice == "sequence":
        return ToSequence(), Sequence(kind.height * kind.width, c)
    if choice == "vector":
        if draw.random() < 0.5:
            return nn.Flatten(), Vector(c * kind.height * kind.width)
        return ToVector(kind), Vector(c)
    if choice in ("residual", "concat") and depth < 2:
        return _branched(draw, kind, depth, choice)
    if choice == "dropout":
        return draw.choice([nn.Dropout(0.3), nn.Dropout2d(0.3)]), kind
    return activation(draw), kind


def of_sequence(draw: random.Random, kind: Sequence, depth: int) -> Piece:
    """Return a piece that takes sequences."""
    size = kind.size
    choice = draw.choice(_OF_SEQUENCES)
    if choice == "linear":
        out = draw.choice([4, 6])
        return nn.Linear(size, out), Sequence(kind.length, out)
    if choice == "norm":
        return nn.LayerNorm(size), kind
    heads = 2 if size % 2 == 0 else 1
    if choice == "attention":
        return Attention(size, heads, kind.length, causal=draw.random() < 0.5), kind
    if choice == "encoder":
        layer = nn.TransformerEncoderLayer(
            size, heads, 8, dropout=draw.choice([0.0, 0.2]), batch_first=True,
            norm_first=draw.random() < 0.5,
        )  # fmt: skip
        return layer, kind
    if choice in ("lstm", "gru"):
        cell = nn.LSTM if choice == "lstm" else nn.GRU
        both = draw.random() < 0.3
        network = cell(size, 4, batch_first=True, bidirectional=both)
        return Recurrent(network), Sequence(kind.length, 8 if both else 4)
    if choice == "along":
        return Along(size, 4), Sequence(kind.length, 4)
    if choice == "vector":
        return ToVector(kind), Vector(size)
    if choice == "residual" and depth < 2:
        return _branched(draw, kind, depth, choice)
    return (nn.Dropout(0.3) if choice == "dropout" else activation(draw)), kind


def of_vector(draw: random.Random, kind: Vector, depth: int) -> Piece:
    """Return a piece that takes vectors."""
    size = kind.size
    choice = draw.choice(_OF_VECTORS)
    if choice == "linear":
        out = draw.choice([5, 8])
        return nn.Linear(size, out, bias=draw.random() < 0.8), Vector(out)
    if choice == "norm":
        norm = draw.choice([nn.BatchNorm1d(size), nn.LayerNorm(size)])
        return norm, kind
    if choice == "twice":
        return Twice(nn.Linear(size, size)), kind
    if choice in ("residual", "concat") and depth < 2:
        return _branched(draw, kind, depth, choice)
    return (nn.Dropout(0.3) if choice == "dropout" else activation(draw)), kind


def _branched(draw: random.Random, kind: Kind, depth: int, choice: str) -> Piece:
    """Return a residual or two branches, each of pieces that keep the kind."""
    if choice == "concat":
        a, b = (_keeping(draw, kind, depth) for _ in range(2))
        if isinstance(kind, Images):
            return Concat(a, b, 1), Images(2 * kind.channels, kind.height, kind.width)
        return Concat(a, b, 1), Vector(2 * kind.size)  # type: ignore[union-attr]
    way = draw.choice(["in place", "scaled", "add"])
    return Residual(_keeping(draw, kind, depth, linear_last=True), way), kind


def _keeping(
    draw: random.Random, kind: Kind, depth: int, *, linear_last: bool = False
) -> nn.Module:
    """Return pieces in a row that end in the kind that they begin with."""
    pieces = []
    for _ in range(draw.choice([1, 2])):
        piece, out = piece_for(draw, kind, depth + 1)
        if out == kind:
            pieces.append(piece)
    if linear_last or not pieces:
        # What ends a residual in place must own its output.
        if isinstance(kind, Images):
            pieces.append(nn.Conv2d(kind.channels, kind.channels, 1))
        else:
            pieces.append(nn.Linear(kind.size, kind.size))
    return nn.Sequential(*pieces)


def piece_for(draw: random.Random, kind: Kind, depth: int = 0) -> Piece:
    """Return a piece that takes a kind, and the kind that it gives."""
    if isinstance(kind, Images):
        return of_images(draw, kind, depth)
    if isinstance(kind, Sequence):
        return of_sequence(draw, kind, depth)
    return of_vector(draw, kind, depth)


class Drawn(nn.Module):
    """Named pieces in a row."""

    def __init__(self, pieces: list[nn.Module]) -> None:
        super().__init__()
        self.names = [f"piece{i}" for i in range(len(pieces))]
        for name, piece in zip(self.names, pieces, strict=True):
            self.add_module(name, piece)

    def forward(self, x: Tensor) -> Tensor:
        """Run them."""
        for name in self.names:
            x = getattr(self, name)(x)
        return x


def draw_model(draw: random.Random) -> tuple[nn.Module, Tensor, Kind, bool]:
    """Draw a model.

    Returns
    -------
    model : nn.Module
        In float32.
    inputs : Tensor
        30 examples of what it takes.
    kind : Kind
        Of what it gives: logits as a `Vector`, or at every place of a `Sequence`.
    words : bool
        Whether the logits are those of words.
    """
    kind: Kind
    start = draw.choice(["images", "images", "words", "sequence", "vector"])
    pieces: list[nn.Module] = []
    num = 30
    if start == "images":
        kind = Images(*(draw.choice(c) for c in ([1, 3], [5, 6, 8], [4, 6, 7])))
        inputs = torch.randn(num, kind.channels, kind.height, kind.width)
    elif start == "words":
        kind = Sequence(draw.choice([3, 5]), draw.choice([4, 6]))
        inputs = torch.randint(0, NUM_WORDS, (num, kind.length))
        pieces.append(Embedding(kind.length, kind.size))
    elif start == "sequence":
        kind = Sequence(draw.choice([3, 5]), draw.choice([3, 4]))
        inputs = torch.randn(num, kind.length, kind.size)
    else:
        kind = Vector(draw.choice([3, 7]))
        inputs = torch.randn(num, kind.size)
    first = kind
    for _ in range(draw.randint(3, 8)):
        piece, kind = piece_for(draw, kind)
        if draw.random() < 0.12:
            piece.requires_grad_(requires_grad=False)
        pieces.append(piece)
    # Weights tied within one side, or across the cut, which is refused.
    if start == "words" and kind == first and draw.random() < 0.5:
        pieces.append(TiedHead(pieces[0]))  # type: ignore[arg-type]
        return Drawn(pieces), inputs, kind, True
    if isinstance(kind, Images):
        pieces.append(ToVector(kind))
        kind = Vector(kind.channels)
    pieces.append(nn.Linear(kind.size, NUM_CLASSES))
    return Drawn(pieces), inputs, kind, False
